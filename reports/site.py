"""The static page of a run."""

from __future__ import annotations

from pathlib import Path

from reports.frames import Frames


def build(frames: Frames, out: Path) -> Path:
    """Write the page; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text("TODO")
    return page
