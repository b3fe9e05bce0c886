"""Real nights in a short time: runs of a few cases, other seeds each, engines warm from one to the next.

    uv run python -m benchmarks.nights --release 0.20.0 --nights 18 --seed 1 [--store DIR]
    uv run python -m benchmarks.nights --release 0.21.0 --nights 12 --seed 19 [--store DIR]

Each is a run like any other in the store, of hf, native and a subject `rollout`, which is vLLM at the release given.
What a nightly job would do between two of them, start the engines, is left out. Then every night is told as a nightly
job would have told it that morning, and what it says is written down:

    uv run python -m benchmarks.nights --tell [--store DIR] [--history DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import session
from harness.campaign import Campaign, Timing
from harness.deviations import load_deviations
from harness.environments import SUBJECTS, Subject, at_release
from harness.fleet import fleet
from harness.schema import Property
from harness.store import DEFAULT_STORE, locked, runs
from reports import nights as nights_of
from reports.changes import by_series, in_words
from reports.frames import load_run
from reports.history import History

ROLLOUT = "rollout"
PROPERTIES: tuple[Property, ...] = ("P1", "P2", "P6", "P7")


def subjects(release: str) -> list[Subject]:
    """hf and native as installed here, and vLLM at a release, under a name that does not change with it."""
    return [SUBJECTS["hf"], at_release(replace(SUBJECTS["vllm"], name=ROLLOUT), release), SUBJECTS["native"]]


def nights(release: str, seeds: range, cases: int, model: str, store: Path) -> None:
    """Run one night a seed."""
    chosen = subjects(release)
    plan = session.Plan((model,), tuple(subject.name for subject in chosen), cases, properties=PROPERTIES)
    with fleet(chosen, plan.options, store.parent) as workers:
        campaign = Campaign(workers, session.locate, load_deviations())
        for seed in seeds:
            started = time.perf_counter()
            night = replace(plan, seed=seed)
            run = session.start(night, store, lambda _: None)
            campaign.timing = Timing()
            with locked(run):
                keeper = session.Keeper(run, night, workers)
                for result in campaign.run(run.cases()):
                    keeper.keep(result)
                session._close_header(run, workers, campaign)
            print(f"{run.run_id} release {release} seed {seed}: {time.perf_counter() - started:.1f} s", flush=True)
            time.sleep(1)  # A run's name has its second.


def tell(store: Path, history: Path) -> dict[str, Any]:
    """Take every run of a store into a history, and what is new each morning; then the steps of the whole."""
    mornings = []
    for run in runs(store):
        made = nights_of.night(load_run(run))
        nights_of.add(history, made)
        known = History(nights_of.read(history))
        entry = {
            "night": len(known.nights),
            "run_id": run.run_id,
            "seed": made.plan["seed"],
            "versions": made.versions[ROLLOUT],
        }
        new = [f"{found.what} {found.series.name}: {found.detail}" for found in known.regressions]
        mornings.append({**entry, "steps": len(known.steps), "exit_status": int(bool(new)), "new": new})
        print(json.dumps(mornings[-1]), flush=True)
    whole = History(nights_of.read(history))
    steps = [
        {**in_words(step), "night": step.night + 1, "series": step.series.name, "subjects": step.series.subjects}
        | {"worse": step.worse, "came_in": step.versions}
        for step in whole.steps
    ]
    return {"series": len(by_series(whole.nights)), "steps": steps, "mornings": mornings}


def main() -> None:
    """Run the nights of one release, or tell those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="0.20.0")
    parser.add_argument("--tell", action="store_true", help="run nothing")
    parser.add_argument("--history", type=Path, default=nights_of.DEFAULT_HISTORY)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nights", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--model", default="tiny-31b")
    parser.add_argument("--store", type=Path, default=DEFAULT_STORE)
    chosen = parser.parse_args()
    if chosen.tell:
        text = json.dumps(tell(chosen.store, chosen.history), indent=1)
        print(text)
        if chosen.json:
            chosen.json.write_text(text + "\n", encoding="utf-8")
        return
    seeds = range(chosen.seed, chosen.seed + chosen.nights)
    nights(chosen.release, seeds, chosen.cases, chosen.model, chosen.store)


if __name__ == "__main__":
    main()
