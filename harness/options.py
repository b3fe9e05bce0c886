"""What the commands share: options, how their values are read, a bar for long work. Layer 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness import session
from harness.errors import UserError

StoreOption = Annotated[Path, typer.Option(help="Where runs are kept.")]


def split(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value.

    Raises:
        UserError: it is none of those allowed.
    """
    if value not in allowed:
        raise UserError(f"{option} {value}: must be one of {', '.join(allowed)}")
    return value


def chosen_subjects(text: str) -> tuple[str, ...]:
    """Subjects that were asked for by name, which must run here, or the usual ones, which may be absent.

    Raises:
        UserError: an unknown subject, or one that cannot run here.
    """
    names = split(text)
    if names:
        session.require_available(names)
    return names or session.DEFAULT_SUBJECTS


def writable(action: Callable[[], object], target: str) -> None:
    """Write something.

    Raises:
        UserError: the target cannot be written.
    """
    try:
        action()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


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
