"""What the harness adds to what the engines take, measured in warm campaigns, and what a plain script would take.

    uv run python benchmarks/overhead.py [--cases 200] [--plain 20] [--model tiny-e2b] [--json FILE]

`overhead_ratio` is (wall_s - startup_s) / the engines' own seconds. Below 1 the engines ran side by side and the
harness hid behind them; so the same cases also run with one subject, where nothing can hide. Cases per minute leave
starting engines out, there and in the plain script. That one runs the cases of `--plain`, same seed, that have no sound
or video through HF and vLLM one after the other, with vLLM's full prompt log-probabilities. What the taps of hidden
states add to one pass is measured in turns, with and without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measure(subjects: str, model: str, cases: int, store: Path) -> dict[str, Any]:
    """The `timing` of one run of `harness run`, with cases per minute."""
    target = store / f"{subjects}.json"
    command = ["harness", "run", "--subjects", subjects, "--models", model, "--cases", str(cases)]
    options = ["--properties", "P6", "--store", str(store), "--json", str(target)]
    done = subprocess.run([sys.executable, "-m", *command, *options], check=False, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1):  # 1 is a finding, which is no trouble here.
        raise SystemExit(f"harness run --subjects {subjects} ended with {done.returncode}")
    document = json.loads(target.read_text(encoding="utf-8"))
    timing: dict[str, Any] = document["timing"]
    warm_s = timing["wall_s"] - timing["startup_s"]
    return {**timing, "cases": document["cases"], "cases_per_minute": 60 * document["cases"] / warm_s}


def plain(model: str, cases: int) -> dict[str, Any]:
    """The same by plain calls, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plain", model, str(cases), "0"]
    # One thread: several only wait for one another in so small a model, and the workers of a campaign have one, too.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path]), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, check=False, capture_output=True, env=environment, cwd=root)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure all three subjects together, then each alone, then the plain script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--plain", type=int, default=20)
    parser.add_argument("--model", default="tiny-e2b")
    parser.add_argument("--subjects", nargs="+", default=["hf,vllm,native", "hf", "vllm", "native"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    print(f"load {os.getloadavg()}", flush=True)
    measured = {}
    with tempfile.TemporaryDirectory() as store:
        for subjects in chosen.subjects:
            timing = measured[subjects] = measure(subjects, chosen.model, chosen.cases, Path(store))
            engines_s = sum(timing["engine_s"].values())
            words = f"{timing['cases_per_minute']:7.1f} cases a minute, compared in {timing['compare_s']:.1f} s"
            print(
                f"{subjects:16} overhead_ratio {timing['overhead_ratio']:.3f}  engines {engines_s:.1f} s  {words}",
                flush=True,
            )
    by_hand = plain(chosen.model, chosen.plain)
    print(
        f"plain script     {by_hand['cases_per_minute']:7.1f} cases a minute ({by_hand['cases']} of {by_hand['drawn']} "
        f"cases, {by_hand['tokens']} tokens, {by_hand['wall_s']:.1f} s)"
    )
    for name, hook in by_hand["hooks"].items():
        low, middle, high = (100 * hook[key] for key in ("added_low", "added", "added_high"))
        print(
            f"tap of {name:9} {middle:+.1f} % of {1000 * hook['without_s']:.1f} ms (95 %: {low:+.1f} to {high:+.1f} %)"
        )
    print(f"load at the end {os.getloadavg()}")
    if chosen.json:
        result = {"runs": measured, "plain": by_hand, "load": os.getloadavg()}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
