"""Images aimed at the boundaries of the soft-token arithmetic.

Uniform sizes never hit the published failures, so sizes come from families, each named after what it aims at.
"""

from __future__ import annotations

import math
from functools import cache
from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.media import MAX_PIXELS
from harness.schema import ColourMode, ImageSpec, Pattern
from harness.spec import SIDE_PX, SOFT_TOKEN_BUDGETS

MAX_SIDE_PX = 20_000

Size = tuple[int, int]

# Mostly RGB and upright: what an engine does with other modes or a tag would otherwise stand in the way of all else.
_MODES: tuple[ColourMode, ...] = ("RGB",) * 40 + ("L", "RGBA", "LA", "P", "CMYK", "I;16", "1")
_ORIENTATIONS = (1,) * 200 + tuple(range(2, 9))

_STEPS = 2**20
"""Of a logarithmic scale: fine enough that every side up to 20,000 px is some step's."""


def _fit(width_px: int, height_px: int) -> Size:
    """The size with its longer side shortened until sides and area are in bounds."""
    short_px = max(1, min(width_px, height_px, math.isqrt(MAX_PIXELS)))
    long_px = max(short_px, min(width_px + height_px - short_px, MAX_SIDE_PX, MAX_PIXELS // short_px))
    return (long_px, short_px) if width_px >= height_px else (short_px, long_px)


def log_uniform(largest: int) -> SearchStrategy[int]:
    """Whole numbers from 1 to `largest`, every octave as likely as another; shrinks to 1, one by one."""
    return st.integers(0, _STEPS).map(lambda step: math.floor((largest + 1 - 1e-9) ** (step / _STEPS)))


def log_uniform_sides() -> SearchStrategy[int]:
    """Side lengths of 1 to 20,000 px."""
    return log_uniform(MAX_SIDE_PX)


def _ordinary() -> SearchStrategy[Size]:
    return st.builds(_fit, log_uniform_sides(), log_uniform_sides())


def _ratio_near_budget() -> SearchStrategy[Size]:
    """Ratio just under, equal to and just over a budget, where the short side vanishes."""

    def build(short_px: int, budget: int, off_px: int) -> Size:
        return _fit(short_px * budget + off_px, short_px)

    return st.builds(build, st.integers(1, 60), st.sampled_from(SOFT_TOKEN_BUDGETS), st.integers(-2, 2))


def _exact_grid() -> SearchStrategy[Size]:
    """Ratios whose scaled sides are whole units, and one pixel off: where floor() goes either way."""

    def build(columns: int, rows: int, scale_px: int, off_px: int) -> Size:
        return _fit(columns * scale_px + off_px, rows * scale_px)

    units = st.integers(1, 40)
    scales = st.one_of(st.just(SIDE_PX), st.integers(1, 64))
    return st.builds(build, units, units, scales, st.sampled_from((0, 0, 1, -1)))


def _degenerate() -> SearchStrategy[Size]:
    """A side of a few pixels beside a long, often round one."""
    round_px = st.integers(1, MAX_SIDE_PX // 100).map(lambda hundreds: hundreds * 100)
    return st.builds(_fit, st.one_of(round_px, log_uniform_sides()), st.integers(1, 8))


def sizes() -> SearchStrategy[Size]:
    """(width_px, height_px) from all families, in both orientations; sides 1 to 20,000 px, area bounded."""
    families = st.one_of(_ordinary(), _exact_grid(), _ratio_near_budget(), _degenerate())
    return st.builds(lambda size, turned: size[::-1] if turned else size, families, st.booleans())


@cache
def image_specs() -> SearchStrategy[ImageSpec]:
    """Whole image specs: a size, a colour mode, a pattern, a seed, an orientation tag."""
    return st.builds(
        lambda size, *rest: ImageSpec(*size, *rest),
        sizes(),
        st.sampled_from(_MODES),
        st.sampled_from(get_args(Pattern)),
        st.integers(0, 255),
        st.sampled_from(_ORIENTATIONS),
    )


def plain_images() -> SearchStrategy[ImageSpec]:
    """Upright RGB noise of a few soft tokens a side: every weight of the tower meets something that is not zero."""
    side_px = st.integers(48, 200)
    return st.builds(ImageSpec, side_px, side_px, seed=st.integers(0, 255))
