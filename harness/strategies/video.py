"""Videos aimed at what is sampled, at which frame number each frame has, and at the edges of seconds and minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.schema import Pattern, VideoSpec
from harness.strategies.images import log_uniform
from harness.strategies.mix import weighted

SAMPLED_FRAMES = 32
"""A whole video is sampled to this many frames; a shorter one is refused."""

MAX_FRAMES = 64
MAX_SIDE_PX = 240
MAX_INDEX = 200_000

_FPS = (24.0, None, 30.0, 1.0, 25.0, 60.0, 29.97, 23.976, 12.5, 0.5)
_SECONDS = (1, 59, 60, 61, 599, 600, 3_599, 3_600)


def rates() -> SearchStrategy[float | None]:
    """Frames a second: the usual ones, fractions, none at all; shrinks to 24."""
    return weighted((3, st.sampled_from(_FPS)), (1, st.floats(0.1, 240.0)))


def _numbers(frames: int, fps: float | None) -> SearchStrategy[tuple[int, ...]]:
    """Rising frame numbers that start or step near whole seconds and minutes."""
    edges = [round(seconds * (fps or 24.0)) + off for seconds in _SECONDS for off in (-1, 0, 1)]
    starts = st.one_of(st.integers(0, 3), st.sampled_from(edges))
    steps = st.lists(st.one_of(st.integers(1, 40), st.sampled_from(edges[:12])), min_size=frames, max_size=frames)

    def rising(start: int, gaps: Sequence[int]) -> tuple[int, ...]:
        numbers = [max(0, start)]
        for gap in gaps[1:]:
            numbers.append(numbers[-1] + max(1, gap))
        return tuple(min(number, MAX_INDEX - frames + k) for k, number in enumerate(numbers))

    return st.builds(rising, starts, steps)


@st.composite
def video_specs(draw: DrawFn, *, short: bool = False) -> VideoSpec:
    """Few frames with their numbers; unless `short`, also many, whole videos, and such as are too short to sample."""
    families = ("given",) * 8 if short else ("given",) * 8 + ("whole", "many", "too short")
    family = draw(st.sampled_from(families))
    bounds = {
        "given": (1, 4 if short else 8),
        "many": (9, SAMPLED_FRAMES),
        "whole": (SAMPLED_FRAMES, MAX_FRAMES),
        "too short": (1, SAMPLED_FRAMES - 1),
    }
    least, most = bounds[family]
    edges = st.sampled_from((least, least + 1, most - 1, most)).map(lambda frames: max(least, min(frames, most)))
    frames = draw(st.one_of(st.integers(least, most), edges))
    fps = draw(rates())
    side = log_uniform(MAX_SIDE_PX)
    return VideoSpec(
        frames,
        draw(side),
        draw(side),
        fps,
        draw(_numbers(frames, fps)) if family in ("given", "many") else None,
        draw(st.sampled_from(("gradient", *(p for p in get_args(Pattern) if p != "gradient")))),
        draw(st.integers(0, 255)),
    )


def two_rates() -> SearchStrategy[list[VideoSpec]]:
    """Two short videos whose rates differ: each has timestamps of its own."""
    return st.lists(video_specs(short=True), min_size=2, max_size=2, unique_by=lambda video: video.fps)
