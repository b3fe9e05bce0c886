"""The benchmark of the native implementation runs and reports every row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_quick_benchmark_reports_every_row(tmp_path: Path) -> None:
    """Each row has the time of both implementations and, where there are products, of these alone."""
    target = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "native.py"), "--quick", "--repeats", "1"]
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
        "MoE block",
    ]
    assert all(row["native_s"] > 0 and row["hf_s"] > 0 for row in result["rows"])
    assert [row["bare_s"] is None for row in result["rows"]] == [True, True, False, False, False, False]
    assert set(result["peak_bytes"]) == {"native", "hf"}
    assert min(result["peak_bytes"].values()) > 0
