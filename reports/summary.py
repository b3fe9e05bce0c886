"""A night for machines and for the page of a CI job: Markdown, and JUnit XML whose failures are the regressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from harness.store import RunStore
from reports.changes import Regression
from reports.frames import Frames, agreement, grouped_findings
from reports.history import History
from reports.nights import Point
from reports.site import visible

_SHOWN = 30


def markdown(frames: Frames, history: History) -> str:
    """What a person reads first: regressions, then steps that were told before, then what is still there."""
    findings = grouped_findings(frames)
    unexpected = [entry for entry in findings if entry["unexpected_cases"]]
    new = history.regressions
    verdict = f"**{len(new)} new tonight**" if new else "Nothing new tonight"
    lines = [
        "# Gemma 4 conformance, nightly",
        "",
        f"{verdict}: {len(frames.cases):,} cases, {len(unexpected)} unexpected findings, "
        f"{len(findings) - len(unexpected)} known; night {len(history.nights)} of the history, "
        f"run `{frames.run.run_id}`.",
        "",
        *_section("New tonight", [_regression(entry) for entry in new]),
        *_section("Steps of the history", [_step(step) for step in reversed(history.steps)]),
        *_section("Unexpected, still there or new", [_finding(entry) for entry in unexpected]),
        "## Subjects",
        "",
        "| subject | versions |",
        "| --- | --- |",
        *(f"| {_cell(name)} | {_cell(_versions(subject))} |" for name, subject in _subjects(frames).items()),
        "",
        "## Verdicts",
        "",
        "| compared | agree | differ | not comparable |",
        "| --- | ---: | ---: | ---: |",
        *_verdicts(frames),
        "",
    ]
    return "\n".join(lines)


def _section(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"- and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"## {title}", "", *(f"- {entry}" for entry in entries[:_SHOWN]), *more, ""]


def _regression(entry: Regression) -> str:
    release = f"; came in: {_cell('; '.join(entry.versions))}" if entry.versions else ""
    where = f"{_cell(entry.what)} on {_cell(entry.series.model)}"
    return f"{where}: {_code(entry.series.name)}, {_cell(entry.detail)}{release}"


def _step(step: Any) -> str:
    direction = "known" if step.known else "worse" if step.worse else "better"
    release = _cell("; ".join(step.versions)) or "no package changed"
    return f"night {step.night + 1}, {direction}: {_code(step.series.name)} on {_cell(step.series.model)} ({release})"


def _finding(entry: Any) -> str:
    return f"{_code(entry['signature'])} on {_cell(entry['model'])}, {entry['cases']} cases: {_code(entry['replay'])}"


def _subjects(frames: Frames) -> dict[str, Any]:
    found: dict[str, Any] = frames.header.get("subjects", {})
    return found


def _versions(subject: Any) -> str:
    return str(subject["reason"] or ", ".join(f"{name} {version}" for name, version in subject["version"].items()))


def _verdicts(frames: Frames) -> list[str]:
    counted = agreement(frames).T.groupby("verdict").sum().T
    kinds = ("agree", "differ", "not comparable")
    return [
        f"| {_cell(pair)} | {' | '.join(str(int(row[kind])) for kind in kinds)} |" for pair, row in counted.iterrows()
    ]


def _cell(text: Any) -> str:
    """Strangers' words as words: nothing in them is Markdown or ends a cell."""
    plain = " ".join(str(visible(str(text))).split())
    for character in "\\`*_{}[]<>|#!~":
        plain = plain.replace(character, f"\\{character}")
    return plain[:400]


def _code(text: Any) -> str:
    """Strangers' words in a code span, which only a backtick could end."""
    plain = " ".join(str(visible(str(text))).split()).replace("`", "'").replace("|", "/")
    return f"`{plain[:200]}`"


def junit(run: RunStore, history: History) -> bytes:
    """A test case for each number and signature that is followed; those that regressed tonight failed.

    What a written cause explains is skipped, with that reason, and so is what earlier nights had already.
    """
    failing: dict[Any, list[Regression]] = {}
    for entry in history.regressions:
        failing.setdefault(entry.series, []).append(entry)
    points = {point.series: point for point in (history.nights[-1].points if history.nights else ())}
    suite = ET.Element("testsuite", name="gemma4-conformance nightly", id=run.run_id)
    skipped = 0
    for series in dict.fromkeys([*points, *failing]):
        where = f"{series.model}.{'+'.join(series.subjects)}"
        case = ET.SubElement(suite, "testcase", classname=_xml(where), name=_xml(series.name))
        if (why := _skip(points.get(series))) and series not in failing:
            ET.SubElement(case, "skipped", message=why)
            skipped += 1
        for entry in failing.get(series, []):
            failure = ET.SubElement(case, "failure", message=_xml(f"{entry.what}: {entry.detail}"))
            failure.text = _xml("\n".join(entry.versions) or "no package of its subjects changed")
    suite.attrib |= {"tests": str(len(suite)), "failures": str(len(failing)), "errors": "0", "skipped": str(skipped)}
    text: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text


def _skip(point: Point | None) -> str:
    if point is None or not point.series.signature:
        return ""
    return "a written cause explains it" if point.known else "earlier nights had it"


def _xml(text: str) -> str:
    """XML forbids control characters, even escaped."""
    return str(visible(text))
