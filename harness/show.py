"""Results as a person reads them in a terminal. Layer 4: Rich tables only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.bisect import Asked, Bisected
from harness.comparisons import is_explained
from harness.deviations import Deviation
from harness.doctor import Examined, Verified
from harness.explain import Explanation, PairExplanation, StageRow
from harness.hunt import Shrunk
from harness.replay import Replayed
from harness.schema import PROPERTIES
from harness.sweep import Swept
from harness.transplant import Graft, Transplant
from harness.wording import in_words
from reports.frames import VERDICTS, Frames, agreement
from reports.history import History

_RELATIVE = "relative error"
_MARKS = dict(zip(VERDICTS, ("[green]{}[/]", "[red]{}[/]", "[dim]{}[/]"), strict=True))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _plain_table(name: str, *numbers: str) -> Table:
    """A table without lines, which fits 80 columns: a name, and short numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(name, no_wrap=True)
    for column in numbers:
        table.add_column(column, overflow="fold")
    return table


def run(console: Console, frames: Frames, document: dict[str, Any], stale: Sequence[str], page: Path) -> None:
    """The agreement matrix, the findings, what to do next."""
    _print_matrix(console, frames)
    _print_comparisons(console, document["comparisons"])
    if document["findings"]:
        _print_findings(console, document["findings"], document["cases"])
    absent = {name: s["reason"] for name, s in document["subjects"].items() if s["status"] != "ok"}
    for name, reason in absent.items():
        console.print(f"[yellow]{name} did not run:[/] {escape(reason)}")
    for entry in document["failures"]:
        _line(
            console, f"[bold red]the harness or the machine failed,[/] {entry['times']} times: {escape(entry['what'])}"
        )
    for name in stale:
        console.print(f"[yellow]deviation {name} no longer holds:[/] its cases ran and agreed; remove it")
    timing = document["timing"]
    unexpected = sum(entry["unexpected_cases"] > 0 for entry in document["findings"])
    console.print(
        f"{document['cases']} cases in {timing['wall_s']:.1f} s, {timing['startup_s']:.1f} s of it starting engines; "
        f"[bold]{unexpected} unexpected[/], {len(document['findings']) - unexpected} known findings"
    )
    console.print(f"run {document['run_id']}; page:", style="dim")
    console.print(str(page), soft_wrap=True)


def forecasts(console: Console, frame: pd.DataFrame) -> None:
    """One line a pair: what the masks and clips of training stacks would touch, were the left to generate."""
    total = frame.groupby(["left", "right", "rule", "level"], sort=False)[["n", "dropped"]].sum().reset_index()
    total["pair"] = total["left"] + " -> " + total["right"]
    for pair, rows in total.groupby("pair", sort=False):
        hit = [f"{r.rule} {r.dropped:,} of {r.n:,} {r.level}s" for r in rows[rows["dropped"] > 0].itertuples()]
        _line(console, escape(f"RL forecast {pair!s}: {'; '.join(hit) or 'no mask or clip acts'}"))


def night(console: Console, history: History, page: Path) -> None:
    """What is new tonight, and the steps that nights before had."""
    for entry in history.regressions:
        came = f"; came in: {'; '.join(entry.versions)}" if entry.versions else ""
        what = f"{entry.what} on {entry.series.model}: {entry.series.name}, {entry.detail}{came}"
        _line(console, f"[bold red]new[/] {escape(what)}")
    for step in history.steps:
        colour = "dim" if step.known else "red" if step.worse else "green"
        release = "; ".join(step.versions) or "no package changed"
        what = f"{step.series.name} on {step.series.model} ({release})"
        _line(console, f"[{colour}]night {step.night + 1}[/] {escape(what)}")
    console.print(f"night {len(history.nights)}, [bold]{len(history.regressions)} new[/]; page:")
    console.print(str(page), soft_wrap=True)


def unmet(console: Console, names: Sequence[str]) -> None:
    """Deviations of which a run says nothing."""
    if names:
        console.print(f"deviations that no case met: {', '.join(names)}", style="dim")


