"""Workers that die, hang, refuse and talk too much."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import pool
from harness.environments import Subject
from harness.errors import EngineUnavailable, HarnessBug
from harness.pool import Worker
from harness.schema import Case, Observation, Request, error_signature

ENGINE = "tests.fake_engine:FakeEngine"
ROOT = Path(__file__).parent.parent
KILLED = "its process was ended by SIGKILL (killed from outside)"


@pytest.fixture(name="worker")
def _worker(tmp_path: Path) -> Iterator[Worker]:
    worker = make_worker(tmp_path)
    worker.load(tmp_path, dtype="float32", device="cpu")
    yield worker
    worker.close()


def make_worker(tmp_path: Path, engine: str = ENGINE) -> Worker:
    subject = Subject("fake", engine, sys.executable, {"PYTHONPATH": str(ROOT)})
    return Worker(subject, tmp_path / "fake.log", threads=1, timeout_s=2.0)


def run(worker: Worker, prompt: str, tmp_path: Path) -> Observation:
    return worker.run(Request(Case("tiny-31b", ()), prompt, "", str(tmp_path / "arrays")))


def test_a_good_request_is_observed(worker: Worker, tmp_path: Path) -> None:
    """An answer carries the engine's seconds, a digest for every stage, and the file with the arrays."""
    observation = run(worker, "fine", tmp_path)
    assert observation.outcome == "ok"
    assert set(observation.digests) == {"prompt_ids", "hidden", "logprobs"}
    assert observation.engine_s > 0
    assert Path(observation.arrays_path).is_file()


@pytest.mark.parametrize(
    ("prompt", "outcome", "words"),
    [
        ("crash", "crashed", "its process ended with status 7: last words"),
        ("hang", "timeout", "no answer within 2 s"),
        ("raise", "crashed", "RuntimeError: index 289 is out of bounds"),
        ("reject", "rejected", "ValueError: 2 placeholders for 1 image"),
        ("starve", "failed", "out of memory: RuntimeError: [enforce fail]"),
    ],
)
def test_every_failure_becomes_an_outcome_and_the_next_request_works(
    worker: Worker, tmp_path: Path, prompt: str, outcome: str, words: str
) -> None:
    """A dying, hanging, raising or refusing engine is reported in its own words, and the worker is good again."""
    failed = run(worker, prompt, tmp_path)
    assert failed.outcome == outcome
    assert words in failed.message
    assert run(worker, "fine", tmp_path).outcome == "ok"


def test_only_a_lost_process_is_started_again(worker: Worker, tmp_path: Path) -> None:
    """An exception leaves the warm process as it is; a crash costs one start."""
    run(worker, "raise", tmp_path)
    run(worker, "fine", tmp_path)
    assert worker.starts == 1
    run(worker, "crash", tmp_path)
    run(worker, "fine", tmp_path)
    assert worker.starts == 2


def test_signatures_do_not_depend_on_numbers_or_paths(worker: Worker, tmp_path: Path) -> None:
    """Two crashes of one cause have one signature."""
    assert run(worker, "raise", tmp_path).signature == "RuntimeError: index # is out of bounds at ADDR in PATH"


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        ("I/O error: No such file (os error 2)", "I/O error: No such file (os error #)"),
        ("cannot open '/tmp/a/b.py' and/or /x", "cannot open 'PATH' and/or PATH"),
    ],
)
def test_a_slash_alone_makes_no_path(text: str, signature: str) -> None:
    """Paths are taken out of a signature; words with a slash between them stay."""
    assert error_signature(text) == signature


def test_prints_of_an_engine_do_not_disturb_the_messages(worker: Worker, tmp_path: Path) -> None:
    """What an engine prints to standard output goes to its log."""
    assert run(worker, "noise", tmp_path).outcome == "ok"
    assert "{not a message}" in worker.log_path.read_text()


def test_a_worker_killed_while_it_waits_is_noticed(worker: Worker, tmp_path: Path) -> None:
    """A process killed between two requests makes the next one `failed`, no finding, with the signal's name."""
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    killed = run(worker, "fine", tmp_path)
    assert (killed.outcome, killed.message) == ("failed", KILLED)


def test_a_worker_killed_while_it_starts_again_costs_one_case(worker: Worker, tmp_path: Path) -> None:
    """A second death, before the engine is up again, costs that case and no other."""
    run(worker, "crash", tmp_path)
    killed = threading.Timer(0.2, lambda: os.kill(worker.pid or 0, signal.SIGKILL))
    killed.start()
    observed = run(worker, "hang", tmp_path)
    assert (observed.outcome, observed.message) == ("failed", KILLED)
    assert run(worker, "fine", tmp_path).outcome == "ok"


