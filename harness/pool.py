"""Warm child processes, one per subject: start, ask, time out, restart. Layer 3.

A worker that dies, hangs or runs out of memory becomes an outcome; the next request starts a fresh one. A worker
is never a zombie of a killed parent: it ends when its standard input closes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from harness.builds import held
from harness.environments import Subject
from harness.errors import TOUCHED, EngineUnavailable, EngineUnsupported, HarnessBug
from harness.schema import Counts, LoadReport, Observation, OutcomeKind, Request

START_TIMEOUT_S = 300.0
"""Importing an engine from a cold disk takes a minute on a slow machine; more than this is a hang."""

LOAD_ATTEMPTS = 2

LAST_WORDS_S = 5.0
"""A process that closed its pipe may take so long to end; one that does not is killed."""


class WorkerGone(Exception):
    """The process ended or hung while it held a message. `outcome` says which."""

    def __init__(self, outcome: OutcomeKind, message: str) -> None:
        """Keep what happened and how it is reported."""
        super().__init__(message)
        self.outcome: OutcomeKind = outcome


class Worker:
    """One subject's process. Not safe for use by two threads at once; a campaign gives each its own thread."""

    def __init__(self, subject: Subject, log_path: Path, *, threads: int, timeout_s: float) -> None:
        """Describe the process; nothing starts before it is needed."""
        self.subject, self.log_path, self.timeout_s = subject, log_path, timeout_s
        self._env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(threads),
            # Threads that wait sleep: on a busy machine, spinning made a case take five times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            **subject.env,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: dict[str, Any] | None = None
        self._buffer = b""
        self._ended = False
        self._spawning = threading.Lock()
        self.versions: dict[str, str] = {}
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id while a process runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process if none runs.

        Raises:
            EngineUnavailable: the engine cannot be imported here; the message ends in its own last words.
        """
        try:
            self._start()
        except WorkerGone as gone:
            raise EngineUnavailable(f"subject {self.subject.name} cannot start here: {gone}") from gone

    def _start(self) -> None:
        if self._process is not None:
            return
        options = json.dumps(dict(self.subject.options))
        command = [self.subject.python, "-m", "harness.worker", self.subject.name, self.subject.engine, options]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._spawning, self.log_path.open("ab") as log, held(self.subject) as kept_open:
            if self._ended:
                raise WorkerGone("crashed", "its process was ended by the harness")
            # A session of its own, so that Ctrl-C reaches the campaign alone and the campaign ends the workers.
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._env,
                    start_new_session=True,
                    pass_fds=kept_open,
                )
            except OSError as error:  # Its environment was removed.
                raise WorkerGone("crashed", str(error)) from error
        self.starts += 1
        self.versions = self._ask({"kind": "hello"}, START_TIMEOUT_S)["versions"]

    def load(self, checkpoint: Path, **options: Any) -> LoadReport:
        """Load a checkpoint, restarting the process first if it is gone.

        Raises:
            EngineUnavailable: the engine cannot start, or cannot load this checkpoint.
            EngineUnsupported: it has no such model at all.
            HarnessBug: the machine had no room for it, or something killed it.
        """
        self.start()
        self._loaded = {"kind": "load", "checkpoint": str(checkpoint), **options}
        for attempt in range(LOAD_ATTEMPTS):
            try:
                reply = self._load_again()
            except WorkerGone as gone:
                if attempt + 1 == LOAD_ATTEMPTS:
                    died = HarnessBug if gone.outcome == "failed" else EngineUnavailable
                    raise died(f"{self.subject.name} died loading {checkpoint.name}: {gone}") from gone
                continue
            if reply.get("touched") and attempt + 1 < LOAD_ATTEMPTS:
                self.close()
                continue
            if "error" in reply:
                kind: type[Exception] = EngineUnsupported if reply.get("unsupported") else EngineUnavailable
                if reply.get("failed"):
                    kind = HarnessBug
                raise kind(f"{self.subject.name} cannot load {checkpoint.name}: {reply['error']}")
            load_s = reply.pop("load_s")
            return LoadReport(**{k: tuple(names) for k, names in reply.items()}, load_s=load_s)
        raise AssertionError("the last attempt returns or raises")

    def _load_again(self) -> dict[str, Any]:
        self._start()
        assert self._loaded is not None
        return self._ask(self._loaded, START_TIMEOUT_S)

    def run(self, request: Request) -> Observation:
        """What the subject did with the request. Never raises for anything that an engine can do.

        Where its packages were changed under it, it is asked once more, in a new process.
        """
        observed = self._run(request)
        if observed.outcome == "failed" and observed.message.startswith(TOUCHED):
            self.close()
            observed = self._run(request)
        return observed

    def _run(self, request: Request) -> Observation:
        started = time.perf_counter()
        try:
            if self._process is None and self._loaded is not None:
                reply = self._load_again()
                if "error" in reply:
                    outcome: OutcomeKind = "failed" if reply.get("failed") else "unavailable"
                    return self._lost(request, outcome, str(reply["error"]), started)
            return _observation(self._ask({"kind": "run", **dataclasses.asdict(request)}, self.timeout_s))
        except WorkerGone as gone:
            return self._lost(request, gone.outcome, str(gone), started)

    def _lost(self, request: Request, outcome: OutcomeKind, message: str, started: float) -> Observation:
        return Observation(
            case_id=request.case.id,
            subject=self.subject.name,
            outcome=outcome,
            message=message,
            signature=message.splitlines()[0][:160],
            engine_s=time.perf_counter() - started,
            probe=request.probe,
        )

    def end(self) -> None:
        """Kill the process, for good; from any thread. A thread that waits for it sees it gone at once."""
        with self._spawning:
            self._ended = True
            if self._process is not None:
                _kill(self._process)

    def close(self) -> None:
        """End the process and free its pipes; from the thread that uses it. Safe to call twice."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # What was still to be flushed has nobody to read it.
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            _kill(process)

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one message and wait for its reply.

        Raises:
            WorkerGone: the process ended, or gave no reply in time and was killed.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        killed_before = _oom_kills()
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = self._read_line(timeout_s)
        except BrokenPipeError:
            line = b""
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        if line is None:
            _kill(process)
            self.close()
            raise WorkerGone("timeout", f"no answer within {timeout_s:g} s; its process was killed")
        raise self._last_words(killed_before)

    def _read_line(self, timeout_s: float) -> bytes | None:
        """One line; empty at the end of the stream, None when the time is up."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return b""
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _last_words(self, killed_before: int) -> WorkerGone:
        """How the process ended, and the last line that it printed, where that is an error.

        No engine sends itself SIGKILL: the system does, for want of memory, or a person. Neither is a finding.
        """
        process = self._process
        if process is None or self._ended:
            return WorkerGone("failed", "its process was ended by the harness")
        try:
            status = process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            _kill(process)
            self.close()
            return WorkerGone("crashed", f"it closed its pipe and did not end within {LAST_WORDS_S:g} s")
        self.close()
        if status == -signal.SIGKILL:
            why = "out of memory: the system killed it" if _oom_kills() > killed_before else "killed from outside"
            return WorkerGone("failed", f"its process was ended by SIGKILL ({why})")
        if status < 0:
            return WorkerGone("crashed", f"its process was ended by {signal.Signals(-status).name}")
        printed = self.log_path.read_text(errors="replace").strip().splitlines() or ["(it printed nothing)"]
        return WorkerGone("crashed", f"its process ended with status {status}: {printed[-1][:500]}")


def _oom_kills() -> int:
    """How many processes the system ended for want of memory so far, as far as it tells us."""
    total = 0
    for counters in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            lines = (line.split() for line in Path(counters).read_text().splitlines())
            total += sum(int(line[1]) for line in lines if line[0] == "oom_kill")
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _observation(reply: dict[str, Any]) -> Observation:
    counts = tuple(Counts(**entry) for entry in reply.pop("counts"))
    return Observation(**reply, counts=counts)


def thread_share(subjects: int) -> int:
    """Threads for each worker, so that all of them together fill the machine's cores once."""
    return max(1, len(os.sched_getaffinity(0)) // subjects)