def _print_matrix(console: Console, frames: Frames) -> None:
    """A row a property, a column a pair: always all three counts, so that they are told apart by their places too."""
    counted = agreement(frames)
    table = _plain_table("", *map(str, counted.index))
    for prop in PROPERTIES:
        if counted[prop].to_numpy().any():
            table.add_row(prop, *(_counts(row[prop]) for _, row in counted.iterrows()))
    _line(console, f"[bold]Verdicts:[/] {' '.join(mark.format(kind) for kind, mark in _MARKS.items())}")
    console.print(table)
    _line(console, f"[dim]{'; '.join(f'{name} {promise}' for name, promise in PROPERTIES.items())}[/]")


def _counts(row: pd.Series[int]) -> str:
    return " ".join(mark.format(row[kind]) for kind, mark in _MARKS.items()) if row.any() else ""


def _print_comparisons(console: Console, comparisons: Sequence[dict[str, Any]]) -> None:
    """What differs by more than noise, over all cases of a model; of the rest, how much there is."""
    if not comparisons:
        _line(console, "[dim]no noise was measured, so nothing is said of all cases together: --calibrate N does[/]")
        return
    differing = [row for row in comparisons if row["verdict"] == "differ"]
    known = [row for row in differing if is_explained(row["reason"])]
    for row in differing:
        if row not in known:
            effect = f"{row['effect']:.2g} {row['unit']} (95 %: {row['ci_low']:.2g} to {row['ci_high']:.2g})"
            numbers = f"{effect}, floor {row['floor']:.2g}, q {row['q_value']:.2g}"
            what = f"{row['left']} - {row['right']} on {row['model']}, {row['stage']}: {numbers}; {row['reason']}"
            _line(console, f"[red]beyond noise[/] {escape(what)}")
    for pair, stage in dict.fromkeys(((row["left"], row["right"]), row["stage"]) for row in known):
        same = [row for row in known if ((row["left"], row["right"]), row["stage"]) == (pair, stage)]
        most = max(same, key=lambda row: float(row["effect"]))
        what = f"{' - '.join(pair)}, {stage} on {', '.join(row['model'] for row in same)}"
        _line(console, escape(f"beyond noise, with known causes: {what}; at most {most['effect']:.2g} {most['unit']}"))
    counts = {kind: sum(row["verdict"] == kind for row in comparisons) for kind in VERDICTS}
    _line(console, f"over cases: {', '.join(_MARKS[kind].format(f'{n} {kind}') for kind, n in counts.items())}")


def _print_findings(console: Console, findings: Sequence[dict[str, Any]], cases: int) -> None:
    """Unexpected findings one by one; known ones by their cause."""
    for entry in findings:
        if entry["deviation"]:
            continue
        measured = "" if entry["measured"] is None else f"{entry['measured']:.3g} {entry['unit']}"
        limit = "" if entry["limit"] is None else f", limit {entry['limit']:g}"
        what = (
            f"{entry['signature']} on {entry['model']}, {entry['cases']} of {cases} cases, suspect {entry['suspect']}"
        )
        _line(console, f"[bold red]unexpected[/] {escape(what)}")
        _line(console, f"  {escape((measured + limit).lstrip(', ') or entry['detail'])}")
        _line(console, f"  {escape(entry['replay'])}")
    for name in dict.fromkeys(entry["deviation"] for entry in findings if entry["deviation"]):
        known = [entry for entry in findings if entry["deviation"] == name]
        models = ", ".join(dict.fromkeys(entry["model"] for entry in known))
        signatures = ", ".join(dict.fromkeys(entry["signature"] for entry in known))
        _line(console, f"known [bold]{escape(name)}[/] on {escape(models)}: {escape(signatures)}")


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def replayed(console: Console, results: Sequence[Replayed]) -> None:
    """One line a capsule."""
    colours = {"FIXED": "green", "NO FINDING": "green", "FAILED": "red", "FINDINGS": "red", "NOT COMPARABLE": "yellow"}
    for entry in results:
        colour = colours[entry.status]
        console.print(f"[{colour}]{entry.status}[/] {escape(entry.name)} {escape(entry.detail)}", soft_wrap=True)


