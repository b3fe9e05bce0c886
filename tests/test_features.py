"""P7: pixels, positions and feature rows, stage by stage; a wrong one shows at its stage and at no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.comparators import Context, Limits, Side, features
from harness.comparators.base import Array
from harness.comparators.features import relative_row_errors
from harness.comparators.kl import OutputHead
from harness.schema import Case, ImageSpec, Observation, Part, Verdict
from harness.spec import MediaTokens

CASE = Case("tiny", (Part(image=ImageSpec(48, 48)), Part(image=ImageSpec(96, 48))))
CONTEXT = Context(MediaTokens(10, 11, 12), OutputHead(torch.eye(2), cap=None), Limits.of("float32"))
STAGES = ("pixels", "positions", "mm_features.first", "mm_features")


def _arrays() -> dict[str, Array]:
    """Two images of four patches and three feature rows, each value in them another."""
    arrays: dict[str, Array] = {}
    for image in range(2):
        arrays[f"pixels.{image}"] = np.arange(48, dtype=np.float32).reshape(4, 12) / 255
        arrays[f"positions.{image}"] = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
        arrays[f"mm_features.{image}"] = np.arange(1, 19, dtype=np.float32).reshape(3, 6)
    return arrays


def _compared(left: dict[str, Array], right: dict[str, Array]) -> dict[str, Verdict]:
    sides = [Side(Observation("case", name, "ok"), arrays) for name, arrays in (("a", left), ("b", right))]
    return {verdict.stage: verdict for verdict in features.compare(CASE, sides[0], sides[1], CONTEXT)}


def _differing(left: dict[str, Array], right: dict[str, Array]) -> list[str]:
    verdicts = _compared(left, right)
    assert tuple(verdicts) == STAGES
    return [stage for stage, verdict in verdicts.items() if verdict.verdict == "differ"]


def test_equal_arrays_agree_at_every_stage() -> None:
    """Equal arrays agree at all four stages, and nothing is measured."""
    verdicts = _compared(_arrays(), _arrays())
    assert [(stage, verdict.verdict, verdict.measured) for stage, verdict in verdicts.items()] == [
        (stage, "agree", 0.0) for stage in STAGES
    ]


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("off", [1 / 255, -1 / 255])
def test_a_pixel_off_by_one_level_differs(image: int, off: float) -> None:
    """One value of one patch, one level up or down, in either image, differs at `pixels` by 1/255."""
    wrong = _arrays()
    wrong[f"pixels.{image}"][2, 5] += off
    assert _differing(_arrays(), wrong) == ["pixels"]
    assert _compared(_arrays(), wrong)["pixels"].measured == pytest.approx(1 / 255, abs=1e-7)


def test_a_swapped_position_differs() -> None:
    """(x, y) taken for (y, x) differs at `positions` by a patch."""
    wrong = _arrays()
    wrong["positions.1"] = wrong["positions.1"][:, ::-1]
    assert _differing(_arrays(), wrong) == ["positions"]
    assert _compared(_arrays(), wrong)["positions"].measured == 1


@pytest.mark.parametrize("image", [0, 1])
def test_row_0_has_a_verdict_of_its_own(image: int) -> None:
    """A wrong row 0 shows at both stages of rows; any other wrong row leaves `mm_features.first` agreeing."""
    first, last = _arrays(), _arrays()
    first[f"mm_features.{image}"][0] *= 1.01
    last[f"mm_features.{image}"][2] *= 1.01
    assert _differing(_arrays(), first) == ["mm_features.first", "mm_features"]
    assert _differing(_arrays(), last) == ["mm_features"]


def test_the_relative_error_of_a_row_by_hand() -> None:
    """(3, 4) against (3, 4.5) is off by 0.5 of 5, a tenth; twice as large on both sides it still is."""
    left, right = np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])
    assert relative_row_errors(left, right)[0] == pytest.approx(0.1)
    assert relative_row_errors(2 * left, 2 * right)[0] == pytest.approx(0.1)


def test_errors_up_to_the_limit_agree() -> None:
    """Noise below the limit agrees and is still measured, so that a trend can be seen."""
    noisy = _arrays()
    half = CONTEXT.limits.feature_relative / 2
    noisy["mm_features.0"] *= 1 + np.float32(half)
    assert _differing(_arrays(), noisy) == []
    assert _compared(_arrays(), noisy)["mm_features"].measured == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("wrong_side", [0, 1])
@pytest.mark.parametrize("stage", ["pixels", "mm_features"])
def test_nan_never_agrees(stage: str, wrong_side: int, image: int) -> None:
    """A NaN on either side, in either image, differs: no maximum may lose it."""
    sides = [_arrays(), _arrays()]
    sides[wrong_side][f"{stage}.{image}"][1, 0] = np.nan
    assert _differing(sides[0], sides[1]) == [stage]


def test_nan_on_both_sides_never_agrees() -> None:
    """The same NaN on both sides is broken twice, not equal."""
    broken = _arrays()
    broken["pixels.1"][0, 0] = broken["mm_features.1"][0, 0] = np.nan
    assert _differing(broken, broken) == ["pixels", "mm_features.first", "mm_features"]


def test_another_shape_differs_with_both_shapes() -> None:
    """A row less differs with the reason, and the other stages are still compared."""
    wrong = _arrays()
    wrong["mm_features.1"] = wrong["mm_features.1"][:2]
    verdicts = _compared(_arrays(), wrong)
    assert verdicts["mm_features"].verdict == "differ"
    assert verdicts["mm_features"].reason == "mm_features.1: a (3, 6), b (2, 6)"
    assert verdicts["pixels"].verdict == verdicts["positions"].verdict == "agree"


@pytest.mark.parametrize("stage", ["pixels", "positions", "mm_features"])
def test_a_missing_array_differs_and_names_who_lacks_it(stage: str) -> None:
    """A stage that one side did not record differs: silence is no agreement."""
    wrong = _arrays()
    del wrong[f"{stage}.1"]
    verdict = _compared(_arrays(), wrong)[stage]
    assert (verdict.verdict, verdict.reason) == ("differ", f"b has no {stage}.1")


def test_rows_of_zeros_beside_rows_differ() -> None:
    """Rows that one side left empty differ, whichever side that is."""
    empty = _arrays()
    empty["mm_features.0"][:] = 0
    assert _differing(_arrays(), empty) == ["mm_features.first", "mm_features"]
    with np.errstate(divide="ignore"):
        assert _differing(empty, _arrays()) == ["mm_features.first", "mm_features"]


def test_equal_rows_of_zeros_agree() -> None:
    """A row that is zero on both sides is equal."""
    empty = _arrays()
    empty["mm_features.0"][1] = 0
    assert _differing(empty, empty) == []


def test_a_case_without_an_image_has_no_features() -> None:
    """Text alone gives no verdict of P7: there is no such stage."""
    sides = [Side(Observation("case", name, "ok"), {}) for name in "ab"]
    assert features.compare(Case("tiny", (Part(text="a"),)), sides[0], sides[1], CONTEXT) == []
