"""Media spec -> pixels, the same on every machine and with every numpy. Layer 1.

Everything is integer arithmetic; noise comes from the raw stream of a Philox counter generator, which numpy
promises never to change (the streams of `numpy.random.Generator` carry no such promise).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from harness.schema import ImageSpec, Pattern

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 4_000_000
"""Bound on width x height, so that no generated image costs more than 16 MB."""

_CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4}


def _noise(spec: ImageSpec, channels: int) -> Pixels:
    count = spec.height_px * spec.width_px * channels
    words = np.random.Philox(key=spec.seed).random_raw(math.ceil(count / 8))
    return words.astype("<u8").view(np.uint8)[:count].reshape(spec.height_px, spec.width_px, channels)


def _axes(spec: ImageSpec, channels: int) -> tuple[npt.NDArray[np.int64], ...]:
    """(rows, 1, 1), (1, columns, 1) and (1, 1, channels) indices, the last one shifted by the seed."""
    rows = np.arange(spec.height_px).reshape(-1, 1, 1)
    columns = np.arange(spec.width_px).reshape(1, -1, 1)
    return rows, columns, np.arange(channels).reshape(1, 1, -1) + spec.seed


def _gradient(spec: ImageSpec, channels: int) -> Pixels:
    """Every quarter of the image looks different, so that a dropped or swapped quarter shows."""
    rows, columns, shift = _axes(spec, channels)
    down, across = rows * 255 // spec.height_px, columns * 255 // spec.width_px
    ramp = (down * (2 + shift % 2) + across * (3 - shift % 2)) // 2
    return ((ramp + 40 * shift) % 256).astype(np.uint8)


def _checker(spec: ImageSpec, channels: int) -> Pixels:
    """Squares of about a twelfth of the shorter side, in colours that depend on the seed."""
    rows, columns, shift = _axes(spec, channels)
    square_px = max(1, min(spec.width_px, spec.height_px) // 12)
    odd = (rows // square_px + columns // square_px) % 2
    return ((odd * 150 + 70 * shift + 30) % 256).astype(np.uint8)


def _stripes(spec: ImageSpec, channels: int) -> Pixels:
    """Diagonal stripes, a period of seven to nineteen pixels by channel and seed."""
    rows, columns, shift = _axes(spec, channels)
    return ((rows + 2 * columns) * 13 % (7 + shift % 13) * 13 + 20).astype(np.uint8)


def _solid(spec: ImageSpec, channels: int) -> Pixels:
    rows, columns, shift = _axes(spec, channels)
    return ((rows + columns) * 0 + 97 * (shift + 1) % 256).astype(np.uint8)


_PATTERNS: dict[Pattern, Callable[[ImageSpec, int], Pixels]] = {
    "noise": _noise,
    "gradient": _gradient,
    "checker": _checker,
    "stripes": _stripes,
    "solid": _solid,
}


def pixels(spec: ImageSpec) -> Pixels:
    """Pixels of a spec: uint8 (height, width, 3 or 4), or (height, width) in mode L.

    Raises:
        ValueError: a side below 1 px, or more than `MAX_PIXELS` pixels.
    """
    if min(spec.width_px, spec.height_px) < 1 or spec.width_px * spec.height_px > MAX_PIXELS:
        raise ValueError(
            f"image of {spec.width_px} x {spec.height_px} px: sides of at least 1 px, at most {MAX_PIXELS:,} px in all"
        )
    drawn = _PATTERNS[spec.pattern](spec, _CHANNELS[spec.mode])
    return np.ascontiguousarray(drawn[:, :, 0] if spec.mode == "L" else drawn)


def thumbnail(spec: ImageSpec, max_side_px: int) -> Image.Image:
    """The image, reduced to fit a square of `max_side_px` for people to look at; its pixels are never reused."""
    image = Image.fromarray(pixels(spec))
    image.thumbnail((max_side_px, max_side_px))
    return image
