"""Environments of other releases, for the tests that need them: built by uv from harness/releases.toml, once."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from harness.environments import Subject

ROOT = Path(__file__).resolve().parent.parent
RELEASES: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "harness" / "releases.toml").read_text(encoding="utf-8"))


def at(engine: str, release: str, name: str = "", **options: str) -> Subject:
    """An engine at a release, in an environment of its own; the harness itself is read from here."""
    python = str(_built(engine, release))
    return Subject(name or engine, engine, python, {"PYTHONPATH": str(ROOT)}, options)


@cache
def _built(engine: str, release: str) -> Path:
    home = ROOT / ".harness" / "envs" / f"{engine}-{release}"
    python, done = home / "bin" / "python", home / "done"
    if done.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    row = RELEASES[engine][release]
    _uv("venv", str(home), "--python", "3.11")
    _uv("pip", "install", "--python", str(python), *row["requirements"])
    _uv("pip", "install", "--python", str(python), "--no-deps", *row["no_deps"])
    done.touch()
    return python


def _uv(*arguments: str) -> None:
    # Elsewhere than here, where pyproject.toml would override the release of torch.
    subprocess.run(["uv", *arguments], check=True, cwd=ROOT.anchor)
