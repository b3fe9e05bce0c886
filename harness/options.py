"""What the commands share: options, how their values are read, a bar for long work. Layer 4."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness import session
from harness.errors import EngineUnavailable, HarnessBug, UserError
from harness.store import RunStore
from harness.zoo import FEATURE_NAMES, NAMES

_LONGEST_S = 1_000_000
"""Eleven days; poll takes milliseconds in 32 bits, and raises beyond twenty-four."""

StoreOption = Annotated[Path, typer.Option(help="Where runs are kept.")]


def split(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def listed(option: str, text: str) -> tuple[str, ...]:
    """Names between commas, at least one.

    Raises:
        UserError: there is none.
    """
    names = split(text)
    if not names:
        raise UserError(f"{option} {text!r} names nothing; give one name, or several between commas")
    return names


def listed_models(option: str, text: str) -> tuple[str, ...]:
    """Models between commas, of which `variants` and `all` are whole groups of the zoo.

    Raises:
        UserError: there is none.
    """
    groups = {"variants": NAMES, "all": (*NAMES, *FEATURE_NAMES)}
    return tuple(dict.fromkeys(model for name in listed(option, text) for model in groups.get(name, (name,))))


def seconds(option: str, value: float) -> float:
    """A length of time.

    Raises:
        UserError: it has no end, or is no number, or is longer than the system can wait.
    """
    if not (math.isfinite(value) and value <= _LONGEST_S):
        raise UserError(f"{option} {value}: give a number of seconds, at most {_LONGEST_S:,}")
    return value


def destination(option: str, target: str | Path | None) -> None:
    """Refuse a file that could not be written after long work; empty and `-` are no files.

    Raises:
        UserError: it is a directory, or its directory cannot be written.
    """
    if target is None or str(target) in ("", "-"):
        return
    path = Path(target)
    if path.is_dir():
        raise UserError(f"{option} {path}: is a directory; give the name of a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written; is its directory there?")


def destination_directory(option: str, place: Path) -> None:
    """Refuse a directory that could not be made after long work, or read.

    Raises:
        UserError: a file is in its way, or the nearest directory above it that is there cannot be written.
    """
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{option} {place}: {there} is no directory; give another place")
    if not os.access(there, os.W_OK):
        raise UserError(f"{option} {place}: {there} cannot be written; give another place")


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value.

    Raises:
        UserError: it is none of those allowed.
    """
    if value not in allowed:
        raise UserError(f"{option} {value}: must be one of {', '.join(allowed)}")
    return value


def available(names: Sequence[str], console: Console) -> None:
    """Make sure that subjects can run here; what is built for them is shown.

    Raises:
        UserError: an unknown subject, or one that cannot run here.
    """
    with console.status("looking for subjects", spinner="dots") as status:
        session.require_available(names, lambda text: status.update(escape(text)))


def chosen_subjects(text: str, console: Console) -> tuple[str, ...]:
    """Subjects that were asked for by name, which must run here; none where none were.

    Raises:
        UserError: an unknown subject, or one that cannot run here.
    """
    names = listed("--subjects", text) if text else ()
    if names:
        available(names, console)
    return names


def built(names: Sequence[str], console: Console) -> None:
    """Build what subjects of a capsule need, and show it; one that cannot run here is told of with its result."""
    for name in dict.fromkeys(names):
        with suppress(EngineUnavailable):
            available([name], console)


def writable(action: Callable[[], object], target: str) -> None:
    """Write something.

    Raises:
        UserError: the target cannot be written.
    """
    try:
        action()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


@contextmanager
def watched(console: Console) -> Iterator[session.Watch]:
    """A run's progress bar."""
    with progress(console) as bar:
        task = bar.add_task("drawing cases", total=None)

        def watch(step: session.Progress) -> None:
            words = {"generating": "drawing cases", "starting": f"starting {step.text}", "case": step.text}
            bar.update(task, description=words[step.stage], completed=step.done, total=step.total)

        yield watch


def carry_out(kept: RunStore, plan: session.Plan, console: Console) -> None:
    """Run what a run has not run yet; Ctrl-C says how to go on."""
    again = f"harness run --store {kept.path.parent} --resume {kept.run_id}"
    try:
        with watched(console) as watch:
            session.carry_out(kept, plan, watch)
    except KeyboardInterrupt:
        console.print(f"stopped; nothing finished is lost: {again}", soft_wrap=True)
        raise typer.Exit(130) from None
    except HarnessBug as error:
        raise HarnessBug(f"{error}: {again}") from error
