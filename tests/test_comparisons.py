"""What a run says of a pair on a model: by rows written by hand, and by native beside itself and a faulty copy."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faulty import VARIABLE
from harness import calibration, replay, session
from harness.calibration import kl_limit
from harness.campaign import Campaign
from harness.comparators import Limits
from harness.comparisons import is_explained, of_run
from harness.environments import SUBJECTS, Subject
from harness.fleet import Options, fleet
from harness.replay import Target
from harness.schema import Case, Finding, Part
from harness.session import Plan, carry_out, locate
from harness.store import RunStore

ROOT = Path(__file__).parent.parent
PAIR = {"left": "hf", "right": "vllm"}
PAIRED = "hf", "vllm"


def noise(case: str, kl: float, kind: str = "repeat", subject: str = "hf") -> dict[str, Any]:
    keys = {"case_id": case, "model": "m", "subject": subject, "dtype": "float32", "device": "cpu", "kind": kind}
    return keys | {"n": 9, "kl_mean": kl, "kl_max": kl, "kl_histogram": "[]", "feature_max": None}


def calibrated(count: int, kl: float = 1e-10) -> list[dict[str, Any]]:
    """Noise of so many cases: either subject's own, and native's rounding, which is the largest."""
    whole = []
    for k in range(count):
        own = [noise(f"n{k}", 0.0, subject=name) for name in ("hf", "vllm")]
        whole += [*own, noise(f"n{k}", kl * (k + 1) / count, "anchor", "native")]
    return whole


def run_of(
    store: Path, kls: Sequence[float], noises: Sequence[dict[str, Any]], known: str = ""
) -> list[dict[str, Any]]:
    """The comparisons of a run in which each case has one KL."""
    cases = [Case("m", (Part(text=f"{k}"),)) for k in range(len(kls))]
    run = RunStore.create(store, {}, cases)
    for case, kl in zip(cases, kls, strict=True):
        keys = {"case_id": case.id, "model": "m"}
        stage = {"property": "P6", "stage": "hidden", "measured": kl, "limit": 1e-5, "unit": "nats"}
        differs = not kl <= 1e-5
        verdict = keys | PAIR | stage | {"verdict": "differ" if differs else "agree", "reason": ""}
        finding = (
            keys | stage | {"id": "f", "subjects": json.dumps(["hf", "vllm"]), "suspect": "vllm", "deviation": known}
        )
        run.append(
            {
                "cases": [keys | {"dtype": ""}],
                "verdicts": [verdict],
                "divergences": [keys | PAIR | {"role": "all", "n": 9, "mean": kl}],
                "findings": [finding] if differs else [],
            }
        )
    run.append({"noise": noises})
    return of_run(run, "float32", "cpu")


def test_cases_within_the_floor_agree(tmp_path: Path) -> None:
    """The floor is four times the largest noise; effect, interval and smallest visible effect are in order."""
    (row,) = run_of(tmp_path, [3e-10] * 20, calibrated(20))
    assert row["verdict"] == "agree"
    assert row["floor"] == pytest.approx(4e-10)
    assert row["effect"] == pytest.approx(3e-10)
    assert row["ci_low"] <= row["effect"] * (1 + 1e-9)
    assert row["effect"] <= row["ci_high"] * (1 + 1e-9)
    assert 0 < row["smallest_visible"] <= row["floor"]
    assert row["reason"] == "0 of 20 cases above the floor"


def test_cases_above_the_floor_differ_below_any_limit_of_a_case(tmp_path: Path) -> None:
    """Negative control: 1e-8 nats is a thousandth of the limit of a case, and no noise."""
    (row,) = run_of(tmp_path, [1e-8] * 20, calibrated(20))
    assert row["verdict"] == "differ"
    assert row["q_value"] < 1e-6
    assert "20 of 20 cases above the floor" in row["reason"]


def test_a_case_beyond_its_limit_is_never_lost_among_others(tmp_path: Path) -> None:
    """One broken case of twenty says nothing to the test, and differs all the same; what it is known as is said."""
    (row,) = run_of(tmp_path / "a", [0.0] * 19 + [3.0], calibrated(20), known="some-cause")
    assert row["verdict"] == "differ"
    assert row["p_value"] > 0.1
    assert row["reason"].endswith("1 beyond the limit of a case; known: some-cause")
    assert is_explained(row["reason"])
    (row,) = run_of(tmp_path / "b", [0.0] * 19 + [math.nan], calibrated(20))
    assert row["verdict"] == "differ"
    assert "known" not in row["reason"]
    assert not is_explained(row["reason"])
    (row,) = run_of(tmp_path / "c", [1e-8] * 19 + [3.0], calibrated(20), known="some-cause")
    assert row["reason"].endswith("known: some-cause, but for 19")
    assert not is_explained(row["reason"])


def test_too_little_is_not_comparable(tmp_path: Path) -> None:
    """Few cases, or noise of one side only, are no agreement; without calibration nothing is said at all."""
    (row,) = run_of(tmp_path / "a", [0.0] * 2, calibrated(3))
    assert (row["verdict"], row["reason"]) == ("not comparable", "2 cases and 3 of calibration are too few to tell")
    half = [entry for entry in calibrated(20) if entry["subject"] != "vllm"]
    (row,) = run_of(tmp_path / "b", [0.0] * 20, half)
    assert (row["verdict"], row["reason"]) == ("not comparable", "no noise was measured of this pair")
    assert run_of(tmp_path / "c", [0.0] * 20, []) == []


def test_a_finding_is_no_noise(tmp_path: Path) -> None:
    """A subject that differs from itself in chunks does not raise the floor; it is counted."""
    broken = [noise(f"n{k}", 5.0, "chunked") for k in range(20)]
    (row,) = run_of(tmp_path, [1e-8] * 20, [*calibrated(20), *broken])
    assert row["floor"] == pytest.approx(4e-10)
    assert row["verdict"] == "differ"
    assert row["reason"].endswith("20 rows of calibration are findings, no noise")


def test_only_reduced_types_get_a_limit_of_their_own() -> None:
    """It is above the provisional one only if the floor is, rests on the anchor, and in float32 nothing changes."""
    rows = [noise("a", 0.02, "anchor", "native"), noise("a", 0.0), noise("b", 5.0, "chunked")]
    assert kl_limit(rows, "bfloat16") == pytest.approx(32 * 0.02)
    assert kl_limit([noise("a", 0.4, "anchor", "native")], "bfloat16") == Limits.of("bfloat16").kl_nats
    assert kl_limit([noise("a", 1.5, "anchor", "native")], "bfloat16") == 4 * 1.5
    assert kl_limit(rows[1:], "bfloat16") is None
    assert kl_limit([noise("a", 1e-10, "anchor", "native")], "float32") is None


def test_calibration_cases_come_first_and_are_not_the_runs_own() -> None:
    """Each model's stand in front of its first case, by two probes of the same prompt, from another seed."""
    own = [Case("tiny-31b", (Part(text="x"),)), Case("tiny-e2b", (Part(text="x"),))]
    drawn = {case.model: calibration.drawn(case.model, 2, 3, {case.id}) for case in own}
    order = list(calibration.before(own, drawn))
    assert [case.model for case in order] == ["tiny-31b"] * 5 + ["tiny-e2b"] * 5
    assert [case.probe.kind if case.probe else "" for case in order[:5]] == ["batch", "chunked"] * 2 + [""]
    assert replace(order[0], probe=None) == replace(order[1], probe=None)
    assert calibration.drawn("tiny-31b", 2, 3, {order[0].id})[0] != order[0]


