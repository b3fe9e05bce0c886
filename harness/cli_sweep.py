"""The command `harness sweep`. Layer 4, as `harness.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness import session, show
from harness import sweep as sweeping
from harness.builds import ready
from harness.checkpoint import Checkpoint
from harness.environments import resolve
from harness.options import available, destination, destination_directory, listed, one_of, progress, writable
from harness.spec import SOFT_TOKEN_BUDGETS
from harness.store import plain, write_json


def sweep(
    budget: Annotated[str, typer.Option(help="all, or budgets; comma-separated.")] = "all",
    max_side: Annotated[int, typer.Option(min=1, max=20_000, help="Largest width and height, in px.")] = 1_000,
    samples: Annotated[
        int, typer.Option(min=1, max=100_000_000, help="Recordings shorter than this, at 16 kHz.")
    ] = 500_000,
    subjects: Annotated[str, typer.Option(help="Comma-separated.")] = "hf,vllm,native",
    model: Annotated[str, typer.Option(help="A zoo name or a checkpoint directory.")] = "tiny-e2b",
    out: Annotated[Path, typer.Option(help="Where the disagreements are kept, as Parquet.")] = Path(".harness/sweeps"),
    json_file: Annotated[
        str, typer.Option("--json", help="Write the result here; - is stdout and silences the rest.")
    ] = "",
) -> None:
    """Ask each engine's own counting function for every size: arithmetic only, no engine started.

    Exit status 1 if two subjects part where no deviation says so.
    """
    console = Console(stderr=json_file == "-")
    destination("--json", json_file)
    destination_directory("--out", out)
    budgets = SOFT_TOKEN_BUDGETS if budget == "all" else [_budget(name) for name in listed("--budget", budget)]
    names = listed("--subjects", subjects)
    available(names, console)
    chosen = [ready(subject) for subject in resolve(names)]
    directory = session.locate(model)
    with progress(console) as bar:
        tasks: dict[str, Any] = {}

        def watch(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        swept = sweeping.sweep(chosen, directory, budgets, max_side, samples, watch)
    deviations = sweeping.explained(swept, Checkpoint.open(directory))
    writable(lambda: sweeping.keep(swept, deviations, out), str(out))
    show.sweep(console, swept, deviations, out)
    document = sweeping.document(swept, deviations)
    if json_file == "-":
        print(json.dumps(plain(document), indent=1))
    elif json_file:
        writable(lambda: write_json(Path(json_file), document), json_file)
    raise typer.Exit(1 if (deviations == "").any() or len(swept.audio) else 0)


def _budget(text: str) -> int:
    return int(one_of("--budget", text, tuple(map(str, SOFT_TOKEN_BUDGETS))))
