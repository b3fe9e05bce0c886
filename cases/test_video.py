"""P10: which frames of a video are shown, when each was taken, and what they become."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Part, Property, VideoSpec
from harness.strategies import applies, cases


@given(data=st.data())
def test_videos_agree_frame_by_frame(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Frame numbers, timestamps, soft tokens and features of every video are the same in all engines."""
    if not applies(model, "P10"):
        pytest.skip(f"{model} takes no video")
    require(data.draw(cases(models=[model], properties=["P10"]), label="case"), "P10")


@pytest.mark.parametrize("fps", [24.0, 29.97, None])
def test_a_timestamp_is_that_of_its_own_video(
    require: Callable[[Case, Property], None], model: str, fps: float | None
) -> None:
    """The published failure: the second of two videos got the first one's timestamps. Frames stand beside a minute."""
    if not applies(model, "P10"):
        pytest.skip(f"{model} takes no video")
    first = VideoSpec(2, 48, 96, 1.0, (59, 60))
    second = VideoSpec(3, 96, 48, fps, (0, 1_438, 1_439))
    case = Case(model, (Part(video=first), Part(text="The"), Part(video=second)), 70)
    require(case, "P10")
    require(case, "P1")
