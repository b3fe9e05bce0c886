"""What the harness adds to what the engines take, as one ratio measured in one run of warm cases.

    uv run python benchmarks/overhead.py [--cases 100] [--model tiny-e2b] [--json FILE]

Prints (wall_s - startup_s) / the engines' own seconds. Below 1 the engines ran side by side and the harness hid
behind them; so the same cases also run with one subject, where nothing can hide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measure(subjects: str, model: str, cases: int, store: Path) -> dict[str, Any]:
    """The `timing` of one run of `harness run`."""
    target = store / f"{subjects}.json"
    command = ["harness", "run", "--subjects", subjects, "--models", model, "--cases", str(cases)]
    options = ["--store", str(store), "--json", str(target)]
    subprocess.run([sys.executable, "-m", *command, *options], check=True, stdout=subprocess.DEVNULL)
    timing: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))["timing"]
    return timing


def main() -> None:
    """Measure all three subjects together, then each alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--model", default="tiny-e2b")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        measured = {
            subjects: measure(subjects, chosen.model, chosen.cases, Path(store))
            for subjects in ("hf,vllm,native", "hf", "vllm", "native")
        }
    for subjects, timing in measured.items():
        engines_s = sum(timing["engine_s"].values())
        print(f"{subjects:16} overhead_ratio {timing['overhead_ratio']:.3f}  engines {engines_s:.1f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
