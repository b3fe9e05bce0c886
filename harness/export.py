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
from harness.schema import PROPERTIES, Capsule, Case, Finding
from harness.store import read_capsule, runs

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
        input=_input(case),
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


def _input(case: Case) -> str:
    """The input in a sentence."""
    images = [f"a {i.width_px} x {i.height_px} px {i.mode} image ({i.pattern})" for i in case.images]
    audios = [f"a recording of {a.samples} samples at {a.rate_hz} Hz" for a in case.audios]
    videos = [f"a video of {v.frames} frames of {v.width_px} x {v.height_px} px" for v in case.videos]
    texts = [f"the text {part.text!r}" for part in case.parts if part.text]
    expanded = " with its placeholders expanded already" if any(part.expanded for part in case.parts) else ""
    probe = f", taken once more by probe `{case.probe.kind}`" if case.probe else ""
    used = [f"a tool {case.tool.name!r} that was called"] if case.tool else []
    things = ", ".join([*images, *audios, *videos, *texts, *used])
    return f"A prompt of {things}{expanded}, budget {case.max_soft_tokens} soft tokens{probe}."


def without_paths(text: str) -> str:
    """Absolute paths of this machine, which an engine's error may name, taken out of prose."""
    return re.sub(r"(?<![\w.:/<])/(?:[\w.\-]+/)+[\w.\-]*", "PATH", text)
