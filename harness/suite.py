"""The conformance suite's view of a campaign: examine a case, require a property. Layer 4; used by conftest.py."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)

from harness.campaign import Campaign, Result
from harness.deviations import DIFFERING, judged_in, load_deviations
from harness.environments import resolve
from harness.fleet import Fleet, Options
from harness.hunt import capsule_name
from harness.schema import Case, Finding, Property, VerdictKind
from harness.session import capsule_of, locate
from harness.store import write_json

EXAMPLES = Path(".harness/hypothesis")
"""Hypothesis' example database."""

FAILURES = Path(".harness/failures")
"""Capsules of failing tests, one a signature and model; the last one of a Hypothesis test is its smallest."""


def example_database(shared: str) -> ExampleDatabase:
    """Failing examples of this machine, and those of another where there are any."""
    own = DirectoryBasedExampleDatabase(EXAMPLES)
    return MultiplexedDatabase(own, ReadOnlyDatabase(DirectoryBasedExampleDatabase(shared))) if shared else own


class Suite:
    """Warm subjects for a whole test session, and which deviations explained something."""

    def __init__(self, subjects: Sequence[str], options: Options) -> None:
        """Describe the subjects; their processes start with the first case."""
        self.options = options
        self._logs = tempfile.TemporaryDirectory()
        self._fleet = Fleet(resolve(subjects), options, Path(self._logs.name))
        self._campaign = Campaign(self._fleet, locate, load_deviations())
        self.explained: list[Finding] = []
        self._applied: set[str] = set()
        self._explained_by: set[str] = set()
        self._kinds: Counter[VerdictKind] = Counter()
        self._required: list[Property] = []
        self.open: Counter[tuple[Property, str]] = Counter()

    def examine(self, case: Case) -> Result:
        """Run one case through every subject and compare."""
        (result,) = self._campaign.run([case])
        rows = [vars(verdict) for verdict in result.verdicts]
        judged, differing = judged_in(rows), judged_in(rows, DIFFERING)
        ran, device, features = self._fleet.described, self.options.device, self._campaign.features
        for deviation in self._campaign.deviations:
            tried = partial(deviation.tried, case, ran=ran, device=device, features=features)
            if deviation.always and tried(judged) and not tried(differing):
                self._applied.add(deviation.name)
        self._explained_by.update(finding.deviation for finding in result.findings)
        return result

    def require(self, result: Result, prop: Property) -> None:
        """Fail on a finding of this property that no deviation explains; remember those that one explains.

        What was not comparable is counted by its reason.

        Raises:
            AssertionError: what was measured, the limit, and the suspect.
        """
        judged = [verdict for verdict in result.verdicts if verdict.property == prop]
        self._required.append(prop)
        self._kinds.update(verdict.verdict for verdict in judged)
        self.open.update((prop, verdict.reason) for verdict in judged if verdict.verdict == "not comparable")
        found = [finding for finding in result.findings if finding.property == prop]
        unexpected = [finding for finding in found if not finding.deviation]
        assert not unexpected, "\n".join(self._message(finding, result.case) for finding in unexpected)
        self.explained += found

    def take_explained(self) -> list[Finding]:
        """The explained findings since the last call."""
        taken, self.explained = self.explained, []
        return taken

    def take_uncompared(self) -> str:
        """Why nothing was compared since the last call although a property was required; empty if something was."""
        kinds, required = self._kinds, self._required
        self._kinds, self._required = Counter(), []
        if not required or kinds["agree"] or kinds["differ"]:
            return ""
        reasons = [reason for (prop, reason), _ in self.open.most_common() if prop in required]
        return (
            f"{', '.join(sorted(set(required)))}: {reasons[0] if reasons else 'no subject recorded what it is about'}"
        )

    @property
    def stale(self) -> list[str]:
        """Deviations that applied to a case of this session and explained nothing in any."""
        return sorted(self._applied - self._explained_by)

    def holds(self, name: str) -> bool | None:
        """Whether a deviation explained something in this session; None if no case met it that it always shows in."""
        if name in self._explained_by:
            return True
        return False if name in self._applied else None

    def close(self) -> None:
        """End the subjects."""
        self._fleet.close()
        self._logs.cleanup()

    def _message(self, finding: Finding, case: Case) -> str:
        """What was measured, and the commands that go on from here: the capsule that they name is kept."""
        number = "" if finding.measured is None else f"{finding.measured:.6g} {finding.unit}, limit {finding.limit:g}; "
        FAILURES.mkdir(parents=True, exist_ok=True)
        path = FAILURES / f"{capsule_name(finding)}.json"
        write_json(path, capsule_of(finding, case, self._fleet))
        commands = "\n".join(f"  uv run harness {command} {path}" for command in ("replay", "shrink", "explain"))
        what = f"{finding.signature}: {number}{finding.detail} [suspect {finding.suspect}, case {case.id}: {case}]"
        return f"{what}\n{commands}"
