"""Media: the same spec is the same pixels on every machine, and a wrong spec is refused with its numbers."""

from __future__ import annotations

import hashlib
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings

from harness.media import MAX_PIXELS, Pixels, pixels, thumbnail
from harness.schema import ColourMode, ImageSpec, Pattern
from harness.strategies import image_specs

SPECS: dict[ImageSpec, str] = {
    ImageSpec(3, 900, "RGB", "noise", 0): "f161d1baa2ec5aa6",
    ImageSpec(65, 47, "L", "noise", 255): "cbc687b3b36bca83",
    ImageSpec(65, 47, "RGB", "gradient", 3): "51c647cc8328fa88",
    ImageSpec(31, 64, "RGBA", "gradient", 0): "7922e6f31759bfd8",
    ImageSpec(64, 31, "RGBA", "checker", 9): "e2c0938e30ce680b",
    ImageSpec(40, 40, "RGB", "stripes", 12): "76b024d54a0ba2a0",
    ImageSpec(1, 1, "RGB", "solid", 200): "ff118cc418bebefa",
}
"""Spec -> the first sixteen hex digits of the SHA-256 of its pixels. They may never change: cases are only specs."""

SHAPES: dict[ColourMode, tuple[int, ...]] = {"RGB": (7, 13, 3), "L": (7, 13), "RGBA": (7, 13, 4)}


def _digest(drawn: Pixels) -> str:
    return hashlib.sha256(drawn.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("spec", SPECS, ids=[f"{spec.pattern}-{spec.mode}" for spec in SPECS])
def test_pixels_are_the_stored_ones(spec: ImageSpec) -> None:
    """A spec gives the bytes that it gave when it was written down."""
    assert _digest(pixels(spec)) == SPECS[spec]


@settings(max_examples=20)
@given(image_specs())
def test_the_same_spec_gives_the_same_bytes(spec: ImageSpec) -> None:
    """Drawing twice gives equal bytes, contiguous, of the size and channels of the spec."""
    first, second = pixels(spec), pixels(spec)
    assert first.tobytes() == second.tobytes()
    assert first.flags.c_contiguous
    assert first.shape[:2] == (spec.height_px, spec.width_px)


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_modes_have_their_channels(pattern: Pattern, mode: ColourMode) -> None:
    """RGB has three channels, RGBA four, L none; all are uint8, rows first."""
    drawn = pixels(ImageSpec(13, 7, mode, pattern))
    assert drawn.shape == SHAPES[mode]
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_seeds_and_patterns_differ(pattern: Pattern) -> None:
    """Another seed or another pattern gives other pixels."""
    drawn = [pixels(ImageSpec(50, 50, "RGB", pattern, seed)).tobytes() for seed in range(5)]
    others = [pixels(ImageSpec(50, 50, "RGB", other)).tobytes() for other in get_args(Pattern) if other != pattern]
    assert len({*drawn, *others}) == len(drawn) + len(others)


def _quarters(drawn: Pixels) -> list[Pixels]:
    high, wide = drawn.shape[0] // 2, drawn.shape[1] // 2
    return [drawn[y : y + high, x : x + wide] for y in (0, high) for x in (0, wide)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("seed", [0, 1, 7, 255])
def test_quarters_of_a_gradient_differ(mode: ColourMode, seed: int) -> None:
    """Any two quarters are far apart in some channel, so that a dropped or swapped quarter shows."""
    for one, other in combinations(_quarters(pixels(ImageSpec(200, 120, mode, "gradient", seed))), 2):
        apart = np.abs(one.astype(int) - other).mean(axis=(0, 1))
        assert np.max(apart) > 60


@pytest.mark.parametrize(
    "size", [(0, 5), (5, 0), (-1, 5), (MAX_PIXELS + 1, 1), (2001, 2000)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_sizes_out_of_bounds_are_refused_by_name(size: tuple[int, int]) -> None:
    """No pixels and too many are refused before anything is allocated; the message has the sides and the bound."""
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} px.*{MAX_PIXELS:,}"):
        pixels(ImageSpec(*size))


def test_the_largest_image_is_drawn() -> None:
    """Exactly the bound is allowed."""
    assert pixels(ImageSpec(2000, 2000, "L", "solid")).size == MAX_PIXELS


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1), (900, 3), (640, 480)])
@pytest.mark.parametrize("mode", SHAPES)
def test_thumbnails_are_bounded(mode: ColourMode, size: tuple[int, int]) -> None:
    """A thumbnail fits its square, keeps the mode, has at least a pixel and never grows."""
    small = thumbnail(ImageSpec(*size, mode, "checker"), 64)
    assert small.mode == mode
    assert max(small.size) <= 64
    assert all(1 <= side <= of for side, of in zip(small.size, size, strict=True))
