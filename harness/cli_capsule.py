"""The commands of whoever was handed a capsule: replay, shrink, explain, bisect, export. Layer 4, as `harness.cli`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from harness import bisect as bisecting
from harness import explain as explaining
from harness import export as exporting
from harness import hunt, show
from harness.errors import HarnessBug, UserError
from harness.media import thumbnail
from harness.options import (
    StoreOption,
    available,
    built,
    chosen_subjects,
    destination,
    destination_directory,
    progress,
    seconds,
    writable,
)
from harness.replay import Replayed, Target, target, warm, with_models, with_suspect
from harness.replay import replay as replay_all
from harness.session import THUMBNAIL_PX, locate
from harness.store import DEFAULT_STORE, plain, read_capsule
from harness.wording import in_words
from reports import explanation as page

Wanted = Annotated[str, typer.Argument(metavar="CAPSULE|CASE_ID")]
Subjects = Annotated[str, typer.Option(help="Comma-separated; default: those of the capsule.")]
Models = Annotated[
    Path | None,
    typer.Option(help="The checkpoint of a capsule that names a directory elsewhere, or a directory that holds it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def replay(
    targets: Annotated[list[str], typer.Argument(metavar="CAPSULE|CASE_ID ...")],
    subjects: Subjects = "",
    suspect: Annotated[
        str, typer.Option(help="Put this subject in the place of each capsule's suspect: has it the same fault?")
    ] = "",
    models: Models = None,
    store: StoreOption = DEFAULT_STORE,
    json_output: JsonOption = False,
) -> None:
    """Run findings again: FIXED, FAILED or NOT COMPARABLE for each capsule.

    Exit status 1 if one is not known to be fixed, else 4 if the harness or the machine failed on one, else 2 if a file
    could not be read; the others run all the same.
    """
    console = Console(stderr=json_output)
    names = chosen_subjects(subjects, console)
    if suspect:
        available([suspect], console)
        names = (suspect, *names) if names and suspect not in names else names
    readable, unreadable = _readable(targets, store, suspect, models)
    done: list[Replayed] = []
    built(names or [name for entry in readable for name in entry.subjects], console)
    if readable:
        with progress(console) as bar:
            task = bar.add_task("starting subjects", total=len(readable))
            for entry in replay_all(readable, names):
                done.append(entry)
                show.replayed(bar.console, [entry])
                bar.update(task, description=entry.name, advance=1)
    if json_output:
        print(json.dumps(plain([*done, *unreadable]), indent=1))
    ours = HarnessBug.exit_status if any(entry.ours for entry in done) else 0
    unread = UserError.exit_status if unreadable else 0
    raise typer.Exit(1 if any(entry.failed for entry in done) else ours or unread)


def _found(name: str, store: Path, models: Path | None) -> Target:
    """What a name names, with its checkpoint where that is here.

    Raises:
        UserError: no such thing, or no such checkpoint.
    """
    entry = target(name, store)
    if models is not None:
        entry = with_models(entry, models)
    try:
        locate(entry.case.model)
    except UserError as error:
        raise UserError(f"{name}: {error}; --models DIR says where its checkpoint is") from error
    return entry


def _readable(
    names: Sequence[str], store: Path, suspect: str, models: Path | None
) -> tuple[list[Target], list[dict[str, str]]]:
    """What can be replayed; for the rest, one line each that names it."""
    good, bad = [], []
    for name in names:
        try:
            entry = _found(name, store, models)
            good.append(with_suspect(entry, suspect) if suspect else entry)
        except UserError as error:
            print(f"harness: {error}", file=sys.stderr)
            bad.append({"name": name, "status": "UNREADABLE", "detail": str(error)})
    return good, bad


def shrink(
    wanted: Wanted,
    subjects: Subjects = "",
    out: Annotated[Path, typer.Option(help="Directory of the new capsule.")] = hunt.REGRESSIONS,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds to search, without starting subjects.")] = (
        hunt.DEFAULT_TIMEOUT_S
    ),
    models: Models = None,
    store: StoreOption = DEFAULT_STORE,
    json_output: JsonOption = False,
) -> None:
    """Find the smallest case with the same finding, and keep it as a capsule. Ctrl-C keeps the best so far."""
    seconds("--timeout-s", timeout_s)
    destination_directory("--out", out)
    entry = _found(wanted, store, models)
    console = Console(stderr=json_output)
    names = chosen_subjects(subjects, console) or hunt.subjects_needed(entry.finding, entry.subjects)
    built(names, console)
    with progress(console) as bar, warm([entry], names, max(5.0, timeout_s / 4)) as campaign:
        task = bar.add_task(f"starting {', '.join(names)}", total=None)

        def watch(step: hunt.Step) -> None:
            bar.update(task, description=escape(in_words(step.best)), completed=step.accepted, total=step.tried)

        shrunk = hunt.Search(campaign, entry, timeout_s=timeout_s, watch=watch).run()
    kept: list[tuple[Path, bool]] = []
    writable(lambda: kept.append(hunt.keep(shrunk, out)), str(out))
    show.shrunk(console, shrunk, *kept[0])
    if json_output:
        print(json.dumps(plain({**vars(shrunk), "path": str(kept[0][0]), "written": kept[0][1]}), indent=1))
    raise typer.Exit(130 if shrunk.interrupted else 0)


def explain(
    wanted: Wanted,
    subjects: Subjects = "",
    out: Annotated[Path | None, typer.Option(help="Write a page to this HTML file.")] = None,
    models: Models = None,
    store: StoreOption = DEFAULT_STORE,
    json_output: JsonOption = False,
) -> None:
    """Show stage by stage, pair by pair, where a difference enters and how it grows."""
    destination("--out", out)
    entry = _found(wanted, store, models)
    console = Console(stderr=json_output)
    names = chosen_subjects(subjects, console) or entry.subjects
    built(names, console)
    with console.status("running subjects", spinner="dots"), warm([entry], names, deep=True) as campaign:
        explained = explaining.explain(entry, campaign)
    document = plain({name: value for name, value in vars(explained).items() if name != "arrays"})
    show.explained(console, explained)
    if out is not None:
        path = out
        pictures = [thumbnail(image, THUMBNAIL_PX) for image in entry.case.images]
        writable(lambda: console.print(str(page.build(document, explained.arrays, pictures, path))), str(out))
    if json_output:
        print(json.dumps(document, indent=1))


def bisect(
    capsule: Annotated[Path, typer.Argument(metavar="CAPSULE")],
    subject: Annotated[str, typer.Option(help="The capsule's subject whose releases are asked, such as vllm.")],
    good: Annotated[str, typer.Option(help="A release without the finding.")],
    bad: Annotated[str, typer.Option(help="A release with it; older or newer than the good one.")],
    json_output: JsonOption = False,
) -> None:
    """Find the release that introduced a finding, or the one that fixed it.

    Each release gets an environment of its own. Answers are kept in .harness/bisect and not asked for again.
    """
    console = Console(stderr=json_output)
    with console.status(f"asking {subject}", spinner="dots") as status:
        found = bisecting.bisect(
            read_capsule(capsule),
            subject,
            good,
            bad,
            say=lambda text: status.update(escape(text)),
            watch=lambda answer: show.asked(console, answer),
        )
    show.bisected(console, found)
    if json_output:
        print(json.dumps(plain(found), indent=1))


def export(
    wanted: Wanted,
    script: Annotated[bool, typer.Option("--script", help="A Python file that needs the engines alone.")] = False,
    issue: Annotated[bool, typer.Option("--issue", help="Markdown for the engine's issue tracker.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file; default: standard output.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a finding down for people who do not have this harness: as a script, or as an issue."""
    if script == issue:
        raise UserError("say what to write: either --script or --issue")
    capsule = exporting.exportable(wanted, store)
    text = exporting.script(capsule) if script else exporting.issue(capsule)
    if out is None:
        print(text, end="")
    else:
        path = out
        writable(lambda: path.write_text(text, encoding="utf-8"), str(out))
        print(out)
