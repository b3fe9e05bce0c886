"""A subject of an older release for tests: its environment is built by uv from `harness/releases.toml`, once."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.environments import Subject

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".harness" / "envs"


def subject(name: str, **options: str) -> Subject:
    """The subject `ENGINE@RELEASE`; a test is skipped, with the resolver's words, where it cannot be installed."""
    engine, release = name.split("@")
    rows = tomllib.loads((ROOT / "harness" / "releases.toml").read_text(encoding="utf-8"))
    row = rows[engine][release]
    place = ENVIRONMENTS / name.replace("@", "-")
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        overrides = ENVIRONMENTS / f"{place.name}.overrides"
        ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        overrides.write_text("\n".join(row["overrides"]))
        # Outside the project, whose own overrides uv would take.
        made = _uv("venv", "--clear", "--python", sys.executable, str(place))
        made = made or _uv(
            "pip", "install", "--python", str(python), "--override", str(overrides), *row["requirements"]
        )
        if made:
            pytest.skip(f"{name} cannot be installed here: {made}")
        (place / "complete").touch()
    return Subject(name, engine, str(python), {"PYTHONPATH": str(ROOT)}, options)


def _uv(*arguments: str) -> str:
    """Run uv; what it complained about, or nothing."""
    done = subprocess.run(["uv", *arguments], cwd=ENVIRONMENTS, capture_output=True, text=True, check=False)
    return done.stderr.strip()[-500:] if done.returncode else ""
