"""The warm workers of several subjects, and what they are asked. Layer 3."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from safetensors.numpy import save_file

from harness.builds import ready
from harness.checkpoint import Checkpoint
from harness.environments import Subject
from harness.errors import EngineUnavailable, EngineUnsupported, HarnessBug, UserError, want
from harness.media import arrays as media_arrays
from harness.pool import Worker, thread_share
from harness.render import texts
from harness.schema import PROPERTIES, Case, LoadReport, Observation, Property, Request, error_signature

_WITHOUT_WEIGHTS = ("sglang",)
"""Engines of which only the processor runs."""

_BYTES = {"float64": 8, "float32": 4}
"""Of a number in memory; other types take two or fewer, and an engine says itself which it does not know."""


@dataclass(frozen=True)
class Options:
    """How subjects are run and compared, the same for every case of a campaign.

    With `deep` the decoder's stages are recorded too, and the subjects beside the others run every case.
    """

    dtype: str = "float32"
    device: str = "cpu"
    timeout_s: float = 120.0
    properties: tuple[Property, ...] = tuple(PROPERTIES)
    deep: bool = False


@dataclass(frozen=True)
class Flight:
    """A case that workers have: what each makes of it, then of its probe."""

    request: Request
    calibrates: bool = False
    futures: list[Future[Observation]] = field(default_factory=list)

    @property
    def case(self) -> Case:
        """What all of them were asked about."""
        return self.request.case


class Fleet:
    """The workers of several subjects, and scratch space in memory for what passes between them."""

    def __init__(
        self, subjects: Sequence[Subject], options: Options, logs: Path, beside: Sequence[Subject] = ()
    ) -> None:
        """Describe the workers; a subject that cannot run here is kept, with the reason, in `absent`.

        Subjects `beside` the others have no vote, and run only where they are asked for: cases of calibration, and
        those of a fleet that goes deep.
        """
        self.options = options
        self.subjects = {subject.name: subject for subject in subjects}
        self.beside = {subject.name: subject for subject in beside if subject.name not in self.subjects}
        self.absent: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        """Those absent since the harness or the machine failed them, and why."""
        self._loaded_once: set[str] = set()
        self._trouble: dict[str, tuple[str, str]] = {}
        self.room_bytes = psutil.virtual_memory().available
        startable = [found for s in (*subjects, *self.beside.values()) if (found := self._ready(s))]
        threads = thread_share(max(1, len(startable)))
        self.workers = {
            s.name: Worker(s, logs / f"{s.name}.log", threads=threads, timeout_s=options.timeout_s) for s in startable
        }
        self.loaded: tuple[Path, str] | None = None
        self.template, self.waves = "", False
        self.reports: dict[str, LoadReport] = {}
        self.refused: dict[str, str] = {}
        self._executors = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in self.workers}
        self.scratch = _scratch()
        self._flights = itertools.count()

    def _ready(self, subject: Subject) -> Subject | None:
        """The subject with its environment, or None and the reason in `absent`."""
        try:
            return ready(subject)
        except EngineUnavailable as error:
            self.absent[subject.name] = str(error)
            return None

    def load(self, checkpoint: Path, dtype: str = "", *, audit: bool = False) -> None:
        """Load a checkpoint into every worker at once. One that cannot is absent until the next checkpoint.

        Raises:
            UserError: it is no checkpoint, or memory has no room for its weights in all workers.
        """
        opened = Checkpoint.open(checkpoint)
        self._check_room(opened, dtype or self.options.dtype)
        self.absent = {name: why for name, why in self.absent.items() if name not in self.workers}
        self.reports, self.refused, self.failed = {}, {}, {}
        options = {"dtype": dtype or self.options.dtype, "device": self.options.device, "audit": audit}
        loading = {
            name: self._executors[name].submit(worker.load, checkpoint, **options)
            for name, worker in self.workers.items()
        }
        for name, future in loading.items():
            try:
                self.reports[name] = future.result()
                self._loaded_once.add(name)
            except EngineUnsupported as error:
                self.absent[name] = str(error)
                self.reports[name] = LoadReport(unchecked=(str(error),))
            except EngineUnavailable as error:
                self.absent[name] = self.refused[name] = str(error)
                self._trouble.setdefault(name, ("unavailable", str(error)))
            except Exception as error:
                self.absent[name] = self.failed[name] = _told(error)
                self.reports[name] = LoadReport(unchecked=(self.failed[name],))
                self._trouble[name] = ("failed", self.failed[name])
        self.loaded, self.template, self.waves = (checkpoint, dtype), opened.chat_template, opened.takes_waves

    def status(self, name: str) -> tuple[str, str]:
        """`ok`, `unavailable` or `failed` over all checkpoints so far, and why.

        A subject is not ok if it loaded none, or could not load one that it supports.
        """
        if name in self._trouble:
            return self._trouble[name]
        if name in self.absent and name not in self._loaded_once:
            return "unavailable", self.absent[name]
        return "ok", ""

    def _check_room(self, checkpoint: Checkpoint, dtype: str) -> None:
        """Refuse what would end with the system killing workers. A GPU's memory is left to the engines."""
        described = {**self.subjects, **self.beside}
        dtypes = [
            str(described[name].options.get("dtype", dtype))
            for name in self.workers
            if described[name].engine not in _WITHOUT_WEIGHTS
        ]
        needed_bytes = checkpoint.parameters * sum(_BYTES.get(name, 2) for name in dtypes)
        if self.options.device == "cpu" and needed_bytes > self.room_bytes:
            needed, room = (f"{size / 2**30:.1f} GiB" for size in (needed_bytes, self.room_bytes))
            name, workers = checkpoint.path.name, f"{len(dtypes)} workers ({', '.join(dtypes)})"
            raise UserError(
                f"{name} has {checkpoint.parameters:,} parameters: {needed} of weights in {workers}, "
                f"and {room} of memory are free; take fewer --subjects, or --dtype bfloat16"
            )

    def submit(self, case: Case, *, calibrates: bool = False) -> Flight:
        """Draw a case's media once and hand it, and its probe, to every worker's queue.

        Where that fails for want of memory, each subject's outcome is `failed`.
        """
        try:
            plain, broken = self.request(case), ""
        except UserError:
            raise
        except Exception as error:
            plain, broken = Request(case, "", "", self._place(case)), f"cannot draw its media: {_told(error)}"
        flight = Flight(plain, calibrates)
        anchored = calibrates and case.probe is not None and case.probe.kind == "batch"  # Once is enough.
        voters, beside = list(self.subjects), list(self.beside) if anchored or self.options.deep else []
        runs = [(name, False) for name in (*voters, *beside)] + [(name, True) for name in voters if case.probe]
        for name, probe in runs:
            arrays_path = f"{plain.arrays_path}.{name}{'.probe' * probe}"
            asked = replace(plain, arrays_path=arrays_path, probe=probe)
            flight.futures.append(_done(_failed(name, asked, broken)) if broken else self.ask(name, asked))
        return flight

    def request(self, case: Case) -> Request:
        """A plain run of a case, its media drawn; each subject adds its name to the place for arrays.

        Files are named by flight: the same case may be under way twice.
        """
        place = self._place(case)
        companion = case.probe.companion if case.probe else ()
        drawn = media_arrays(case.parts) | media_arrays(companion, "companion.")
        media_path = ""
        if drawn:
            media_path = f"{place}.media"
            save_file(drawn, media_path)
        template = self.template if case.form == "chat" else ""
        words = texts(case, template, waves=self.waves)
        return Request(case, media_path=media_path, arrays_path=place, deep=self.options.deep, **words)

    def _place(self, case: Case) -> str:
        return str(self.scratch / f"{case.id}-{next(self._flights)}")

    def ask(self, name: str, request: Request) -> Future[Observation]:
        """Put a request into a worker's queue; an absent subject answers at once."""
        if name in self.failed:
            return _done(_failed(name, request, self.failed[name]))
        if name in self.absent:
            return _done(Observation(request.case.id, name, "unavailable", self.absent[name], probe=request.probe))
        return self._executors[name].submit(self._run, name, request)

    def _run(self, name: str, request: Request) -> Observation:
        try:
            return self.workers[name].run(request)
        except Exception as error:
            return _failed(name, request, _told(error))

    def discard(self, request: Request) -> None:
        """Free the scratch space of a request and of what was made of it."""
        for path in self.scratch.glob(f"{Path(request.arrays_path).name}.*"):
            path.unlink()

    @property
    def versions(self) -> dict[str, dict[str, str]]:
        """Package versions by subject, of the subjects that started."""
        return {name: worker.versions for name, worker in self.workers.items() if worker.versions}

    @property
    def described(self) -> dict[str, dict[str, str]]:
        """What each subject with a worker is: its engine, what was guessed of it, the versions that it started with."""
        return {
            name: {"engine": self.subjects[name].engine, **_noted(self.subjects[name]), **worker.versions}
            for name, worker in self.workers.items()
            if name in self.subjects
        }

    def close(self) -> None:
        """End every worker and remove the scratch space."""
        for worker in self.workers.values():
            worker.end()  # Before its thread is waited for, which may be waiting for it.
        for executor in self._executors.values():
            executor.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers.values():
            worker.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _noted(subject: Subject) -> dict[str, str]:
    """What was guessed about its packages, where something was."""
    return {"note": subject.note} if subject.note else {}


def _scratch() -> Path:
    """A private directory in memory where there is such a place; what killed campaigns left there is removed."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory that is ours alone
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for left in place.glob("harness-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"harness-{os.getpid()}-", dir=place))


def _told(error: Exception) -> str:
    """An error of ours or of the machine, in words; where it was raised if it is none that we know."""
    if isinstance(error, HarnessBug):
        return str(error)
    needed, where = want(error), traceback.extract_tb(error.__traceback__)
    words = f"{type(error).__name__}: {error}"
    return f"{needed}: {words}" if needed else f"{words} ({Path(where[-1].filename).name}:{where[-1].lineno})"


def _failed(name: str, request: Request, why: str) -> Observation:
    return Observation(request.case.id, name, "failed", why, error_signature(why), probe=request.probe)


def _done(observation: Observation) -> Future[Observation]:
    future: Future[Observation] = Future()
    future.set_result(observation)
    return future


@contextmanager
def fleet(subjects: Sequence[Subject], options: Options, logs: Path, beside: Sequence[Subject] = ()) -> Iterator[Fleet]:
    """A fleet that is closed whatever happens."""
    with ExitStack() as stack:
        workers = Fleet(subjects, options, logs, beside)
        stack.callback(workers.close)
        yield workers