def shrunk(console: Console, result: Shrunk, path: Path, written: bool) -> None:
    """What a search came to, and the command that replays it."""
    finding = result.capsule.finding
    _line(console, f"[bold]{escape(finding.signature)}[/] on {escape(finding.model)}: {escape(finding.detail)}")
    _line(console, f"  from {escape(in_words(result.original))}")
    _line(console, f"  to   {escape(in_words(result.capsule.case))}")
    _line(
        console,
        f"  {result.accepted} steps of {result.tried} cases in {result.seconds:.1f} s; {escape(result.why)}",
    )
    if not written:
        _line(console, "[yellow]not written:[/] the capsule of that name is as small")
    _line(console, f"  uv run harness replay {escape(str(path))}")


def asked(console: Console, answer: Asked) -> None:
    """One line a release."""
    colours = {"good": "green", "bad": "red", "another": "yellow", "unknown": "dim"}
    words = {"another": "another failure", "unknown": "could not be asked"}.get(answer.status, answer.status)
    kept = " (remembered)" if answer.remembered else ""
    _line(console, f"{escape(answer.version)} [{colours[answer.status]}]{words}[/]{kept} {escape(answer.detail)}")


def bisected(console: Console, result: Bisected) -> None:
    """Introduced in, or fixed in."""
    count = f"{len(result.asked)} of {result.releases} releases asked"
    what = f"{result.change} in {result.subject} {result.since}, not yet in {result.before}"
    _line(console, f"[bold]{escape(what)}[/]; {escape(result.signature)}, {count}")
    if result.fails_otherwise:
        _line(console, "[yellow]the release without this finding fails in another way[/]")
    if result.unknown:
        _line(console, f"[yellow]could not be asked:[/] {escape(', '.join(result.unknown))}")


def explained(console: Console, result: Explanation) -> None:
    """A table of stages for each pair, and what enters where."""
    _line(console, f"[bold]{result.status}[/] {escape(result.name)}: {escape(in_words(result.case))}")
    for subject, outcome in result.outcomes.items():
        if outcome != "ok":
            _line(console, f"[yellow]{escape(subject)}[/] {escape(outcome)}")
    evidence = result.evidence
    _line(console, f"who is wrong: [bold]{escape(evidence.wrong)}[/]")
    for reason in evidence.reasons:
        _line(console, f"  {escape(reason)}")
    for moved in result.transplants:
        if moved.main is not None:
            _print_transplanted(console, moved, moved.main)
    for pair in result.pairs:
        _print_stages(console, pair)
        for role in pair.roles:
            _line(
                console,
                f"  KL of {role.positions} x {role.role}: mean {role.mean:.3g}, largest {role.largest:.3g} nats",
            )


def _print_transplanted(console: Console, moved: Transplant, main: Graft) -> None:
    """Which share of a KL enters at which stage; stages at which nothing does are left out."""
    words = f"{main.enters:.0%} of the KL of {moved.kl:.2g} nats enters at {main.stage}"
    _line(console, f"[bold]{escape(moved.other)} put into native:[/] {escape(words)}")
    table = _plain_table("with stages up to", "KL left, nats", "removed", "enters here")
    for graft in moved.grafts:
        if abs(graft.enters) >= 0.005:
            table.add_row(graft.stage, f"{graft.kl_left:.2g}", f"{graft.removed:.1%}", f"{graft.enters:.1%}")
    console.print(table)


def _print_stages(console: Console, pair: PairExplanation) -> None:
    """A line a stage: how far apart, how much further than at the stage before, what rounding explains, the verdict."""
    first = f"first beyond its limit: {pair.first}" if pair.first else "no stage beyond its limit"
    enters = f", beyond noise: {pair.enters}" if pair.enters else ""
    _line(console, f"[bold]{escape(f'{pair.left} - {pair.right}')}:[/] {escape(first + enters)}")
    table = _plain_table("stage", "largest abs.", "rel.", "x before", "noise", "verdict")
    for row in pair.stages:
        numbers = ["" if n is None else f"{n:.3g}" for n in (row.max_absolute, row.max_relative, row.growth, row.noise)]
        table.add_row(row.stage, *numbers, _verdict(row))
    console.print(table)


