"""The native engine with one seeded fault, as a worker's engine: `benchmarks.faulty:FaultyNative`.

A fault is an edit of one place in the source, in a copy that only this process sees; the environment variable
`GEMMA4_HARNESS_FAULT` names it. It can never be mistaken for a result: its versions say which fault it has, and no
subject of `harness run` can name it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "GEMMA4_HARNESS_FAULT"
FAULTS = Path(__file__).with_name("faults.toml")
STAGES = Path(__file__).with_name("stages.toml")
"""Faults of one known stage each, for benchmarks/transplant.py; they say which."""

SOURCE = Path(__file__).resolve().parents[1] / "harness" / "native"
_PACKAGE = "harness.native"


@dataclass(frozen=True)
class Fault:
    """One mistake: in `file`, `right` becomes `wrong`. `models` are those on which it can show."""

    name: str
    file: str
    right: str
    wrong: str
    models: tuple[str, ...]
    stage: str = ""


def read_faults(path: Path = FAULTS) -> list[Fault]:
    """Every fault of a file."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Fault(name, **(fields | {"models": tuple(fields["models"])})) for name, fields in table.items()]


def edited(fault: Fault) -> str:
    """The text of the fault's file with the fault in it.

    Raises:
        ValueError: the right text is not in the file exactly once, so the table is out of date.
    """
    text = (SOURCE / fault.file).read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        raise ValueError(f"fault {fault.name}: {fault.right!r} stands {text.count(fault.right)} times in {fault.file}")
    return text.replace(fault.right, fault.wrong)


def plant(fault: Fault, directory: Path) -> None:
    """Make `harness.native` of this process a copy with the fault."""
    copy = directory / "native"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / fault.file).write_text(edited(fault), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, copy / "__init__.py", submodule_search_locations=[str(copy)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    spec.loader.exec_module(module)


def _planted() -> str:
    name = os.environ[VARIABLE]
    (fault,) = (fault for path in (FAULTS, STAGES) for fault in read_faults(path) if fault.name == name)
    with tempfile.TemporaryDirectory() as directory:
        plant(fault, Path(directory))
        importlib.import_module("harness.engines.native")  # All of the copy is read before it goes.
    return name


if VARIABLE in os.environ:
    from harness.engines.base import package_versions

    FAULT = _planted()
    from harness.engines.native import NativeEngine

    class FaultyNative(NativeEngine):
        """Native, but for one mistake."""

        def versions(self) -> dict[str, str]:
            """Says which fault it has."""
            return package_versions("torch") | {"seeded-fault": FAULT}
