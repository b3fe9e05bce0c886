"""The command `harness nightly`. Layer 4, as `harness.cli`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness import session, show
from harness.errors import EngineUnavailable
from harness.options import (
    StoreOption,
    available,
    carry_out,
    destination,
    destination_directory,
    listed,
    listed_models,
    watched,
    writable,
)
from harness.store import DEFAULT_STORE, RunStore
from reports import frames as reports_frames
from reports import nights, site, summary
from reports.history import History

MATRIX = (*session.DEFAULT_SUBJECTS, "hf@5.17.0", "vllm@0.31.0")
"""What is installed here, and the releases before it, as in tox.ini."""


def nightly(
    subjects: Annotated[str, typer.Option(help="The release matrix; comma-separated.")] = ",".join(MATRIX),
    models: Annotated[
        str, typer.Option(help="all, variants, zoo names, or checkpoint directories; comma-separated.")
    ] = "all",
    cases: Annotated[int, typer.Option(min=1, help="Cases in all.")] = session.PROFILES["nightly"],
    calibrate: Annotated[int, typer.Option(min=0, help="Cases a model that measure noise.")] = session.CALIBRATED[
        "nightly"
    ],
    seed: Annotated[int | None, typer.Option(help="Default: the number of today, so that every night is new.")] = None,
    store: StoreOption = DEFAULT_STORE,
    history: Annotated[Path, typer.Option(help="Where nights are kept.")] = nights.DEFAULT_HISTORY,
    out: Annotated[Path, typer.Option(help="Where the site goes.")] = Path(".harness/site"),
    summary_file: Annotated[str, typer.Option("--summary", help="Write a Markdown summary here.")] = "",
    junit_file: Annotated[str, typer.Option("--junit", help="Write JUnit XML here.")] = "",
    add: Annotated[
        str, typer.Option(metavar="RUN_ID,...", help="Take these runs of the store into the history; run nothing.")
    ] = "",
) -> None:
    """Run the nightly profile over the release matrix and say what is new since the nights before.

    Exit status 1 if a number stepped for the worse or a signature is new, and no deviation explains it.
    """
    console = Console()
    for option, file in (("--summary", summary_file), ("--junit", junit_file)):
        destination(option, file)
    destination_directory("--history", history)
    destination_directory("--out", out)
    if add:
        runs = [RunStore.open(store, run_id) for run_id in listed("--add", add)]
    else:
        plan = session.Plan(
            models=listed_models("--models", models),
            subjects=listed("--subjects", subjects),
            cases=cases,
            calibrate=calibrate,
            seed=datetime.now(UTC).toordinal() if seed is None else seed,
        )
        runs = [_run(plan, store, console)]
    for run in runs:
        frames = reports_frames.load_run(run)
        made = nights.night(frames)
        writable(lambda made=made: nights.add(history, made), str(history))  # type: ignore[misc]
    kept = History(nights.read(history))
    writable(lambda: site.build(frames, out, kept), str(out))
    for target, content in (
        (summary_file, summary.markdown(frames, kept).encode()),
        (junit_file, summary.junit(runs[-1], kept)),
    ):
        if target:
            writable(lambda target=target, content=content: Path(target).write_bytes(content), target)  # type: ignore[misc]
    show.night(console, kept, out / "index.html")
    absent = any(subject["status"] != "ok" for subject in frames.header.get("subjects", {}).values())
    raise typer.Exit(1 if kept.regressions else EngineUnavailable.exit_status if absent and not add else 0)


def _run(plan: session.Plan, store: Path, console: Console) -> RunStore:
    session.check(plan)
    available(plan.subjects, console)
    with watched(console) as watch:
        run = session.start(plan, store, watch)
    carry_out(run, plan, console)
    return run
