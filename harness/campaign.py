"""A campaign: many cases through several warm subjects, compared, stored. Layer 3.

Engines run first, each in its own process and thread; comparison reads only what they recorded. While engines
work on one case, the media of the next are drawn and the case before is compared.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint, Feature
from harness.comparators import Comparison, Context, Limits, Side, compare, generation, guarded, load_side
from harness.comparators.generation import Round
from harness.comparators.kl import OutputHead
from harness.comparators.start_up import check_loaded
from harness.comparators.suspects import findings
from harness.deviations import Deviation, explain
from harness.errors import UserError
from harness.fleet import Fleet, Flight
from harness.generation import play
from harness.records import rows_of
from harness.schema import Case, Finding, Observation, Verdict

PIPELINE_DEPTH = 3
"""Cases in flight: one running, one waiting so that no engine idles, one being compared."""


@dataclass(frozen=True)
class Result:
    """Everything about one finished case: what was observed, judged and found, and the rows to store.

    `sides` are the observations with every array that was recorded; whoever collects results should let them go.
    `beside` are those of subjects that have no vote. A case of calibration is not judged: it has sides alone.
    """

    case: Case
    observations: tuple[Observation, ...]
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    rows: Mapping[str, list[dict[str, Any]]]
    arrays: Mapping[str, Any]
    sides: tuple[Side, ...] = ()
    beside: tuple[Side, ...] = ()


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
        self.kl_limits: dict[tuple[str, str], float] = {}
        """Model, compute type -> the largest KL in nats that counts as agreement, where it is known better."""
        self._context: Context | None = None
        self._loaded: list[Verdict] = []
        self.features: frozenset[Feature] = frozenset()
        """Of the model that is loaded."""

    @property
    def context(self) -> Context:
        """What comparisons over the model that is loaded share."""
        assert self._context is not None
        return self._context

    def run(self, cases: Iterable[Case], calibrating: Collection[str] = ()) -> Iterator[Result]:
        """Results in the order of the cases, which should be grouped by model and may depend on earlier results.

        Those with an id in `calibrating` are run and not judged.

        Raises:
            UserError: a model that is no checkpoint.
        """
        started = time.perf_counter()
        flying: deque[Flight] = deque()
        for case in cases:
            wanted = self.locate(case.model), case.dtype or self.workers.options.dtype
            if wanted != self.workers.loaded or self._context is None:
                while flying:
                    yield self._finish(flying.popleft(), started)
                self._load(*wanted)
                if Path(case.model).is_dir():
                    self._require_some_subject(case.model)
            flying.append(self.workers.submit(case, calibrates=case.id in calibrating))
            if len(flying) >= PIPELINE_DEPTH:
                yield self._finish(flying.popleft(), started)
        while flying:
            yield self._finish(flying.popleft(), started)

    def _require_some_subject(self, model: str) -> None:
        """Refuse a user's own checkpoint that no engine of several can load: it is not the engines that are wrong."""
        refused, voters = self.workers.refused, self.workers.subjects
        if len({subject.engine for subject in voters.values()}) > 1 and voters.keys() <= refused.keys():
            words = "; ".join(refused[name] for name in voters)
            raise UserError(f"no subject can load {model}, so something is wrong with it: {words}")

    def _load(self, directory: Path, dtype: str) -> None:
        started = time.perf_counter()
        checkpoint = Checkpoint.open(directory)
        audit = "P8" in self.workers.options.properties
        self._context = None
        self.workers.load(directory, dtype, audit=audit)
        self.features = checkpoint.features
        voters = self.workers.subjects
        reports = {name: report for name, report in self.workers.reports.items() if name in voters}
        refused = {name: words for name, words in self.workers.refused.items() if name in voters}
        self._loaded = list(check_loaded(reports, refused)) if audit else []
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
        case, everything = flight.case, [future.result() for future in flight.futures]
        rounds: list[Round] = []
        if case.continuation and "P6" in self.workers.options.properties and not flight.calibrates:
            rounds = play(flight.request, list(self.workers.subjects), self.workers.ask)
        compare_started = time.perf_counter()
        every_side = [load_side(observation) for observation in everything]
        sides = [side for side in every_side if side.name in self.workers.subjects]
        beside = tuple(side for side in every_side if side.name in self.workers.beside)
        result = Result(case, tuple(side.observation for side in sides), (), (), {}, {}, tuple(sides), beside)
        if not flight.calibrates:
            result = self._kept(result, rounds)
        self.workers.discard(flight.request)
        now = time.perf_counter()
        self.timing.compare_s += now - compare_started
        self.timing.wall_s = now - run_started
        for observation in (*everything, *(side.observation for round_ in rounds for side in round_.sides)):
            self.timing.engine_s[observation.subject] += observation.engine_s
        return result

    def _kept(self, result: Result, rounds: Sequence[Round]) -> Result:
        """The result, judged; where judging itself breaks, its observations and one verdict that says so."""
        broken: list[Verdict] = []

        def judge() -> Iterator[Verdict]:
            nonlocal result
            result = self._judged(result, rounds)
            return iter(())

        names = [*self.workers.subjects]
        broken += guarded("P1", "outcome", [(name, name) for name in names], judge)
        if not broken:
            return result
        bare = tuple(Side(side.observation, {}) for side in result.sides)
        rows, arrays = rows_of(result.case, bare, Comparison(broken), ())
        return replace(result, verdicts=tuple(broken), rows=rows, arrays=arrays)

    def _judged(self, result: Result, rounds: Sequence[Round]) -> Result:
        """The result with verdicts, findings and rows."""
        case, sides, context = result.case, result.sides, self.context
        measured = self.kl_limits.get((case.model, case.dtype or self.workers.options.dtype))
        if measured is not None:
            context = replace(context, limits=replace(context.limits, kl_nats=measured))
        comparison = compare(case, sides, context, self.workers.options.properties)
        if rounds:
            pairs = [(left.name, right.name) for left, right in combinations(rounds[0].sides, 2)]
            made = partial(generation.compare, rounds, context, comparison)
            comparison.verdicts += guarded("P6", "generation", pairs, made)
        # How the model loaded is told once, with its first case.
        comparison.verdicts += self._loaded
        self._loaded = []
        engines = {name: subject.engine for name, subject in self.workers.subjects.items()}
        judged = findings(case, comparison.verdicts, engines)
        ran, device = self.workers.described, self.workers.options.device
        found = tuple(explain(finding, case, self.deviations, ran, device, self.features) for finding in judged)
        rows, arrays = rows_of(case, sides, comparison, found)
        return replace(result, verdicts=tuple(comparison.verdicts), findings=found, rows=rows, arrays=arrays)
