"""Who is wrong: by votes, by exact arithmetic, by the distance to float64; and nobody where nothing says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.calibration import ANCHOR
from harness.campaign import Result
from harness.comparators import Context, Limits, Side
from harness.comparators.kl import OutputHead
from harness.evidence import Distance, distances, weigh
from harness.schema import Case, Counts, Finding, ImageSpec, Observation, Part
from harness.spec import MediaTokens

CASE = Case("tiny-31b", (Part(image=ImageSpec(480, 480)),), 280)
LIMITS = Limits.of("float32")
FINDING = Finding("f", "s", "P6", "hidden", ("hf", "vllm"), "undecided", CASE.model, CASE.id, 1.0, 1e-5, "nats", "")
NEAR, FAR = Distance("vllm", 2e-10, 2.0), Distance("hf", 0.5, 5e9)
OWN = Distance("native", 1e-10, 1.0)


def side(name: str, off: float = 0.0, rows: int = 256) -> Side:
    """States of three positions, `off` by so much from those of the others; 480 x 480 px are 256 soft tokens."""
    hidden = np.eye(4, dtype=np.float32)[:3] * 3
    hidden[:, 3] += off
    arrays = {"prompt_ids": np.arange(3), "hidden": hidden}
    return Side(Observation(CASE.id, name, "ok", counts=(Counts(rows, rows, 280),)), arrays)


def result(*sides: Side, beside: tuple[Side, ...] = ()) -> Result:
    return Result(CASE, (), (), (FINDING,), {}, {}, sides, beside)


def test_hf_is_wrong_where_only_vllm_is_near_the_anchor() -> None:
    """Two subjects have no majority; the one that float64 does not confirm is wrong, and be it the reference."""
    found = weigh(result(side("hf"), side("vllm")), [FINDING], [FAR, NEAR, OWN], LIMITS)
    assert found.wrong == "hf"
    assert any("hf beyond what rounding does" in reason for reason in found.reasons)


def test_nobody_is_accused_without_evidence() -> None:
    """Negative controls: both near, both far, or no anchor at all."""
    sides = result(side("hf"), side("vllm"))
    for known in ([replace(NEAR, subject="hf"), NEAR, OWN], [FAR, replace(FAR, subject="vllm"), OWN], []):
        assert weigh(sides, [FINDING], known, LIMITS).wrong == "undecided"


def test_votes_come_before_distance_and_the_anchor_does_not_judge_its_own() -> None:
    """Where native is the odd one out, its own code in float64 confirms only itself, and says nothing."""
    odd = replace(FINDING, suspect="native", subjects=("hf", "vllm", "native"))
    known = [FAR, replace(FAR, subject="vllm"), OWN]
    found = weigh(result(side("hf"), side("vllm"), side("native")), [odd], known, LIMITS)
    assert found.wrong == "native"
    assert "distances say nothing here" in found.reasons[-1]


def test_arithmetic_decides_counts() -> None:
    """255 rows where both rules give 256 are wrong whoever has them; 256 are right."""
    found = weigh(result(side("hf", rows=255), side("vllm")), [FINDING], [], LIMITS)
    assert found.wrong == "hf"
    assert "exact arithmetic gives 256 soft tokens, hf predicts 255 and has 255 rows" in found.reasons
    assert weigh(result(side("hf"), side("vllm")), [FINDING], [], LIMITS).wrong == "undecided"


def test_distance_is_kl_from_the_anchor_in_units_of_natives_own() -> None:
    """The further state is further by so many times; without an anchor there is no distance."""
    context = Context(MediaTokens(10, 11, 12), OutputHead(torch.eye(4), None), LIMITS)
    beside = side("native", 0.01), side(ANCHOR)
    found = {entry.subject: entry for entry in distances(result(side("hf", 0.02), beside=beside), context)}
    assert set(found) == {"hf", "native"}
    assert found["native"].times == 1
    assert found["hf"].times == pytest.approx(4, rel=0.1), "KL is like a squared distance"
    assert distances(result(side("hf")), context) == []
