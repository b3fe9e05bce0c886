"""Sizes, recordings and videos reach every boundary that they aim at, and stay in their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, given, settings, target

from harness.media import MAX_PIXELS, MAX_SAMPLES
from harness.schema import (
    AudioSpec,
    ImageSpec,
    VideoSpec,
)
from harness.spec import SOFT_TOKEN_BUDGETS, soft_tokens
from harness.strategies import (
    audio_specs,
    image_specs,
    sizes,
    video_specs,
)
from harness.strategies.audio import CAP_SAMPLES, LONGEST_SAMPLES, UNITS_SAMPLES
from harness.strategies.images import MAX_SIDE_PX
from tests.drawing import found, many


@pytest.mark.parametrize("size", [(900, 3), (3, 900)])
def test_the_published_failure_can_be_drawn(size: tuple[int, int]) -> None:
    """Exactly 900 x 3 px and 3 x 900 px are among the sizes: a search that is told how near it is arrives there."""

    def there(drawn: tuple[int, int]) -> bool:
        target(-sum(abs(math.log(a / b)) for a, b in zip(drawn, size, strict=True)))
        return drawn == size

    assert found(sizes(), there, Phase.generate, Phase.target) == size


def _ratio_just_over(size: tuple[int, int]) -> bool:
    longer, shorter = max(size), min(size)
    return any(budget * shorter < longer <= budget * shorter + 2 for budget in SOFT_TOKEN_BUDGETS)


def _ratio_just_under(size: tuple[int, int]) -> bool:
    longer, shorter = max(size), min(size)
    return any(budget * shorter - 2 <= longer < budget * shorter for budget in SOFT_TOKEN_BUDGETS)


AIMS: dict[str, Callable[[tuple[int, int]], bool]] = {
    "the rules part": lambda size: any(soft_tokens(*size, b).rounding_sensitive for b in SOFT_TOKEN_BUDGETS),
    "ratio just over a budget": _ratio_just_over,
    "ratio just under a budget": _ratio_just_under,
    "ratio equal to a budget": lambda size: any(max(size) == b * min(size) for b in SOFT_TOKEN_BUDGETS),
    "upright, equal to a budget": lambda size: size[0] > 1 and any(size[1] == b * size[0] for b in SOFT_TOKEN_BUDGETS),
    "a side of 1 px": lambda size: min(size) == 1 < max(size),
    "1 x 1 px": lambda size: size == (1, 1),
    "a side of 20,000 px": lambda size: max(size) == MAX_SIDE_PX,
    "long strip": lambda size: size[0] > 1000 * size[1],
    "tall strip": lambda size: size[1] > 1000 * size[0],
    "nearly the largest area": lambda size: math.prod(size) > 0.9 * MAX_PIXELS,
    "whole units of 48 px": lambda size: size[0] % 48 == size[1] % 48 == 0 and size[0] != size[1],
}


@pytest.fixture(name="many_sizes", scope="module")
def _many_sizes() -> list[tuple[int, int]]:
    return many(sizes(), 5_000)


@pytest.mark.parametrize("aim", AIMS)
def test_each_aim_is_reached(aim: str, many_sizes: list[tuple[int, int]]) -> None:
    """Every boundary that a family is named after is met within 5,000 sizes."""
    assert any(map(AIMS[aim], many_sizes))


@settings(max_examples=500)
@given(sizes())
def test_sizes_stay_in_their_bounds(size: tuple[int, int]) -> None:
    """Sides are 1 to 20,000 px and the area is bounded, whatever the family."""
    assert min(size) >= 1
    assert max(size) <= MAX_SIDE_PX
    assert math.prod(size) <= MAX_PIXELS


AUDIO_AIMS: dict[str, Callable[[AudioSpec], bool]] = {
    **{
        f"{unit} samples x {count} {off:+d}": partial(lambda wanted, audio: audio.samples == wanted, count * unit + off)
        for unit in UNITS_SAMPLES
        for count in (1, 2)
        for off in (-1, 0, 1)
    },
    **{
        f"cap {off:+d}": partial(lambda wanted, audio: audio.samples == wanted, CAP_SAMPLES + off) for off in (-1, 0, 1)
    },
    "nothing": lambda audio: audio.samples == 0,
    "one sample": lambda audio: audio.samples == 1,
    "320 samples": lambda audio: audio.samples == 320,
    "another rate": lambda audio: audio.rate_hz == 44_100,
    "silence": lambda audio: audio.pattern == "silence" and audio.samples > 640,
}


@pytest.fixture(name="many_recordings", scope="module")
def _many_recordings() -> list[AudioSpec]:
    return many(audio_specs(), 4_000)


@pytest.mark.parametrize("aim", AUDIO_AIMS)
def test_each_kind_of_recording_is_reached(aim: str, many_recordings: list[AudioSpec]) -> None:
    """Every boundary of the framing is met exactly, one below and one above."""
    assert any(map(AUDIO_AIMS[aim], many_recordings))


def _stamps(video: VideoSpec) -> list[float]:
    return [number / (video.fps or 24.0) for number in video.indices or ()]


VIDEO_AIMS: dict[str, Callable[[VideoSpec], bool]] = {
    "one frame": lambda video: video.frames == 1 and video.indices is not None,
    "a whole video of 32": lambda video: video.frames == 32 and video.indices is None,
    "a whole video of 64": lambda video: video.frames == 64 and video.indices is None,
    "one frame too few to sample": lambda video: video.frames == 31 and video.indices is None,
    "32 frames with numbers": lambda video: video.frames == 32 and video.indices is not None,
    "no rate": lambda video: video.fps is None,
    "a fraction": lambda video: video.fps is not None and video.fps % 1 > 0,
    "just before a minute": lambda video: any(59 <= stamp < 60 for stamp in _stamps(video)),
    "on the minute": lambda video: any(stamp == 60 for stamp in _stamps(video)),
    "past an hour": lambda video: any(stamp >= 3_600 for stamp in _stamps(video)),
    "numbers with gaps": lambda video: video.indices is not None and video.indices[-1] > video.frames,
    "upright": lambda video: video.height_px > 4 * video.width_px,
}


@pytest.fixture(name="many_videos", scope="module")
def _many_videos() -> list[VideoSpec]:
    return many(video_specs(), 3_000)


@pytest.mark.parametrize("aim", VIDEO_AIMS)
def test_each_kind_of_video_is_reached(aim: str, many_videos: list[VideoSpec]) -> None:
    """Every count of frames that matters, rates, and timestamps at the edges of a minute are met."""
    assert any(map(VIDEO_AIMS[aim], many_videos))


@settings(max_examples=300)
@given(audio_specs(), video_specs())
def test_recordings_and_videos_stay_in_their_bounds(audio: AudioSpec, video: VideoSpec) -> None:
    """Samples, frames and pixels are bounded; frame numbers rise, one a frame."""
    assert 0 <= audio.samples <= min(LONGEST_SAMPLES, MAX_SAMPLES)
    assert 1 <= video.frames <= 64
    assert video.frames * video.width_px * video.height_px <= MAX_PIXELS
    assert video.fps is None or video.fps > 0
    if video.indices is not None:
        assert len(video.indices) == video.frames
        assert list(video.indices) == sorted(set(video.indices))
        assert video.indices[0] >= 0


@settings(max_examples=50)
@given(image_specs())
def test_image_specs_keep_the_bounds_of_sizes(spec: ImageSpec) -> None:
    """A whole spec keeps the bounds of its size and a seed of one byte."""
    assert spec.width_px * spec.height_px <= MAX_PIXELS
    assert 0 <= spec.seed <= 255
