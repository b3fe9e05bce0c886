"""Environments of subjects: uv builds each once, into .harness/envs. Layer 2.

A directory there is named by what is in it. It is built under a lock, so that of several builders one works and the
others wait; it counts once its engine could be imported, which a file in it says. What a killed builder left is
built anew. Whoever runs a worker in it holds the lock too, shared, so that nobody removes it meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement

from harness.environments import MODULES, Recipe, Subject, unavailable_because
from harness.errors import EngineUnavailable

ENVS = Path(".harness/envs")

_BESIDE_ENGINE = ("numpy", "safetensors")
"""All that a worker needs beside its engine."""

_DONE = "harness.json"
_REASON_CHARACTERS = 600
_NOT_FOR_UV = ("UV_OVERRIDE", "UV_CONSTRAINT", "VIRTUAL_ENV", "PYTHONPATH")
"""Variables of the environment that the harness runs in, which say nothing about another one."""

Say = Callable[[str], object]
"""Takes a line about what is going on."""


def directory(subject: Subject, root: Path = ENVS) -> Path:
    """Where the environment of a subject with a recipe is, or will be.

    It is another one when a file changes that the recipe names: a wheel that was built again at the same path.
    """
    assert subject.recipe is not None
    described = {**asdict(subject.recipe), "engine": subject.engine, "python": _python(subject.recipe)}
    lines = (*subject.recipe.requirements, *subject.recipe.no_deps)
    if local := {line: _content(path, editable=_is_editable(line)) for line in lines if (path := _local(line))}:
        described["local"] = local
    return root.resolve() / hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def is_built(subject: Subject, root: Path = ENVS) -> bool:
    """Whether a subject can start without building anything."""
    return subject.recipe is None or (directory(subject, root) / _DONE).is_file()


def ready(subject: Subject, say: Say = lambda _: None, root: Path = ENVS) -> Subject:
    """The subject with the interpreter that has its packages; they are installed first where they are not.

    Raises:
        EngineUnavailable: they cannot be installed, or the engine cannot be imported; the message has uv's reason.
    """
    if why := unavailable_because(subject):
        raise EngineUnavailable(f"subject {subject.name} cannot run here: {why}")
    if subject.recipe is None:
        return subject
    place = directory(subject, root)
    if subject.note:
        say(f"{subject.name}: {subject.note}")
    if not is_built(subject, root):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place, fcntl.LOCK_EX, lambda: say(f"{subject.name}: waiting for another builder")):
            if not is_built(subject, root):
                _build(subject, place, say)
    python = str(place / "bin" / "python")
    modules = os.pathsep.join(filter(None, (str(_harness_alone(place)), subject.env.get("PYTHONPATH"))))
    return replace(subject, python=python, env={**subject.env, "PYTHONPATH": modules})


@contextlib.contextmanager
def held(subject: Subject) -> Iterator[tuple[int, ...]]:
    """Descriptors which keep the subject's environment from being removed as long as a process has them open."""
    place = Path(subject.python).parent.parent
    if subject.recipe is None or not (place / _DONE).is_file():
        yield ()
        return
    with _lock(place, fcntl.LOCK_SH) as descriptor:
        yield (descriptor,)