def test_a_worker_killed_while_it_works_does_not_hang_the_harness(worker: Worker, tmp_path: Path) -> None:
    """A process killed in the middle of a request is an outcome at once, not after the timeout."""
    assert worker.pid is not None
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    started = time.monotonic()
    assert run(worker, "hang", tmp_path).outcome == "failed"
    assert time.monotonic() - started < worker.timeout_s


@pytest.mark.parametrize(("name", "words"), [("dies", "died loading dies"), ("refuses", "no such layer: 17")])
def test_a_checkpoint_that_cannot_be_loaded_is_unavailable(tmp_path: Path, name: str, words: str) -> None:
    """An engine that dies or raises while loading makes the subject unavailable, with the reason."""
    worker = make_worker(tmp_path)
    try:
        with pytest.raises(EngineUnavailable, match=words):
            worker.load(tmp_path / name, dtype="float32", device="cpu")
    finally:
        worker.close()


def test_arrays_that_cannot_be_written_are_no_crash_of_the_engine(worker: Worker, tmp_path: Path) -> None:
    """A place that is gone is `failed` in the words of whoever could not write."""
    lost = worker.run(Request(Case("tiny-31b", ()), "fine", "", str(tmp_path / "gone" / "arrays")))
    assert (lost.outcome, lost.digests) == ("failed", {})
    assert "Error" in lost.message
    assert run(worker, "fine", tmp_path).outcome == "ok"


def test_a_worker_that_the_system_ended_says_out_of_memory(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts what it killed for want of memory; a SIGKILL beside such a count is told so."""
    counted = iter([3, 4])
    monkeypatch.setattr(pool, "_oom_kills", lambda: next(counted))
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    killed = run(worker, "fine", tmp_path)
    assert (killed.outcome, "out of memory" in killed.message) == ("failed", True)


def test_a_process_that_closes_its_pipe_and_lives_on_is_not_waited_for(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for its status has a limit, behind which it is killed."""
    monkeypatch.setattr(pool, "LAST_WORDS_S", 0.2)
    observed = run(worker, "linger", tmp_path)
    assert (observed.outcome, observed.message) == ("crashed", "it closed its pipe and did not end within 0.2 s")
    assert run(worker, "fine", tmp_path).outcome == "ok"


@pytest.mark.parametrize(
    ("prompt", "outcome", "words"),
    [
        ("once", "ok", ""),
        ("always", "failed", "relinked was installed again under the run"),
        ("untouched", "crashed", "No module named 'relinked.tool'"),
    ],
)
def test_packages_changed_under_a_worker_are_no_crash(tmp_path: Path, prompt: str, outcome: str, words: str) -> None:
    """It is asked once more in a new process, then `failed`; a module that never was there is a crash as before."""
    listed = tmp_path / "site" / "relinked-1.dist-info"
    listed.mkdir(parents=True)
    (listed / "METADATA").write_text("Metadata-Version: 2.1\nName: relinked\nVersion: 1\n")
    (listed / "RECORD").write_text("relinked-1.dist-info/METADATA,,\nrelinked-1.dist-info/RECORD,,\n")
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}"}
    subject = Subject("fake", "tests.fake_engine:Relinked", sys.executable, env)
    worker = Worker(subject, tmp_path / "fake.log", threads=1, timeout_s=30.0)
    try:
        worker.load(tmp_path, dtype="float32", device="cpu")
        observed = run(worker, prompt, tmp_path)
    finally:
        worker.close()
    assert (observed.outcome, words in observed.message) == (outcome, True)


def test_want_of_memory_at_load_is_the_machines(tmp_path: Path) -> None:
    """It is no word against the engine: neither `unavailable` nor a finding of P8."""
    worker = make_worker(tmp_path)
    try:
        with pytest.raises(HarnessBug, match="out of memory: MemoryError"):
            worker.load(tmp_path / "starves", dtype="float32", device="cpu")
    finally:
        worker.close()


def test_an_engine_that_cannot_be_imported_says_so(tmp_path: Path) -> None:
    """The reason is the import error itself, not a hang or a stack of ours."""
    worker = make_worker(tmp_path, engine="tests.no_such_engine:Engine")
    with pytest.raises(EngineUnavailable, match=r"No module named 'tests\.no_such_engine'"):
        worker.start()


def test_a_worker_ends_with_its_parent(worker: Worker) -> None:
    """When the harness is killed its end of the pipe closes, and the process ends by itself."""
    process = worker._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 0
