"""Subjects: an engine, the interpreter that has it, and what its process needs to be told. Layer 2."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import UserError


@dataclass(frozen=True)
class Subject:
    """An engine at given versions with given options, in an environment of its own."""

    name: str
    engine: str
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


_NEEDS = {"hf": "transformers", "vllm": "vllm", "native": "torch"}
"""Engine -> the module that its environment must have."""

SUBJECTS = {name: Subject(name, name) for name in _NEEDS}


def resolve(names: Sequence[str]) -> list[Subject]:
    """The subjects of those names, each once, in that order.

    Raises:
        UserError: a name that no subject has, or no name at all.
    """
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown or not names:
        raise UserError(f"unknown subject {', '.join(unknown) or '(none given)'}; known: {', '.join(SUBJECTS)}")
    return [SUBJECTS[name] for name in dict.fromkeys(names)]


def unavailable_because(subject: Subject) -> str:
    """Why a subject cannot start here, or an empty string."""
    module = _NEEDS.get(subject.engine)
    if module is None or importlib.util.find_spec(module) is not None:
        return ""
    return f"the environment has no {module}; `uv sync` installs it"
