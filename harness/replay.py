"""Findings run again: what a capsule or a case id names, subjects kept warm for it, what became of it. Layer 3."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from harness.errors import UserError
from harness.fleet import Options, fleet
from harness.schema import PROBES, PROPERTIES, SILENT, Case, Finding, Property
from harness.session import DEFAULT_SUBJECTS, locate, plan_of
from harness.store import RunStore, find_case, read_capsule


@dataclass(frozen=True)
class Target:
    """A case to run again as it was run before, and the finding that it had, if that is known.

    `subjects` are those that ran it, as far as they are known here; `unknown` are the others.
    """

    name: str
    case: Case
    finding: Finding | None = None
    dtype: str = Options.dtype
    device: str = Options.device
    subjects: tuple[str, ...] = DEFAULT_SUBJECTS
    unknown: tuple[str, ...] = ()
    kl_limit_nats: float | None = None
    """Of the run that judged it, where no finding says it."""

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
        ran = _known_here(capsule.subjects)
        return Target(name, capsule.case, capsule.finding, capsule.dtype, capsule.device, *ran)
    run, case = find_case(store, name)
    plan = plan_of(run)
    ran = _known_here(plan.subjects)
    return Target(name, case, None, plan.dtype, plan.device, *ran, kl_limit_nats=_kl_limit(run, case))


def _known_here(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that are subjects here too, the usual ones where none is; and those that are not."""
    known, asked = known_subjects(), tuple(names)
    here = tuple(name for name in asked if name.partition("@")[0] in known)
    return here or DEFAULT_SUBJECTS, tuple(name for name in asked if name not in here)


def _kl_limit(run: RunStore, case: Case) -> float | None:
    """The limit in nats by which a run judged the KL of a case; None where it did not."""
    rows = run.frame("verdicts", ["case_id", "property", "stage", "limit"], {})
    judged = rows[(rows["case_id"] == case.id) & (rows["property"] == "P6") & (rows["stage"] == "hidden")]
    limits = judged["limit"].dropna()
    return float(limits.min()) if len(limits) else None


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
    if entry.kl_limit_nats is not None:
        return {(entry.case.model, dtype): min(entry.kl_limit_nats, Limits.of(dtype).kl_nats)}
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
                asked = replace(entry, unknown=()) if subjects else entry
                answer, broken = replayed(asked, result), any(map(is_ours, result.verdicts))
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
        if entry.unknown and not result.findings:
            why = (
                f"{', '.join(entry.unknown)} ran it and is no subject here: add it to subjects.toml, or give --subjects"
            )
            return Replayed(entry.name, "NOT COMPARABLE", why, ())
        status: Any = "FINDINGS" if result.findings else "NO FINDING"
        return Replayed(entry.name, status, listed, result.findings)
    absent = absent_subjects(finding, result)
    if same := same_finding(finding, result.findings, absent):
        return Replayed(entry.name, "FAILED", f"{same.signature}: {same.detail}", result.findings)
    if why := _open_question(finding, result, absent):
        return Replayed(entry.name, "NOT COMPARABLE", why, result.findings)
    others = ", ".join(f.signature for f in result.findings)
    return Replayed(entry.name, "FIXED", f"other findings: {others}" if others else "", result.findings)


def _needed(finding: Finding) -> set[str]:
    """Without whom nothing is known of a finding: its suspect, or all where there is none."""
    return {finding.suspect} if finding.suspect in finding.subjects else set(finding.subjects)


def _without(needed: Collection[str], absent: Mapping[str, str]) -> str:
    return "; ".join(f"{name} did not run: {absent[name]}" for name in sorted({*needed} & absent.keys()))


def not_asked(finding: Finding, result: Result) -> str:
    """Who did not run without whom nothing is known of a finding, and why; empty if they all did."""
    return _without(_needed(finding), absent_subjects(finding, result))


def renamed(finding: Finding, old: str, new: str) -> Finding:
    """The finding with another name for one of its subjects."""

    def rename(name: str) -> str:
        return new if name == old else name

    prop, stage, who, *rest = finding.signature.split("/", 3)
    signature = "/".join((prop, stage, "+".join(map(rename, who.split("+"))), *rest))
    subjects = tuple(map(rename, finding.subjects))
    return replace(finding, signature=signature, subjects=subjects, suspect=rename(finding.suspect))


def with_suspect(entry: Target, name: str) -> Target:
    """The target with another subject in the place of its suspect: does it have the same fault?

    Raises:
        UserError: no finding, or one that accuses no subject.
    """
    finding = entry.finding
    if finding is None or finding.suspect not in finding.subjects:
        who = finding.suspect if finding else "none, since it is no capsule"
        raise UserError(f"{entry.name} has no suspect that {name} could stand for: {who}; leave out --suspect")
    others = tuple(subject for subject in entry.subjects if subject not in (finding.suspect, name))
    return replace(entry, finding=renamed(finding, finding.suspect, name), subjects=(name, *others))


def with_models(entry: Target, directory: Path) -> Target:
    """The target with its checkpoint, where that is a directory and no zoo model, looked for in another place.

    `directory` is the checkpoint, or holds one of the same name.

    Raises:
        UserError: it is neither.
    """
    name = Path(entry.case.model).name
    if entry.case.model == name:  # Of the zoo, which is built anywhere.
        return entry
    places = [place for place in (directory / name, directory) if (place / "config.json").is_file()]
    if not places:
        raise UserError(f"--models {directory}: is no checkpoint and has none by the name of {name}")
    model = str(places[0])
    finding = replace(entry.finding, model=model) if entry.finding else None
    return replace(entry, case=replace(entry.case, model=model), finding=finding)


def _open_question(finding: Finding, result: Result, absent: dict[str, str]) -> str:
    """Why a finding that did not come back is not known to be gone; empty if it is."""
    needed = _needed(finding)
    if missing := _without(needed, absent):
        return missing
    of_property = [v for v in result.verdicts if v.property == finding.property and {v.left, v.right} & needed]
    # Some stages say nothing when all is well; what else was said of the property then speaks for them.
    judged = [v for v in of_property if v.stage == finding.stage] or of_property
    if unclear := [v for v in judged if v.verdict == "not comparable"]:
        return unclear[0].reason
    silent = finding.stage in ("rounding", "outcome")
    return "" if judged or silent else f"no subject recorded stage {finding.stage}"