def _verdict(row: StageRow) -> str:
    """The verdict with what it rests on, unless that is the relative error, which has a column of its own."""
    colour = {"agree": "green", "differ": "red"}.get(row.verdict, "dim")
    measured = "" if row.measured is None or row.unit == _RELATIVE else f" {row.measured:.3g} {row.unit}"
    limit = f" > {row.limit or 0:.3g}" if row.verdict == "differ" and row.measured is not None else ""
    words = measured + limit or f" {row.detail}"
    return f"[{colour}]{row.verdict}[/]{escape(words).rstrip()}"


def subjects(console: Console, examined: Sequence[Examined]) -> None:
    """Which subjects run here."""
    table = _table("Subjects", "subject", "runs here", "what it can do; versions, or why not")
    for entry in examined:
        words = entry.reason or ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        lines = [entry.subject.about, entry.subject.note, words]
        runs = "[red]no[/]" if entry.reason else "[green]yes[/]"
        table.add_row(entry.subject.name, runs, escape("\n".join(filter(None, lines))))
    console.print(table)


def verified(console: Console, results: Sequence[Verified]) -> None:
    """How checkpoints arrived in subjects."""
    table = _table(
        "Checkpoints", "model", "subject", "missing", "unexpected", "re-initialised", "not used", "load_s", ""
    )
    for entry in results:
        report = entry.report
        lists = (report.missing, report.unexpected, report.reinitialised, report.unused)
        words = "; ".join(report.unchecked)
        verdict = words or "[green]sound[/]" if entry.sound else f"[red]{escape(entry.reason or _first(lists))}[/]"
        table.add_row(
            entry.model, entry.subject, *(str(len(names)) for names in lists), f"{report.load_s:.2f}", verdict
        )
    console.print(table)


def _first(lists: Sequence[Sequence[str]]) -> str:
    return next((names[0] for names in lists if names), "")


def zoo(console: Console, described: Sequence[dict[str, Any]]) -> None:
    """What the tiny checkpoints are."""
    columns = [name for name in described[0] if name != "architecture"]
    table = _table("Zoo", *columns)
    for entry in described:
        table.add_row(*(f"{entry[name]:,}" if isinstance(entry[name], int) else str(entry[name]) for name in columns))
    console.print(table)


def deviations(console: Console, known: Sequence[Deviation]) -> None:
    """What is expected to differ."""
    table = _table("Known deviations", "name", "signatures", "models", "versions", "cause", "link")
    for entry in known:
        versions = ", ".join(f"{name} {spec}" for name, spec in entry.versions.items())
        words = (
            entry.name,
            ", ".join(entry.signatures),
            ", ".join(entry.has) or ", ".join(entry.models),
            versions,
            entry.cause,
            entry.link,
        )
        table.add_row(*map(escape, words))
    console.print(table)


_ROWS = 20


def sweep(console: Console, swept: Swept, deviations: pd.Series[str], out: Path) -> None:
    """The smallest disagreements, and totals; the rest is in the files."""
    images = swept.images.assign(deviation=deviations)
    smallest = (
        images.assign(area=images["width_px"] * images["height_px"]).nsmallest(_ROWS, "area").drop(columns="area")
    )
    for title, frame in (("Images", smallest), ("Recordings", swept.audio.head(_ROWS))):
        if len(frame):
            _line(console, f"[bold]{title} on which subjects part: the smallest {len(frame)}[/]")
            table = _plain_table(*map(str, frame.columns))
            for row in frame.itertuples(index=False):
                table.add_row(*(escape(str(value)) for value in row))
            console.print(table)
    rates = ", ".join(f"{name} {rate:,.0f} calls/s" for name, rate in swept.calls_per_s.items())
    console.print(
        f"{swept.compared:,} counts compared in {swept.wall_s:.1f} s ({rates} and process); "
        f"[bold]{len(images):,} images[/] and {len(swept.audio):,} recordings on which subjects part, "
        f"{int((deviations == '').sum()):,} of the images by no known deviation"
    )
    sensitive = ", ".join(f"{count:,} at budget {budget}" for budget, count in swept.sensitive.items())
    console.print(f"the reference rule alone loses tokens to rounding: {sensitive}", style="dim")
    console.print(str(out), soft_wrap=True)
