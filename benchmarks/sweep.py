"""What `harness sweep` adds to the engines' own counting functions, as a ratio measured in one process.

    uv run python -m benchmarks.sweep [--width 5000] [--repeats 5] [--json FILE]

For each engine: calls per second of its function in a bare loop, and of the block of counts that a sweep makes of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from harness.engines.counting import COUNTERS, Counter
from harness.zoo import ensure

BUDGET = 280
HEIGHTS = range(700, 704)


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the quickest of some calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def ratio(counter: Counter, width_px: int, repeats: int) -> dict[str, float]:
    """Calls per second bare and in blocks, and the second over the first."""
    widths = range(1, width_px + 1)

    def bare() -> None:
        for height_px in HEIGHTS:
            for wide_px in widths:
                counter.image(height_px, wide_px, BUDGET)

    def blocks() -> None:
        for height_px in HEIGHTS:
            counter.images(height_px, widths, BUDGET)

    calls = len(HEIGHTS) * width_px
    bare_per_s, blocks_per_s = (calls / best(work, repeats) for work in (bare, blocks))
    return {"bare_per_s": bare_per_s, "sweep_per_s": blocks_per_s, "ratio": blocks_per_s / bare_per_s}


def main() -> None:
    """Print a line an engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    checkpoint = ensure("tiny-e2b", Path(".harness/zoo"))
    measured = {name: ratio(make(checkpoint), chosen.width, chosen.repeats) for name, make in COUNTERS.items()}
    for name, found in measured.items():
        print(
            f"{name:8} bare {found['bare_per_s']:11,.0f}/s  sweep {found['sweep_per_s']:11,.0f}/s  {found['ratio']:.2f}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
