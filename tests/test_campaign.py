"""Campaigns over fake engines: nothing is lost, doubled or waited for in vain."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness import cli, session
from harness import fleet as fleet_module
from harness.campaign import Campaign, Result
from harness.checkpoint import Checkpoint, tensors
from harness.environments import SUBJECTS, Subject
from harness.errors import UserError
from harness.fleet import Fleet, Options
from harness.schema import SCHEMA_VERSION, Capsule, Case, Finding, ImageSpec, Part, Probe
from harness.session import Plan, carry_out, locate
from harness.store import RunStore, read_capsule, write_json
from reports.frames import document, load_run

ROOT = Path(__file__).parent.parent
ENGINE = "tests.fake_engine:FakeEngine"
NAMES = ("fake-a", "fake-b", "fake-c")


def fakes() -> list[Subject]:
    return [Subject(name, ENGINE, sys.executable, {"PYTHONPATH": str(ROOT)}) for name in NAMES]


def case(text: str) -> Case:
    return Case("tiny-31b", (Part(text=text),))


@pytest.fixture(name="workers")
def _workers(tmp_path: Path) -> Iterator[Fleet]:
    workers = Fleet(fakes(), Options(timeout_s=2.0, properties=("P1", "P2", "P6", "P7")), tmp_path)
    yield workers
    workers.close()


@pytest.fixture(name="fake_subjects")
def _fake_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    for subject in fakes():
        monkeypatch.setitem(SUBJECTS, subject.name, subject)


def run(workers: Fleet, texts: Sequence[str]) -> list[Result]:
    return list(Campaign(workers, locate).run([case(text) for text in texts]))


def test_each_case_has_one_outcome_of_each_subject(workers: Fleet) -> None:
    """Failures in the middle of a campaign leave the cases before and after them as they are."""
    results = run(workers, ["one", "crash", "two", "hang", "three", "raise", "reject", "four"])
    outcomes = [{o.subject: o.outcome for o in result.observations} for result in results]
    expected = ["ok", "crashed", "ok", "timeout", "ok", "crashed", "rejected", "ok"]
    assert outcomes == [dict.fromkeys(NAMES, outcome) for outcome in expected]


def test_a_case_may_be_under_way_more_than_once(workers: Fleet) -> None:
    """Two capsules of one case: what the first needs in memory is not removed under the second."""
    twice = Case("tiny-31b", (Part(text="one"), Part(image=ImageSpec(8, 8))))
    results = list(Campaign(workers, locate).run([twice] * 5))
    assert {o.outcome for result in results for o in result.observations} == {"ok"}
    assert not list(workers.scratch.iterdir())


def test_a_crash_is_a_finding_and_the_comparison_is_not_dropped(workers: Fleet) -> None:
    """Each crashed subject is its own suspect, and every property of its pairs is `not comparable`, with the reason."""
    (result,) = run(workers, ["crash"])
    assert {finding.suspect for finding in result.findings} == set(NAMES)
    kinds = Counter((v.property, v.verdict) for v in result.verdicts if v.stage != "outcome")
    assert kinds == {("P1", "not comparable"): 3, ("P2", "not comparable"): 3, ("P6", "not comparable"): 6}
    assert all("crashed" in v.reason for v in result.verdicts)


def test_hidden_states_that_are_no_numbers_never_agree(workers: Fleet) -> None:
    """NaN on both sides is a difference, not an agreement."""
    (result,) = run(workers, ["nan"])
    assert {v.verdict for v in result.verdicts if v.stage == "hidden"} == {"differ"}


def test_a_subject_that_cannot_load_is_absent_with_its_reason(workers: Fleet, tmp_path: Path) -> None:
    """A checkpoint that no engine loads gives `unavailable` observations, not an endless restart."""
    (tmp_path / "refuses").symlink_to(locate("tiny-31b").resolve())
    refused = Case(str(tmp_path / "refuses"), (Part(text="one"),))
    (result,) = Campaign(workers, Path).run([refused])
    assert {o.outcome for o in result.observations} == {"unavailable"}
    assert all("no such layer" in o.message for o in result.observations)


def test_a_subject_without_such_a_model_is_absent_once_and_nothing_broke(tmp_path: Path) -> None:
    """It is `unavailable` plainly and by probe, its P8 is `not comparable`, and no finding is made of it."""
    (tmp_path / "lacks").symlink_to(locate("tiny-31b").resolve())
    declined = Case(str(tmp_path / "lacks"), (Part(text="one"),), probe=Probe("repeat"))
    workers = Fleet(fakes()[:2], Options(timeout_s=2.0), tmp_path)
    try:
        (result,) = Campaign(workers, Path).run([declined])
    finally:
        workers.close()
    told = [(o.subject, o.outcome, o.probe) for o in result.observations]
    assert told == [(name, "unavailable", probe) for probe in (False, True) for name in NAMES[:2]]
    assert {v.verdict for v in result.verdicts} == {"not comparable"}
    assert result.findings == ()
    (loaded,) = (v for v in result.verdicts if v.stage == "load" and v.left == "fake-a")
    assert loaded.reason == "fake-a cannot load lacks: a fake has no such model"
    within = [(v.property, v.stage) for v in result.verdicts if v.left == v.right == "fake-a"]
    assert len(set(within)) == len(within)


def linked(tmp_path: Path, *names: str) -> list[Case]:
    """A case of each directory, by whose name a fake engine knows what to do."""
    for name in names:
        (tmp_path / name).symlink_to(locate("tiny-31b").resolve())
    return [Case(str(tmp_path / name), (Part(text="one"),)) for name in names]


@pytest.mark.parametrize("order", [("good", "refuses"), ("refuses", "good")])
def test_a_model_that_a_subject_could_not_load_is_remembered(
    workers: Fleet, tmp_path: Path, order: tuple[str, str]
) -> None:
    """Whichever came last: a subject is ok only if it loaded every model that it supports."""
    list(Campaign(workers, Path).run(linked(tmp_path, *order)))
    status, reason = workers.status("fake-a")
    assert (status, "no such layer" in reason) == ("unavailable", True)


@pytest.mark.parametrize(("names", "status"), [(("good", "lacks"), "ok"), (("lacks",), "unavailable")])
def test_a_model_that_a_subject_lacks_counts_only_if_it_ran_none(
    workers: Fleet, tmp_path: Path, names: tuple[str, ...], status: str
) -> None:
    """By its own word it has no such model, which is not comparable, and nothing broke."""
    list(Campaign(workers, Path).run(linked(tmp_path, *names)))
    assert workers.status("fake-a")[0] == status


def test_what_no_engine_can_load_is_the_users_input(tmp_path: Path) -> None:
    """A checkpoint of one's own that two engines refuse is refused with their words; it is no finding against both."""
    other = Subject("other", "tests.fake_engine:ByToolz", sys.executable, {"PYTHONPATH": str(ROOT)})
    workers = Fleet([fakes()[0], other], Options(timeout_s=2.0), tmp_path)
    try:
        with pytest.raises(UserError, match=r"no subject can load .*fake-a cannot load .*; other cannot load"):
            list(Campaign(workers, Path).run(linked(tmp_path, "refuses")))
    finally:
        workers.close()


