"""A campaign: many cases through several warm subjects, compared, stored. Layer 3.

Engines run first, each in its own process and thread; comparison reads only what they recorded. While engines
work on one case, the media of the next are drawn and the case before is compared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from harness.builds import ready
from harness.checkpoint import Checkpoint
from harness.comparators import Context, Limits, Side, compare, generation, load_side
from harness.comparators.generation import Round
from harness.comparators.kl import OutputHead
from harness.comparators.start_up import check_loaded
from harness.comparators.suspects import findings
from harness.deviations import Deviation, explain
from harness.environments import Subject
from harness.errors import EngineUnavailable, EngineUnsupported
from harness.generation import play
from harness.media import arrays as media_arrays
from harness.pool import Worker, thread_share
from harness.records import rows_of
from harness.render import texts
from harness.schema import PROPERTIES, Case, Finding, LoadReport, Observation, Property, Request, Verdict

PIPELINE_DEPTH = 3
"""Cases in flight: one running, one waiting so that no engine idles, one being compared."""


@dataclass(frozen=True)
class Options:
    """How subjects are run and compared, the same for every case of a campaign."""

    dtype: str = "float32"
    device: str = "cpu"
    timeout_s: float = 120.0
    properties: tuple[Property, ...] = tuple(PROPERTIES)


@dataclass(frozen=True)
class Result:
    """Everything about one finished case: what was observed, judged and found, and the rows to store.

    `sides` are the observations with every array that was recorded; whoever collects results should let them go.
    """

    case: Case
    observations: tuple[Observation, ...]
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    rows: Mapping[str, list[dict[str, Any]]]
    arrays: Mapping[str, Any]
    sides: tuple[Side, ...] = ()


@dataclass
class Timing:
    """Seconds of a campaign. `overhead_ratio` is what the harness adds to what the engines take."""

    wall_s: float = 0.0
    startup_s: float = 0.0
    compare_s: float = 0.0
    engine_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def as_dict(self) -> dict[str, Any]:
        """The fields, and (wall_s - startup_s) / the sum of engine_s; None before any engine ran."""
        total_s = sum(self.engine_s.values())
        ratio = (self.wall_s - self.startup_s) / total_s if total_s else None
        return {**vars(self), "engine_s": dict(self.engine_s), "overhead_ratio": ratio}


@dataclass(frozen=True)
class Flight:
    """A case that workers have: what each makes of it, then of its probe."""

    request: Request
    futures: list[Future[Observation]] = field(default_factory=list)

    @property
    def case(self) -> Case:
        """What all of them were asked about."""
        return self.request.case


class Fleet:
    """The workers of several subjects, and scratch space in memory for what passes between them."""

    def __init__(self, subjects: Sequence[Subject], options: Options, logs: Path) -> None:
        """Describe the workers; a subject that cannot run here is kept, with the reason, in `absent`."""
        self.options = options
        self.subjects = {subject.name: subject for subject in subjects}
        self.absent: dict[str, str] = {}
        startable = [found for subject in subjects if (found := self._ready(subject))]
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

    def _ready(self, subject: Subject) -> Subject | None:
        """The subject with its environment, or None and the reason in `absent`."""
        try:
            return ready(subject)
        except EngineUnavailable as error:
            self.absent[subject.name] = str(error)
            return None

    def load(self, checkpoint: Path, dtype: str = "", *, audit: bool = False) -> None:
        """Load a checkpoint into every worker at once. One that cannot is absent until the next checkpoint."""
        self.absent = {name: why for name, why in self.absent.items() if name not in self.workers}
        self.reports, self.refused = {}, {}
        options = {"dtype": dtype or self.options.dtype, "device": self.options.device, "audit": audit}
        loading = {
            name: self._executors[name].submit(worker.load, checkpoint, **options)
            for name, worker in self.workers.items()
        }
        for name, future in loading.items():
            try:
                self.reports[name] = future.result()
            except EngineUnsupported as error:
                self.absent[name] = str(error)
                self.reports[name] = LoadReport(unchecked=(str(error),))
            except EngineUnavailable as error:
                self.absent[name] = self.refused[name] = str(error)
        opened = Checkpoint.open(checkpoint)
        self.loaded, self.template, self.waves = (checkpoint, dtype), opened.chat_template, opened.takes_waves

    def submit(self, case: Case) -> Flight:
        """Draw a case's media once and hand it, and its probe, to every worker's queue."""
        companion = case.probe.companion if case.probe else ()
        drawn = media_arrays(case.parts) | media_arrays(companion, "companion.")
        media_path = ""
        if drawn:
            media_path = str(self.scratch / f"{case.id}.media")
            save_file(drawn, media_path)
        template = self.template if case.form == "chat" else ""
        words = texts(case, template, waves=self.waves)
        flight = Flight(Request(case, media_path=media_path, arrays_path=str(self.scratch / case.id), **words))
        for probe in (False, True) if case.probe else (False,):
            for name in self.names:
                arrays_path = f"{flight.request.arrays_path}.{name}{'.probe' * probe}"
                request = replace(flight.request, arrays_path=arrays_path, probe=probe)
                flight.futures.append(self.ask(name, request))
        return flight

    @property
    def names(self) -> list[str]:
        """Every subject, with a worker or absent."""
        return list({**self.workers, **self.absent})

    def ask(self, name: str, request: Request) -> Future[Observation]:
        """Put a request into a worker's queue; an absent subject answers at once."""
        if name in self.absent:
            return _done(Observation(request.case.id, name, "unavailable", self.absent[name], probe=request.probe))
        return self._executors[name].submit(self.workers[name].run, request)

    def discard(self, case: Case) -> None:
        """Free a case's scratch space."""
        for path in self.scratch.glob(f"{case.id}.*"):
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


