"""A finding for people without this harness: an issue's text, with the script where there is one. Layer 3."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from harness.deviations import load_deviations
from harness.errors import UserError
from harness.export_script import fill, refused, script, versions_of
from harness.replay import target
from harness.schema import PROPERTIES, Capsule, Finding
from harness.store import read_capsule, runs
from harness.wording import in_words

__all__ = ["exportable", "issue", "refused", "script", "without_paths"]


def exportable(name: str, store: Path) -> Capsule:
    """The capsule that a path, or the id of a case with a finding in the store, names.

    Raises:
        UserError: no such thing, or a case without a finding.
    """
    entry = target(name, store)
    if entry.finding is not None:
        return read_capsule(Path(name))
    kept = (path for run in reversed(runs(store)) for path in sorted((run.path / "capsules").glob("*.json")))
    capsule = next((c for c in map(read_capsule, kept) if c.case.id == entry.case.id), None)
    if capsule is None:
        raise UserError(f"case {name} is no finding's example; `harness shrink {name}` makes a capsule of it")
    return capsule


def issue(capsule: Capsule) -> str:
    """Markdown for the tracker of the engine that is suspected."""
    finding, case = capsule.finding, capsule.case
    why = refused(capsule)
    known = next((d for d in load_deviations() if d.name == finding.deviation), None)
    text = fill(
        "issue.md.j2",
        title=_title(finding),
        expected=_expected(finding),
        observed=_observed(finding),
        cause=known.cause if known else "",
        input=f"A prompt of {in_words(case, texts=True)}.",
        case=json.dumps(asdict(replace(case, model=Path(case.model).name)), ensure_ascii=False),
        versions=versions_of(capsule, list(capsule.subjects)),
        dtype=case.dtype or capsule.dtype,
        device=capsule.device,
        model=Path(case.model).name,
        steps="harness replay capsule.json" if why else f"python reproduce.py .harness/zoo/{Path(case.model).name}",
        script="" if why else script(capsule),
        script_refused=f"There is no script that needs the engine alone: {why}" if why else "",
    )
    return without_paths(text)


def _title(finding: Finding) -> str:
    who = finding.suspect if finding.suspect != "undecided" else " and ".join(finding.subjects)
    return f'Gemma 4: {who} breaks "{PROPERTIES[finding.property]}" at {finding.stage}'


def _expected(finding: Finding) -> str:
    limit = f" (limit {finding.limit:g} {finding.unit})" if finding.limit is not None else ""
    return f"{PROPERTIES[finding.property].capitalize()}{limit}."


def _observed(finding: Finding) -> str:
    measured = f"{finding.measured:.6g} {finding.unit}" if finding.measured is not None else "No number"
    compared = f", compared: {', '.join(finding.subjects)}" if len(finding.subjects) > 1 else ""
    return f"{measured} at stage {finding.stage}{compared}. {finding.detail}".strip()


def without_paths(text: str) -> str:
    """Absolute paths of this machine, which an engine's error may name, taken out of prose."""
    return re.sub(r"(?<![\w.:/<])/(?:[\w.\-]+/)+[\w.\-]*", "PATH", text)
