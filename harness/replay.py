"""Findings run again: what a capsule or a case id names, subjects kept warm for it, what became of it. Layer 3."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from harness.calibration import beside
from harness.campaign import Campaign, Result
from harness.comparators import Limits, is_ours
from harness.deviations import load_deviations
from harness.environments import known_subjects, resolve
from harness.fleet import Options, fleet
from harness.schema import PROBES, PROPERTIES, SILENT, Case, Finding, Property
from harness.session import DEFAULT_SUBJECTS, locate
from harness.store import find_case, read_capsule


@dataclass(frozen=True)
class Target:
    """A case to run again as it was run before, and the finding that it had, if that is known.

    `subjects` are those that ran it, as far as they are known here.
    """

    name: str
    case: Case
    finding: Finding | None = None
    dtype: str = Options.dtype
    device: str = Options.device
    subjects: tuple[str, ...] = DEFAULT_SUBJECTS

    @property
    def property(self) -> Property | None:
        """The property that has to be checked beside the usual ones."""
        if self.finding is not None:
            return self.finding.property
        return PROBES[self.case.probe.kind] if self.case.probe else None


def target(name: str, store: Path) -> Target:
    """What a capsule's path, or the id of a case in the store, names.

    Raises:
        UserError: no such file and no such case, or a file that is no capsule; the message names it.
    """
    if Path(name).suffix == ".json" or Path(name).exists():
        capsule = read_capsule(Path(name))
        known = known_subjects()
        subjects = tuple(name for name in capsule.subjects if name.partition("@")[0] in known) or DEFAULT_SUBJECTS
        return Target(name, capsule.case, capsule.finding, capsule.dtype, capsule.device, subjects)
    return Target(name, find_case(store, name))


@contextmanager
def warm(
    targets: Sequence[Target], subjects: Sequence[str], timeout_s: float = Options.timeout_s, *, deep: bool = False
) -> Iterator[Campaign]:
    """A campaign with subjects of its own, on the first target's device, that checks what any of the targets needs.

    A deep one records every stage, and runs native and its float64 beside the subjects. Where a finding was judged by a
    measured limit, that limit holds again.
    """
    asked = {*Options.properties, *(entry.property for entry in targets)}
    properties = tuple(prop for prop in PROPERTIES if prop in asked)
    options = Options(targets[0].dtype, targets[0].device, timeout_s, properties, deep)
    others = beside() if deep else []
    with tempfile.TemporaryDirectory() as logs, fleet(resolve(subjects), options, Path(logs), others) as workers:
        campaign = Campaign(workers, locate, load_deviations())
        for entry in targets:
            campaign.kl_limits |= measured_limit(entry)
        yield campaign


def measured_limit(entry: Target) -> dict[tuple[str, str], float]:
    """The limit of a finding of KL, which calibration may have set, by model and compute type."""
    finding, dtype = entry.finding, entry.case.dtype or entry.dtype
    if finding is None or finding.unit != "nats" or not finding.limit or finding.stage == "logprobs":
        return {}
    return {(entry.case.model, dtype): min(finding.limit, Limits.of(dtype).kl_nats)}


@dataclass(frozen=True)
class Replayed:
    """What became of a finding when its case was run again."""

    name: str
    status: Literal["FIXED", "FAILED", "NOT COMPARABLE", "NO FINDING", "FINDINGS"]
    detail: str
    findings: tuple[Finding, ...]
    ours: bool = False
    """The harness or the machine failed on it, and not known otherwise what became of it."""

    @property
    def failed(self) -> bool:
        """Still there, or not known to be gone. A known deviation of a case without a capsule is no failure."""
        if self.status == "FINDINGS":
            return any(not finding.deviation for finding in self.findings)
        return self.status in ("FAILED", "NOT COMPARABLE") and not self.ours


def replay(targets: Sequence[Target], subjects: Sequence[str] = ()) -> Iterator[Replayed]:
    """Run cases again with those subjects, or each with its own.

    They are grouped by subjects, device, model and dtype, so that each model is loaded once.
    """

    def fleet_of(entry: Target) -> tuple[tuple[str, ...], str]:
        return tuple(subjects) or entry.subjects, entry.device

    ordered = sorted(targets, key=lambda entry: (fleet_of(entry), entry.case.model, entry.case.dtype or entry.dtype))
    for (names, _), group in groupby(ordered, key=fleet_of):
        chosen = list(group)
        with warm(chosen, names) as campaign:
            for entry, result in zip(chosen, campaign.run(map(as_measured, chosen)), strict=True):
                answer, broken = replayed(entry, result), any(map(is_ours, result.verdicts))
                broken |= any(observation.outcome == "failed" for observation in result.observations)
                yield replace(answer, ours=broken and answer.status in ("NOT COMPARABLE", "NO FINDING"))


def as_measured(entry: Target) -> Case:
    """The case with its dtype said, so that a campaign of another dtype runs it as it was measured."""
    dtype: Any = entry.case.dtype or entry.dtype
    return replace(entry.case, dtype=dtype)


def same_finding(finding: Finding, found: Collection[Finding], absent: Collection[str] = ()) -> Finding | None:
    """The finding among others.

    It has the same signature; or, where subjects are absent that had a part in it, the votes are other ones, and the
    same property and stage between some of its subjects will do.
    """
    same = [other for other in found if other.signature == finding.signature]
    if not same and absent:
        alike = (other for other in found if (other.property, other.stage) == (finding.property, finding.stage))
        same = [other for other in alike if set(other.subjects) <= set(finding.subjects)]
    return same[0] if same else None


def absent_subjects(finding: Finding, result: Result) -> dict[str, str]:
    """Which subjects of a finding did not run, and why. The reference rule needs none."""
    ran = {o.subject: o for o in result.observations if o.outcome not in SILENT}
    missing = [name for name in finding.subjects if name not in ran and name != "reference"]
    reasons = {o.subject: o.message for o in result.observations}
    return {name: reasons.get(name, "left out") for name in missing}


def replayed(entry: Target, result: Result) -> Replayed:
    """What one result says of its finding, or of a case without one."""
    finding = entry.finding
    if finding is None:
        listed = "; ".join(f"{f.signature} {f.detail}" for f in result.findings)
        status: Any = "FINDINGS" if result.findings else "NO FINDING"
        return Replayed(entry.name, status, listed, result.findings)
    absent = absent_subjects(finding, result)
    if same := same_finding(finding, result.findings, absent):
        return Replayed(entry.name, "FAILED", f"{same.signature}: {same.detail}", result.findings)
    if why := _open_question(finding, result, absent):
        return Replayed(entry.name, "NOT COMPARABLE", why, result.findings)
    others = ", ".join(f.signature for f in result.findings)
    return Replayed(entry.name, "FIXED", f"other findings: {others}" if others else "", result.findings)


def _open_question(finding: Finding, result: Result, absent: dict[str, str]) -> str:
    """Why a finding that did not come back is not known to be gone; empty if it is."""
    needed = {finding.suspect} if finding.suspect in finding.subjects else set(finding.subjects)
    if missing := sorted(needed & absent.keys()):
        return "; ".join(f"{name} did not run: {absent[name]}" for name in missing)
    of_property = [v for v in result.verdicts if v.property == finding.property and {v.left, v.right} & needed]
    # Some stages say nothing when all is well; what else was said of the property then speaks for them.
    judged = [v for v in of_property if v.stage == finding.stage] or of_property
    if unclear := [v for v in judged if v.verdict == "not comparable"]:
        return unclear[0].reason
    silent = finding.stage in ("rounding", "outcome")
    return "" if judged or silent else f"no subject recorded stage {finding.stage}"
