"""What remains when only one thing about a case matters: strategies shrink to the smallest such case."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase

from harness.schema import (
    PROBES,
    AudioSpec,
    Case,
    Part,
    ProbeKind,
    VideoSpec,
)
from harness.strategies import (
    audio_specs,
    cases,
    sizes,
    video_specs,
)
from harness.strategies.images import log_uniform_sides
from tests.drawing import MODELS, found


def _shrunk(wanted: Callable[[Case], bool]) -> Case:
    return found(cases(models=MODELS), wanted, Phase.generate, Phase.shrink)


def test_the_simplest_case_is_one_word() -> None:
    """With nothing required, one word remains: no image, budget 70, the first model, no turn."""
    assert _shrunk(lambda _: True) == Case(MODELS[0], (Part(text="The"),), 70)


def test_a_case_with_an_image_shrinks_to_one_pixel() -> None:
    """If only an image matters, one bare image of 1 x 1 px remains, and no text."""
    case = _shrunk(lambda case: bool(case.images))
    (part,) = case.parts
    assert (case.max_soft_tokens, case.form, part.text, part.expanded) == (70, "raw", "", False)
    assert part.image is not None
    assert (part.image.width_px, part.image.height_px, part.image.mode) == (1, 1, "RGB")


def _strip(size: tuple[int, int]) -> bool:
    return size[0] > 280 * size[1]


def test_a_strip_shrinks_to_the_smallest_one() -> None:
    """If only the ratio matters, the smallest strip of all remains, to the pixel."""
    assert found(sizes(), _strip, Phase.generate, Phase.shrink) == (281, 1)


@pytest.mark.parametrize("least_px", [2, 47, 701, 9_999])
def test_a_side_shrinks_to_the_smallest_one(least_px: int) -> None:
    """If only a side's length matters, the smallest that is wanted remains; in a family of its own, the next there."""
    shrunk = found(log_uniform_sides(), lambda side_px: side_px >= least_px, Phase.generate, Phase.shrink)
    assert shrunk == least_px
    width_px, height_px = found(sizes(), lambda size: size[0] >= least_px, Phase.generate, Phase.shrink)
    assert least_px <= width_px < 2 * least_px
    assert height_px <= 9


def test_other_media_shrink_to_small_ones() -> None:
    """A recording shrinks to the shortest that is wanted, a video to one frame of one pixel."""
    audio = found(audio_specs(), lambda audio: audio.samples > 640, Phase.generate, Phase.shrink)
    assert audio == AudioSpec(641)
    video = found(video_specs(), lambda video: video.fps is None, Phase.generate, Phase.shrink)
    assert video == VideoSpec(1, 1, 1, None, (0,))


@pytest.mark.parametrize("kind", PROBES)
def test_a_case_with_a_probe_shrinks_to_a_small_prompt(kind: ProbeKind) -> None:
    """If only the kind of probe matters, at most the media that it needs remain, and `at` is 0."""
    case = _shrunk(lambda case: case.probe is not None and case.probe.kind == kind)
    assert case.probe is not None
    assert case.probe.at == 0
    needed = {"expanded": 1, "forward": 1, "processor_cache": 1, "tensor": 2}
    assert len([part for part in case.parts if part.medium]) <= needed.get(kind, 0)
    assert sum(len(part.text) for part in case.parts) <= len("The")


def test_images_that_do_not_matter_are_shrunk_away() -> None:
    """If one image matters, the others go; now and then the shrinker stops at one more."""
    case = _shrunk(lambda case: any(_strip((image.width_px, image.height_px)) for image in case.images))
    assert len(case.images) <= 2