def test_want_of_memory_at_load_is_no_finding(tmp_path: Path) -> None:
    """The machine failed: outcomes say so, P8 is not comparable, and the subject's status is `failed`."""
    workers = Fleet(fakes()[:2], Options(timeout_s=2.0), tmp_path)
    try:
        (result,) = Campaign(workers, Path).run(linked(tmp_path, "starves"))
    finally:
        workers.close()
    assert [o.outcome for o in result.observations] == ["failed"] * 2
    assert result.findings == ()
    assert workers.status("fake-a")[0] == "failed"


def test_media_that_cannot_be_drawn_cost_their_case(workers: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shared memory is full in the parent, the case is `failed` with the reason and the next one runs."""
    write, full = save_file, [True]

    def save(arrays: dict[str, Any], path: str) -> None:
        if full.pop() if full else False:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        write(arrays, path)

    monkeypatch.setattr(fleet_module, "save_file", save)
    drawn = [Case("tiny-31b", (Part(text="one"), Part(image=ImageSpec(8, side)))) for side in (8, 9)]
    lost, fine = Campaign(workers, locate).run(drawn)
    assert {o.outcome for o in lost.observations} == {"failed"}
    assert all("out of disk or of shared memory" in o.message for o in lost.observations)
    assert lost.findings == ()
    assert {o.outcome for o in fine.observations} == {"ok"}


@pytest.mark.parametrize("broken", ["counts.check", "logprobs.check", "kl.diverge", "prompts.compare"])
def test_a_comparator_that_raises_is_a_verdict(workers: Fleet, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Ours failed: not comparable with the error, no finding, the campaign goes on and other verdicts are there."""

    def raises(*_: object) -> None:
        raise KeyError("perturbed")

    monkeypatch.setattr(f"harness.comparators.{broken}", raises)
    first, second = run(workers, ["one", "two"])
    for result in (first, second):
        ours = [v for v in result.verdicts if v.reason.startswith("our comparator failed: KeyError")]
        assert {v.verdict for v in ours} == {"not comparable"}
        assert any(v.verdict == "agree" for v in result.verdicts)
        assert result.rows["cases"]


def test_what_breaks_while_judging_leaves_the_case_with_its_rows(
    workers: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspects, deviations, rows: a case that they break on is kept, so that --resume does not meet it again."""

    def raises(*_: object) -> None:
        raise ValueError("no suspect")

    monkeypatch.setattr("harness.campaign.findings", raises)
    (result,) = run(workers, ["one"])
    assert len(result.rows["cases"]) == 1
    assert len(result.rows["observations"]) == 3
    assert {v.reason.partition(" (")[0] for v in result.verdicts} == {"our comparator failed: ValueError: no suspect"}


def test_weights_that_memory_has_no_room_for_are_refused_with_numbers(workers: Fleet) -> None:
    """Before an engine loads them, and no sooner than they do not fit: three workers, four bytes a number."""
    checkpoint = Checkpoint.open(locate("tiny-31b"))
    stored = sum(tensor.numel() for _, tensor in tensors(checkpoint.path))
    assert checkpoint.parameters == stored > 100_000
    workers.room_bytes = 12 * stored
    assert run(workers, ["one"])[0].observations[0].outcome == "ok"
    workers.room_bytes -= 1
    with pytest.raises(UserError, match=rf"tiny-31b has {stored:,} parameters: .* in 3 workers .*fewer --subjects"):
        run(workers, ["two"])


def test_ten_kills_leave_every_case_with_one_outcome(workers: Fleet) -> None:
    """Workers killed at random moments cost the cases that they held, which say `failed`, and nothing else."""
    cases = [case(f"case {number}") for number in range(60)]
    killed, results = 0, []
    chance = random.Random(0)
    for result in Campaign(workers, locate).run(cases):
        results.append(result)
        worker = chance.choice(list(workers.workers.values()))
        if killed < 10 and len(results) % 4 == 0 and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
            killed += 1
    assert [result.case.id for result in results] == [entry.id for entry in cases]
    outcomes = Counter(o.outcome for result in results for o in result.observations)
    assert sum(outcomes.values()) == 3 * len(cases)
    assert set(outcomes) == {"ok", "failed"}
    assert 1 <= outcomes["failed"] <= killed == 10


def test_what_a_killed_campaign_left_in_memory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch space whose owner is gone is freed by the next campaign; that of a living one stays."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, living = tmp_path / f"harness-{gone.pid}-a", tmp_path / f"harness-{os.getpid()}-b"
    left.mkdir()
    living.mkdir()
    Fleet([], Options(), tmp_path).close()
    assert (left.exists(), living.exists()) == (False, True)


def plan() -> Plan:
    return Plan(models=("tiny-31b",), subjects=NAMES, cases=24, timeout_s=5.0)


def watch_and_stop(limit: int) -> session.Watch:
    def watch(progress: session.Progress) -> None:
        if progress.stage == "case" and progress.done >= limit:
            raise KeyboardInterrupt

    return watch


@pytest.mark.usefixtures("fake_subjects")
def test_an_interrupted_run_is_finished_without_a_lost_or_doubled_row(tmp_path: Path) -> None:
    """Ctrl-C twice, then resumed to the end: each case once, each subject once a case."""
    kept = session.start(plan(), tmp_path, lambda _: None)
    for limit in (5, 13):
        with pytest.raises(KeyboardInterrupt):
            carry_out(kept, plan(), watch_and_stop(limit))
    carry_out(RunStore.open(tmp_path, kept.run_id), session.plan_of(kept), lambda _: None)
    frames = load_run(kept)
    assert sorted(frames.cases["case_id"]) == sorted(entry.id for entry in kept.cases())
    assert (frames.observations.groupby(["case_id", "subject", "probe"]).size() == 1).all()
    assert len(frames.observations[~frames.observations["probe"].astype(bool)]) == 3 * 24


@pytest.mark.usefixtures("fake_subjects")
def test_a_resumed_run_keeps_the_smallest_example(tmp_path: Path) -> None:
    """Whoever goes on with a run knows the examples that it has, and replaces none by a larger one."""
    kept = RunStore.create(tmp_path, {"plan": plan()}, [case("crash"), case("crash, and at length")])
    with pytest.raises(KeyboardInterrupt):
        carry_out(kept, plan(), watch_and_stop(1))
    carry_out(kept, plan(), lambda _: None)
    capsules = [read_capsule(path) for path in (kept.path / "capsules").glob("*.json")]
    assert len(kept.finished()) == 2
    assert {capsule.case for capsule in capsules} == {case("crash")}


@pytest.mark.usefixtures("fake_subjects")
def test_a_named_subject_that_cannot_start_is_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subject asked for by name whose engine cannot be imported ends the run with status 3 and its reason."""
    broken = Subject("fake-b", "tests.no_such_engine:Engine", sys.executable, {"PYTHONPATH": str(ROOT)})
    monkeypatch.setitem(SUBJECTS, "fake-b", broken)
    options = ["--models", "tiny-31b", "--cases", "2", "--store", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["harness", "run", "--subjects", "fake-b", *options, "--properties", "P1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert "No module named" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_subjects")
@pytest.mark.parametrize("broken", ["comparator", "disk"])
def test_failures_of_ours_are_status_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    """A comparator that raises, and a full disk, which ends the run with what to do and no traceback."""

    def raises(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    places = {"comparator": "harness.comparators.counts.check", "disk": "pyarrow.parquet.write_table"}
    monkeypatch.setattr(places[broken], raises)
    options = ["--models", "tiny-31b", "--cases", "2", "--store", str(tmp_path), "--properties", "P1,P2"]
    monkeypatch.setattr(sys, "argv", ["harness", "run", "--subjects", "fake-a,fake-b", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    printed = capsys.readouterr()
    words = "out of disk or of shared memory; make room" if broken == "disk" else "our comparator failed: OSError"
    assert words in " ".join((printed.err + printed.out).split())
    assert ("--resume" in printed.err) == (broken == "disk")


@pytest.mark.usefixtures("fake_subjects")
def test_a_replay_on_which_the_machine_failed_is_status_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is neither fixed nor still there: two capsules of one case, on which memory runs out."""
    found = Finding(
        "1", "P1/outcome/fake-a/x", "P1", "outcome", NAMES[:1], NAMES[0], "tiny-31b", "", None, None, "", ""
    )
    paths = [str(tmp_path / f"{name}.json") for name in "ab"]
    for path in paths:
        described = {name: {"engine": ENGINE} for name in NAMES[:2]}
        write_json(Path(path), Capsule(SCHEMA_VERSION, found, case("starve"), described, "float32", "cpu"))
    monkeypatch.setattr(sys, "argv", ["harness", "replay", *paths, "--subjects", "fake-a,fake-b"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    assert capsys.readouterr().out.count("NOT COMPARABLE") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_cancelled_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGHUP end like Ctrl-C: a hint to go on, 128 + n, no worker, nothing in shared memory."""
    script = (
        "import sys; from harness import cli; from harness.environments import SUBJECTS, Subject\n"
        f"SUBJECTS['fake'] = Subject('fake', {ENGINE!r}, sys.executable, {{'PYTHONPATH': {str(ROOT)!r}}})\n"
        f"sys.argv = ['harness', 'run', '--subjects', 'fake', '--models', 'tiny-31b', '--cases', '400', "
        f"'--properties', 'P1', '--store', {str(tmp_path / 'store')!r}]\ncli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("store/*/parts/0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(number)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "--resume" in printed
    assert workers
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert not list(Path("/dev/shm").glob(f"harness-{process.pid}-*"))  # noqa: S108


@pytest.mark.usefixtures("fake_subjects")
def test_the_document_counts_what_the_rows_say(tmp_path: Path) -> None:
    """Verdict counts of the JSON document are those of the verdict rows, and overhead is measured."""
    kept = session.start(plan(), tmp_path, lambda _: None)
    carry_out(kept, plan(), lambda _: None)
    frames = load_run(kept)
    written = document(frames)
    assert sum(written["verdicts"].values()) == len(frames.verdicts)
    assert written["cases"] == 24
    assert written["timing"]["overhead_ratio"] > 0


def test_a_fleet_can_be_closed_while_its_workers_hang(workers: Fleet) -> None:
    """Closing ends what hangs at once, not after its timeout, drops what waits, and leaves no process and no thread."""
    for worker in workers.workers.values():
        worker.timeout_s = 600.0
    workers.load(locate("tiny-31b"))
    futures = workers.submit(case("hang")).futures + workers.submit(case("after")).futures
    processes = [worker.pid for worker in workers.workers.values()]
    started = time.monotonic()
    workers.close()
    assert time.monotonic() - started < 10
    assert all(future.done() for future in futures)
    assert not any(Path("/proc", str(pid)).exists() for pid in processes)
