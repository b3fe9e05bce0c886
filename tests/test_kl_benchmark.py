"""The benchmark of divergences runs and reports every number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.engines
@pytest.mark.releases
def test_the_quick_benchmark_reports_every_row(tmp_path: Path) -> None:
    """Ours, the products alone, `kl_div` and vLLM's objects have a time; ours is right where float32 is not."""
    target = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "kl.py"), "--quick", "--vocabulary", "4096", "--tokens", "32"]
    command += ["--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--json", str(target)], check=True, capture_output=True, env=environment)
    found = json.loads(target.read_text(encoding="utf-8"))["cpu"]
    assert [row["name"].split(":")[0] for row in found["rows"]] == [
        "ours",
        "the two products alone",
        "kl_div on materialised logits",
        "vLLM's prompt_logprobs objects, both engines",
        "vLLM's prompt_logprobs objects, both engines, detokenize=False",
    ]
    assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in found["rows"])
    assert found["relative_error_ours"] < 1e-4 < found["relative_error_kl_div"]
    assert 1e-10 < found["kl_nats"] < 1e-8
