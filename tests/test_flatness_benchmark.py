"""The benchmark of flatness runs, reports every row and draws them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.flatness import PANEL, Row, plot

ROOT = Path(__file__).resolve().parent.parent


def test_the_quick_benchmark_reports_every_row(tmp_path: Path) -> None:
    """Each size has a time of ours, and each but the largest numbers of images one of the square."""
    result, picture = tmp_path / "result.json", tmp_path / "picture.svg"
    command = [sys.executable, str(ROOT / "benchmarks" / "flatness.py"), "--quick", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command += ["--json", str(result), "--plot", str(picture)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert [(row["name"], row["size"]) for row in rows] == [
        *(("images", size) for size in (1, 2, 4)),
        *(("tokens", size) for size in (32, 64, 128)),
    ]
    assert all(row["native_s"] > 0 for row in rows)
    assert [row["square_s"] is None for row in rows] == [False, False, True, False, False, False]
    assert picture.read_text(encoding="utf-8").count("<polyline") == 4


def test_the_picture_by_hand() -> None:
    """A flat cost is a level line, a cost that doubles rises, and each half has its own rows."""
    rows = [Row(name, size, 1.0, float(size)) for name in ("images", "tokens") for size in (1, 2, 4)]
    lines = [line.attrib["points"].split() for line in ET.fromstring(plot(rows)) if line.tag.endswith("polyline")]  # noqa: S314 - our own
    places = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    square, flat = ([y for _, y in line] for line in places[:2])
    assert len(set(flat)) == 1
    assert square == sorted(square, reverse=True)
    assert square[0] == flat[0]
    assert all(x < PANEL for line in places[:2] for x, _ in line)
    assert all(x > PANEL for line in places[2:] for x, _ in line)