def prune(root: Path = ENVS) -> list[Path]:
    """Remove every environment that no process works in or builds. They are built again when they are asked for."""
    removed = []
    for lock in sorted(root.glob("*.lock")):
        place = lock.with_suffix("")
        with contextlib.suppress(BlockingIOError), _lock(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if place.is_dir():
                shutil.rmtree(place)
                removed.append(place)
    return removed


@contextlib.contextmanager
def _lock(place: Path, operation: int, waiting: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A lock on an environment, held by its open file: whatever ends the process ends the lock."""
    with place.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if operation & fcntl.LOCK_NB:
                raise
            waiting()
            fcntl.flock(lock, operation)
        yield lock.fileno()


_EDITABLE = ("-e ", "--editable ")
_BUILT_FROM = ("pyproject.toml", "setup.py", "setup.cfg")
"""All of an editable project that its installation keeps; the rest is read where it is."""


def _is_editable(line: str) -> bool:
    return line.startswith(_EDITABLE)


def _local(line: str) -> Path | None:
    """The file or directory that a line of a recipe names; None for a package of the index."""
    for option in _EDITABLE:
        line = line.removeprefix(option).strip()
    if line.startswith(("-", "git+", "http:", "https:")):
        return None
    try:
        address, path = Requirement(line).url or "", ""
    except InvalidRequirement:
        address = path = line.partition("[")[0]
    if address.startswith("file:"):
        path = url2pathname(urlsplit(address).path)
    return Path(path.strip()).resolve() if path.strip() else None


def _content(path: Path, *, editable: bool) -> str:
    """A digest of what would be installed: of a file its bytes, of a directory its files' names, sizes and times."""
    if path.is_file():
        return _digest(path, path.stat().st_size, path.stat().st_mtime_ns)
    if not path.is_dir():
        return ""
    if editable:
        return " ".join(_content(path / name, editable=False) for name in _BUILT_FROM)
    files = [entry for entry in path.rglob("*") if entry.is_file() and not {".git", "__pycache__"} & {*entry.parts}]
    stats = [(str(entry.relative_to(path)), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in sorted(files)]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


@cache
def _digest(path: Path, _size: int, _changed_ns: int) -> str:
    """The SHA-256 of a file, read again only when its size or time is another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arguments(lines: Sequence[str]) -> list[str]:
    """Lines of a recipe as arguments of uv, which runs elsewhere: local paths in full."""
    arguments: list[str] = []
    for line in lines:
        path = _local(line)
        if path is None or "@" in line:
            arguments.append(line)
        else:
            extras = f"[{line.partition('[')[2]}" if "[" in line else ""
            arguments += [*["-e"] * _is_editable(line), f"{path}{extras}"]
    return arguments


def _python(recipe: Recipe) -> str:
    return recipe.python or f"{sys.version_info.major}.{sys.version_info.minor}"


def _harness_alone(place: Path) -> Path:
    """A directory with a link to this package and nothing else, for the environment's module path."""
    only = place / "harness-alone"
    only.mkdir(exist_ok=True)
    link, package = only / "harness", Path(__file__).resolve().parent
    if not link.exists() or link.resolve() != package:
        new = only / f"harness-{os.getpid()}-{threading.get_ident()}"  # Threads may be here at once.
        new.symlink_to(package, target_is_directory=True)
        new.replace(link)
    return only


def _build(subject: Subject, place: Path, say: Say) -> None:
    recipe, steps = subject.recipe, Steps(subject.name, place.with_suffix(".log"), say)
    assert recipe is not None
    shutil.rmtree(place, ignore_errors=True)
    # Outside the project: within it, uv would apply the project's own overrides.
    with tempfile.TemporaryDirectory() as elsewhere:
        overrides = Path(elsewhere) / "overrides.txt"
        overrides.write_text("\n".join(recipe.overrides), encoding="utf-8")
        install = [_uv(), "pip", "install", "--python", str(place / "bin" / "python")]
        steps.run("making an environment", [_uv(), "venv", "--python", _python(recipe), str(place)], elsewhere)
        wanted = [*_arguments(recipe.requirements), *_BESIDE_ENGINE, "--overrides", str(overrides)]
        steps.run("installing", [*install, *wanted], elsewhere)
        if recipe.no_deps:
            steps.run("installing", [*install, "--no-deps", *_arguments(recipe.no_deps)], elsewhere)
        modules = ", ".join((*_BESIDE_ENGINE, *filter(None, [MODULES.get(subject.engine)])))
        steps.run(f"importing {modules}", [str(place / "bin" / "python"), "-c", f"import {modules}"], elsewhere)
    done = json.dumps({"subject": subject.name, **asdict(recipe)}, indent=1)
    (place / f"{_DONE}.new").write_text(done, encoding="utf-8")
    (place / f"{_DONE}.new").replace(place / _DONE)
    say(f"{subject.name}: built")


class Steps:
    """The commands of one build, what they print kept in a log and told line by line."""

    def __init__(self, name: str, log: Path, say: Say) -> None:
        """Begin a new log."""
        self.name, self.log, self.say = name, log, say
        log.write_text("", encoding="utf-8")

    def run(self, doing: str, command: Sequence[str], cwd: str) -> None:
        """Run one command.

        Raises:
            EngineUnavailable: it failed; the message ends in what it printed last.
        """
        self.say(f"{self.name}: {doing}")
        printed: list[str] = []
        with (
            self.log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                cwd=cwd,
                env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_UV},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                printed.append(" ".join(line.split()))
                if not printed[-1].startswith("+ "):  # One of two hundred packages.
                    self.say(f"{self.name}: {printed[-1]}")
        if process.returncode:
            reason = " ".join(filter(None, printed))[-_REASON_CHARACTERS:]
            raise EngineUnavailable(f"subject {self.name} cannot be built here: {doing}: {reason} (log: {self.log})")


def _uv() -> str:
    """The uv that runs us, or the one on the path.

    Raises:
        EngineUnavailable: there is none.
    """
    found = os.environ.get("UV") or shutil.which("uv")
    if not found:
        raise EngineUnavailable("uv builds the environments of other releases and is not on PATH; `pip install uv`")
    return found