def _done(observation: Observation) -> Future[Observation]:
    future: Future[Observation] = Future()
    future.set_result(observation)
    return future


@contextmanager
def fleet(subjects: Sequence[Subject], options: Options, logs: Path) -> Iterator[Fleet]:
    """A fleet that is closed whatever happens."""
    with ExitStack() as stack:
        workers = Fleet(subjects, options, logs)
        stack.callback(workers.close)
        yield workers


class Campaign:
    """Runs cases, model by model, and yields each result as it is known."""

    def __init__(
        self,
        workers: Fleet,
        locate: Callable[[str], Path],
        deviations: Collection[Deviation] = (),
    ) -> None:
        """Use a fleet; `locate` turns a case's model into its checkpoint directory."""
        self.workers, self.locate, self.deviations = workers, locate, list(deviations)
        # The workers have the cores; a second thread here would wait for one of them in a busy loop.
        torch.set_num_threads(1)
        self.timing = Timing()
        self._context: Context | None = None
        self._loaded: list[Verdict] = []

    def run(self, cases: Iterable[Case]) -> Iterator[Result]:
        """Results in the order of the cases, which should be grouped by model and may depend on earlier results.

        Raises:
            UserError: a model that is no checkpoint.
        """
        started = time.perf_counter()
        flying: deque[Flight] = deque()
        for case in cases:
            wanted = self.locate(case.model), case.dtype or self.workers.options.dtype
            if wanted != self.workers.loaded:
                while flying:
                    yield self._finish(flying.popleft(), started)
                self._load(*wanted)
            flying.append(self.workers.submit(case))
            if len(flying) >= PIPELINE_DEPTH:
                yield self._finish(flying.popleft(), started)
        while flying:
            yield self._finish(flying.popleft(), started)

    def _load(self, directory: Path, dtype: str) -> None:
        started = time.perf_counter()
        checkpoint = Checkpoint.open(directory)
        audit = "P8" in self.workers.options.properties
        self.workers.load(directory, dtype, audit=audit)
        self._loaded = list(check_loaded(self.workers.reports, self.workers.refused)) if audit else []
        self._context = Context(
            checkpoint.media_tokens,
            OutputHead.of(checkpoint),
            Limits.of(dtype),
            checkpoint.layers,
            unified=checkpoint.takes_waves,
            experts=bool(checkpoint.config["text_config"].get("enable_moe_block")),
            read=checkpoint.read,
        )
        self.timing.startup_s += time.perf_counter() - started

    def _finish(self, flight: Flight, run_started: float) -> Result:
        case, observations = flight.case, tuple(future.result() for future in flight.futures)
        rounds: list[Round] = []
        if case.continuation and "P6" in self.workers.options.properties:
            rounds = play(flight.request, self.workers.names, self.workers.ask)
        compare_started = time.perf_counter()
        assert self._context is not None
        sides = [load_side(observation) for observation in observations]
        comparison = compare(case, sides, self._context, self.workers.options.properties)
        if rounds:
            comparison.verdicts += list(generation.compare(rounds, self._context, comparison))
        # How the model loaded is told once, with its first case.
        comparison.verdicts += self._loaded
        self._loaded = []
        engines = {name: subject.engine for name, subject in self.workers.subjects.items()}
        judged = findings(case, comparison.verdicts, engines)
        ran, device = self.workers.described, self.workers.options.device
        found = tuple(explain(finding, case, self.deviations, ran, device) for finding in judged)
        rows, arrays = rows_of(case, sides, comparison, found)
        self.workers.discard(case)
        now = time.perf_counter()
        self.timing.compare_s += now - compare_started
        self.timing.wall_s = now - run_started
        for observation in (*observations, *(side.observation for round_ in rounds for side in round_.sides)):
            self.timing.engine_s[observation.subject] += observation.engine_s
        return Result(case, observations, tuple(comparison.verdicts), found, rows, arrays, tuple(sides))