def _twin(name: str, fault: str = "") -> Subject:
    engine = "benchmarks.faulty:FaultyNative" if fault else "native"
    env = {VARIABLE: fault, "PYTHONPATH": str(ROOT)} if fault else {}
    return Subject(name, engine, sys.executable, env)


@pytest.mark.engines
def test_native_agrees_with_itself_and_not_with_a_faulty_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run: noise is stored, the twin agrees, the copy without layer scalars differs, in every comparison."""
    for twin in (_twin("twin"), _twin("faulty", "layer-scalar-left-out")):
        monkeypatch.setitem(SUBJECTS, twin.name, twin)
    subjects = ("native", "twin", "faulty")
    plan = Plan(("tiny-31b",), subjects, cases=8, seed=5, properties=("P1", "P6"), calibrate=8)
    run = session.start(plan, tmp_path, lambda _: None)
    carry_out(run, plan, lambda _: None)
    stored, rows = run.frame("noise"), run.frame("comparisons")
    assert set(stored["kind"]) == {"repeat", "batch", "chunked", "anchor"}
    assert set(stored["subject"]) == set(subjects)
    for column, left_out in (("kl_histogram", 0), ("logprob_histogram", 1)):  # No position predicts the first token.
        counts = [sum(json.loads(text)) for text in stored[column]]
        assert counts == [n - left_out for n in stored["n"]]
    told = {(row["left"], row["right"]): row["verdict"] for row in rows.to_dict("records")}
    expected = {("native", "twin"): "agree", ("native", "faulty"): "differ", ("twin", "faulty"): "differ"}
    assert told == expected
    assert set(run.frame("observations")["subject"]) == set(subjects)
    carry_out(run, plan, lambda _: None)
    assert len(run.frame("comparisons")) == 3, "a finished run that is resumed says nothing twice"


def test_a_measured_limit_judges_a_case(tmp_path: Path) -> None:
    """A known limit takes the place of the provisional one, for its model and type alone; equal states are 0 apart."""
    case = Case("tiny-31b", (Part(text="some words to read"),), dtype="bfloat16")
    path = {"PYTHONPATH": str(ROOT)}
    fakes = [Subject(name, "tests.fake_engine:FakeEngine", sys.executable, path) for name in ("fake-a", "fake-b")]
    with fleet(fakes, Options(properties=("P6",)), tmp_path) as workers:
        campaign = Campaign(workers, locate)
        campaign.kl_limits["tiny-31b", "float32"] = -1.0
        (plain,) = campaign.run([case])
        campaign.kl_limits["tiny-31b", "bfloat16"] = -1.0
        (sharp,) = campaign.run([case])
    judged = [next(v for v in r.verdicts if v.stage == "hidden") for r in (plain, sharp)]
    assert [(verdict.verdict, verdict.limit) for verdict in judged] == [("agree", 2.0), ("differ", -1.0)]


def test_a_replayed_finding_is_judged_by_its_own_limit() -> None:
    """What calibration was sharp enough to see is seen again; no limit is blunter than the provisional one."""
    case = Case("tiny-31b", (Part(text="x"),), dtype="bfloat16")
    finding = Finding("f", "P6/hidden/vllm", "P6", "hidden", PAIRED, "vllm", "tiny-31b", case.id, 0.5, 0.2, "nats", "")
    assert replay.measured_limit(Target("x", case, finding)) == {("tiny-31b", "bfloat16"): 0.2}
    assert replay.measured_limit(Target("x", case, replace(finding, limit=5.0))) == {("tiny-31b", "bfloat16"): 2.0}
    assert replay.measured_limit(Target("x", case, replace(finding, unit="soft tokens"))) == {}
