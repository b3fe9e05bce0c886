"""The smallest case with the same finding: greedy delta debugging on warm subjects. Layer 3.

A case is a handful of parameters, so its smaller neighbours can be listed (`harness.reductions`) and each is tried as a
case of one campaign: while engines run one, the next is drawn, and which that is depends on the results so far.

Noise must not steer the search. A candidate counts only if its finding has the same signature and is clear of the
limit: at least twice the limit, or, for a finding that was nearer than three times, at least half of the excess that
it had. A finding that was no number (NaN, infinity, a shape) stays one.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.campaign import Campaign, Result
from harness.errors import UserError
from harness.reductions import REDUCTIONS, size
from harness.replay import Target, absent_subjects, same_finding
from harness.schema import Capsule, Case, Finding
from harness.session import capsule_of
from harness.store import read_capsule, write_json

DEFAULT_TIMEOUT_S = 60.0
REGRESSIONS = Path("cases/regressions")


@dataclass(frozen=True)
class Shrunk:
    """What a search came to. `why` says how it ended: nothing smaller, out of time, or stopped.

    `seconds` are those of the search on warm subjects, after the finding was seen once.
    """

    capsule: Capsule
    original: Case
    tried: int
    accepted: int
    seconds: float
    why: str
    interrupted: bool = False


@dataclass(frozen=True)
class Step:
    """What a search tells whoever watches."""

    tried: int
    accepted: int
    best: Case
    measured: float | None


def subjects_needed(finding: Finding | None, subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Only the subject that a finding is about, if it differs from itself or from a rule: no other has a vote."""
    if finding is None or len(finding.subjects) != 1:
        return subjects
    (alone,) = finding.subjects
    if alone == "reference":
        return subjects[-1:]  # Any will do; of the usual ones the last is the quickest.
    return (alone,) if alone in subjects else subjects


def least_that_counts(finding: Finding) -> float | None:
    """The measured value from which on a smaller case counts; None where the finding was no number."""
    if finding.measured is None or not math.isfinite(finding.measured):
        return None
    limit = finding.limit or 0.0
    return limit + min(limit, (finding.measured - limit) / 2)


def counts(finding: Finding, least: float | None) -> bool:
    """Whether a finding is clear of its limit."""
    if finding.measured is None or not math.isfinite(finding.measured):
        return least is None
    return least is not None and finding.measured >= least


class Search:
    """One search: what is looked for, the smallest case so far, what has been tried."""

    def __init__(
        self,
        campaign: Campaign,
        sought: Target,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        watch: Callable[[Step], None] = lambda _: None,
    ) -> None:
        """Search on a campaign's subjects for a target with a finding, or for the first finding of its case."""
        self.campaign, self.sought, self.timeout_s, self.watch = campaign, sought, timeout_s, watch
        self.accepted: list[tuple[Case, Finding]] = []
        self._tried: set[str] = set()

    @property
    def best(self) -> Case:
        """The smallest case that has the finding."""
        return self.accepted[-1][0]

    def run(self) -> Shrunk:
        """Search until no step helps or the time is up; Ctrl-C ends a search that has begun, and keeps what it has.

        Raises:
            UserError: the case does not have the finding here, so there is nothing to shrink.
        """
        self._begin()
        started = time.monotonic()
        self._deadline = started + self.timeout_s
        why, interrupted = "no smaller case has it", False
        try:
            before = None
            while before != self.best:
                before = self.best
                for result in self.campaign.run(self._candidates()):
                    self._take(result)
            self._confirm()
            if time.monotonic() >= self._deadline:
                why = f"stopped after {self.timeout_s:g} s"
        except KeyboardInterrupt:
            why, interrupted = "stopped by Ctrl-C", True
        case, finding = self.accepted[-1]
        capsule = capsule_of(finding, case, self.campaign.workers)
        steps = len(self.accepted) - 1
        return Shrunk(capsule, self.sought.case, len(self._tried), steps, time.monotonic() - started, why, interrupted)

    def _begin(self) -> None:
        """See the finding once here, in these versions, before anything is compared with it."""
        (result,) = self.campaign.run([self.sought.case])
        wanted = self.sought.finding
        if wanted is None:
            found = next((f for f in result.findings if not f.deviation), next(iter(result.findings), None))
        else:
            found = same_finding(wanted, result.findings, absent_subjects(wanted, result))
        if found is None:
            lost = f"finding {wanted.signature}" if wanted else "any finding"
            raise UserError(f"{self.sought.name} does not have {lost} here; `harness replay` says why")
        self.finding, self._least = found, least_that_counts(found)
        self.accepted.append((self.sought.case, found))
        self._tried.add(self.sought.case.id)

    def _candidates(self) -> Iterator[Case]:
        """Untried smaller cases of whatever is smallest by now, each kind of step as long as it helps."""
        for reduction in REDUCTIONS:
            base = None
            while base != self.best:
                base = self.best
                for case in reduction(base):
                    if time.monotonic() >= self._deadline:
                        return
                    if case.id not in self._tried and size(case) < size(self.best):
                        self._tried.add(case.id)
                        yield case
                    if self.best != base:
                        break

    def _take(self, result: Result) -> None:
        """Make a case the smallest if it is one; several were on their way when the last was found."""
        found = self._same(result)
        if found is not None and size(result.case) < size(self.best):
            self.accepted.append((result.case, found))
        self.watch(Step(len(self._tried), len(self.accepted) - 1, self.best, self.accepted[-1][1].measured))

    def _confirm(self) -> None:
        """Run the smallest case once more; one that was chance gives way to the one before it."""
        while len(self.accepted) > 1:
            (result,) = self.campaign.run([self.best])
            if self._same(result) is not None:
                return
            self.accepted.pop()

    def _same(self, result: Result) -> Finding | None:
        """The finding in a result, if it is there, clear of the limit and of the same known cause or of none."""
        found = same_finding(self.finding, result.findings)
        if found is None or found.deviation != self.finding.deviation or not counts(found, self._least):
            return None
        return found


def capsule_name(finding: Finding) -> str:
    """A file name that says what the capsule shows: its signature and model."""
    words = f"{finding.signature} {Path(finding.model).name}"
    return re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.")[:100]


def keep(shrunk: Shrunk, directory: Path) -> tuple[Path, bool]:
    """Write the capsule among the regressions, unless one of the same name is as small. Returns its path, and whether.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    finding = replace(shrunk.capsule.finding, case_id=shrunk.capsule.case.id)
    path = directory / f"{capsule_name(finding)}.json"
    if path.is_file() and size(read_capsule(path).case) <= size(shrunk.capsule.case):
        return path, False
    write_json(path, replace(shrunk.capsule, finding=finding))
    return path, True
