"""Whether verdicts can be trusted: how often nothing is called something, and how small a something is seen.

    uv run python -m benchmarks.calibration null [--engine hf] [--campaigns 20] [--dtype float32] [--json FILE]
    uv run python -m benchmarks.calibration power [--json FILE]

`null`: campaigns of an engine beside itself, each with seeds of its own; the second process computes with two threads
where the first has one, so that sums are added in another order. At most one of twenty may say `differ`.

`power`: native beside native with one weight tensor of the vision tower changed at random by 1 % of each value. In
float32 it must be called different within 20 cases; in bfloat16 the smallest effect that could have been seen is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.perturbed import VARIABLE
from harness import calibration
from harness.environments import SUBJECTS, Subject
from harness.fleet import Fleet, fleet
from harness.session import Plan, run_on, start
from harness.store import RunStore, plain
from harness.strategies import cases, generate
from harness.zoo import NAMES

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tiny-31b"
TENSORS = (
    "tower.patch.weight",
    "tower.layers.0.attention.q.weight",
    "tower.layers.0.mlp.up.weight",
    "tower.layers.1.mlp.down.weight",
    "tower.project.weight",
)
PARTS = {"float32": (0.01,), "bfloat16": (0.01, 0.1, 0.5)}
CASES = 20


@contextmanager
def _workers(subjects: Sequence[Subject], plan: Plan) -> Iterator[tuple[Fleet, Path]]:
    with (
        tempfile.TemporaryDirectory() as scratch,
        fleet(subjects, plan.options, Path(scratch), calibration.beside()) as workers,
    ):
        yield workers, Path(scratch)


def _twin(name: str) -> Subject:
    return replace(SUBJECTS[name], name=f"{name}-again", env={"OMP_NUM_THREADS": "2"})


def null(engine: str, campaigns: int, dtype: str) -> list[dict[str, Any]]:
    """An engine beside itself: for each campaign its model, seed, comparisons, and findings that nothing explains."""
    subjects = [SUBJECTS[engine], _twin(engine)]
    asked = Plan(subjects=tuple(s.name for s in subjects), cases=12, calibrate=10, dtype=dtype, deviations=True)
    asked = replace(asked, properties=("P1", "P2", "P6", "P7"))
    found = []
    with _workers(subjects, asked) as (workers, scratch):
        for number in range(campaigns):
            plan = replace(asked, models=(NAMES[number % len(NAMES)],), seed=1_000 + 37 * number)
            run = start(plan, scratch / f"{number}", lambda _: None)
            run_on(workers, run, plan, lambda _: None)
            findings = run.frame("findings")
            entry = {
                "engine": engine,
                "dtype": dtype,
                "model": plan.models[0],
                "seed": plan.seed,
                "comparisons": run.rows("comparisons"),
                "findings": findings.loc[findings["deviation"] == "", "signature"].tolist(),
            }
            found.append(entry)
            print(_null_words(entry), flush=True)
    return found


def _null_words(entry: dict[str, Any]) -> str:
    told = ", ".join(
        f"{row['stage']} {row['verdict']} {row['effect']:.2g} (floor {row['floor']:.2g})"
        for row in entry["comparisons"]
    )
    return f"{entry['engine']} {entry['dtype']} {entry['model']} seed {entry['seed']}: {told} {entry['findings']}"


def power(tensor: str, part: float, dtype: str) -> dict[str, Any]:
    """Native beside itself with one tensor changed: the comparisons after 20 cases with an image."""
    environment = {VARIABLE: f"{tensor}:{part}", "PYTHONPATH": str(ROOT)}
    changed = Subject("perturbed", "benchmarks.perturbed:PerturbedNative", sys.executable, environment)
    plan = Plan((MODEL,), ("native", "perturbed"), CASES, properties=("P1", "P6", "P7"), dtype=dtype, calibrate=CASES)
    drawn = generate(cases(models=[MODEL], properties=["P7"], min_images=1), count=CASES, seed=7)
    with _workers([SUBJECTS["native"], changed], plan) as (workers, scratch):
        run = RunStore.create(scratch / "store", {"plan": plan}, drawn)
        run_on(workers, run, plan, lambda _: None)
        entry = {"tensor": tensor, "part": part, "dtype": dtype, "comparisons": run.rows("comparisons")}
    print(*_power_lines([entry]), sep="\n", flush=True)
    return entry


def _power_lines(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        for row in entry["comparisons"]:
            numbers = " | ".join(f"{row[name]:.2g}" for name in ("effect", "floor", "smallest_visible"))
            what = f"{entry['tensor']} | {entry['part']:.0%} | {entry['dtype']} | {row['stage']}"
            yield f"| {what} | {row['verdict']} | {row['reason']} | {numbers} | {row['unit']} |"


def main() -> None:
    """Run one of the two; exit status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["null", "power"])
    parser.add_argument("--engine", default="hf", choices=["hf", "native", "vllm"])
    parser.add_argument("--campaigns", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.what == "null":
        found = null(chosen.engine, chosen.campaigns, chosen.dtype)
        alarms = sum(any(row["verdict"] == "differ" for row in entry["comparisons"]) for entry in found)
        print(f"{alarms} of {len(found)} campaigns of {chosen.engine} beside itself say that something differs")
        good = alarms <= len(found) / 20
    else:
        asked = [(tensor, part, dtype) for dtype, parts in PARTS.items() for part in parts for tensor in TENSORS]
        found = [power(*entry) for entry in asked if entry[2] == "float32" or entry[0] == TENSORS[2]]
        sharp = [entry for entry in found if entry["dtype"] == "float32"]
        good = all(any(row["verdict"] == "differ" for row in entry["comparisons"]) for entry in sharp)
    if chosen.json:
        chosen.json.write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")
    sys.exit(not good)


if __name__ == "__main__":
    main()
