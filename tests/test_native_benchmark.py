"""The benchmark of the native implementation runs and reports every row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.turns import Row, Turn

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.releases
def test_the_quick_benchmark_reports_every_row(tmp_path: Path) -> None:
    """Each row has the time of both implementations and, where there are products, of these alone."""
    target = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "native.py"), "--quick", "--eager", "--repeats", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--json", str(target)], check=True, capture_output=True, env=environment)
    result = json.loads(target.read_text(encoding="utf-8"))
    names = [row["name"].split(",")[0] for row in result["rows"]]
    assert names == [
        "load as torch.bfloat16",
        "load as torch.float32",
        "vision tower",
        "prefill",
        "decode",
        "decode",
        "MoE block",
        "MoE block",
    ]
    assert all(row["native_s"] > 0 and row["hf_s"] > 0 for row in result["rows"])
    assert [row["bare_s"] is None for row in result["rows"]] == [True, True, *[False] * 6]
    assert all(row["speed_low"] <= row["speed"] <= row["speed_high"] for row in result["rows"])
    assert min(result["floor"].values()) > 0
    assert set(result["peak_bytes"]) == {"native", "hf"}
    assert min(result["peak_bytes"].values()) > 0


def test_a_speed_is_the_median_of_pairs() -> None:
    """Each turn has a ratio of its own: a turn in which the machine was slow for both changes nothing."""
    turns = [Turn(9.0, 1.0), Turn(1.0, 2.0, 0.5), Turn(10.0, 20.0, 5.0), Turn(1.0, 3.0, 0.5)]
    row = Row.of("row", turns)
    assert (row.speed, row.speed_low, row.speed_high) == (2.0, 2.0, 2.5)
    assert (row.native_s, row.hf_s, row.bare_s) == (1.0, 3.0, 0.5)
    assert Row.of("once", turns[:2]).speed == 2.0
    assert Row.of("no products", [Turn(1.0, 1.0)] * 2).bare_s is None
