"""Typed access to a JSON object: every refusal names the file, the field and the value that was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Section:
    """One JSON object and the path that leads to it, so that an error can name the field."""

    path: str
    values: Mapping[str, Any]

    def fail(self, name: str, wanted: str) -> ValueError:
        """An error for field `name`, which is not what it should be."""
        found = repr(self.values[name]) if name in self.values else "nothing"
        return ValueError(f"{self.path}.{name}: expected {wanted}, found {found}; compare with the published file")

    def integer(self, name: str) -> int:
        """A whole number of at least 0."""
        value = self.values.get(name)
        if type(value) is not int or value < 0:
            raise self.fail(name, "an integer of at least 0")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number, or None when the field is null or absent."""
        return None if self.values.get(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        """A real number."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.values.get(name)
        if type(value) is not bool:
            raise self.fail(name, "true or false")
        return value

    def section(self, name: str) -> Section:
        """The JSON object under `name`."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "an object")
        return Section(f"{self.path}.{name}", value)

    def only(self, name: str, *allowed: object) -> None:
        """Refuse every value that no published Gemma 4 has: it would ask for code that is not here."""
        if self.values.get(name) not in allowed:
            raise self.fail(name, " or ".join(map(repr, allowed)))


def read_section(path: Path) -> Section:
    """The object of a JSON file; `path` of the section is the file name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give the directory of a checkpoint in the published layout")
    return Section(path.name, json.loads(path.read_text(encoding="utf-8")))
