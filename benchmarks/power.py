"""How many cases the harness needs to see a mistake, and how long to make the smallest case of it.

    uv run python benchmarks/power.py [--faults NAME,...] [--cases 400] [--seed 0] [--null 2000] [--json FILE]

Each fault of faults.toml is planted in a copy of the native engine, which runs beside the native engine over generated
cases of all properties until something is found; then that case is shrunk. With --null, native runs beside another
native process, and hf beside native, over so many cases: what they find is a false alarm, or hf's own known deviation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faulty import VARIABLE, Fault, read_faults
from harness.campaign import Campaign
from harness.deviations import load_deviations
from harness.environments import SUBJECTS, Subject
from harness.fleet import Options, fleet
from harness.hunt import Search
from harness.replay import Target
from harness.schema import PROPERTIES, Case, Property
from harness.session import Plan, generated, locate
from harness.zoo import NAMES

ROOT = Path(__file__).resolve().parents[1]


HEADER = """# Power: seeded faults, and how many cases it takes to see them

Written by `nox -s power`. Each fault is an edit of one place in a copy of the native engine
(`benchmarks/faults.toml`), of a kind that was made in public. The copy runs beside the native engine over generated
cases of all properties, on the models on which the fault can show. `cases` counts up to and with the first that shows
it, `found as` is all that this case showed; then it is shrunk on the warm engines.
"""


@dataclass(frozen=True)
class Detected:
    """What became of one fault. `cases` counts the cases up to and with the first that showed it; None if none did."""

    fault: str
    cases: int | None
    found: str = ""
    seen_s: float = 0.0
    shrink_s: float = 0.0
    tried: int = 0
    smallest: str = ""


@contextmanager
def campaign(subjects: Sequence[Subject], properties: tuple[Property, ...]) -> Iterator[Campaign]:
    """A campaign over warm subjects that knows the deviations of real engines."""
    with tempfile.TemporaryDirectory() as logs:
        options = Options(timeout_s=60.0, properties=properties)
        with fleet(subjects, options, Path(logs)) as workers:
            yield Campaign(workers, locate, load_deviations())


def detect(fault: Fault, cases: int, seed: int) -> Detected:
    """Run cases until the fault shows, then shrink the first that did."""
    faulty = Subject("faulty", "benchmarks.faulty:FaultyNative", sys.executable, _environment(fault))
    plan = Plan(models=fault.models, cases=cases, seed=seed)
    started = time.perf_counter()
    with campaign([SUBJECTS["native"], faulty], plan.properties) as running:
        drawn = _mixed(generated(plan))
        for number, result in enumerate(running.run(drawn), start=1):
            found = [finding for finding in result.findings if finding.suspect != "reference"]
            if not found:
                continue
            first, seen_s = found[0], time.perf_counter() - started
            shrunk = Search(running, Target(fault.name, result.case, first)).run()
            case = shrunk.capsule.case
            seen = ", ".join(dict.fromkeys(f"{finding.property} {finding.stage}" for finding in found))
            return Detected(fault.name, number, seen, seen_s, shrunk.seconds, shrunk.tried, _words(case))
    return Detected(fault.name, None)


def _environment(fault: Fault) -> dict[str, str]:
    return {VARIABLE: fault.name, "PYTHONPATH": str(ROOT)}


def _mixed(cases: Sequence[Case]) -> list[Case]:
    """The cases by type, then in an order in which no property waits for another: by their ids, which are hashes."""
    return sorted(cases, key=lambda case: (case.dtype, case.model, case.id))


def _words(case: Case) -> str:
    parts = [f"{len(part.text)} characters" if not part.medium else _spec(part) for part in case.parts]
    probe = f" [{case.probe.kind} {case.probe.at}]" if case.probe else ""
    return f"{' + '.join(parts) or 'nothing'} at {case.max_soft_tokens}{probe}{f' {case.dtype}' if case.dtype else ''}"


def _spec(part: Any) -> str:
    if part.image:
        return f"{part.image.width_px}x{part.image.height_px}"
    if part.audio:
        return f"{part.audio.samples} samples"
    return f"{part.video.frames} frames {part.video.width_px}x{part.video.height_px}"


def null(names: Sequence[str], cases: int, seed: int) -> dict[str, Any]:
    """Two correct engines beside each other: cases, and what was found that no deviation explains."""
    twins = [SUBJECTS[name] for name in names]
    if len(set(names)) == 1:
        twins = [twins[0], Subject(f"{names[0]}-again", twins[0].engine, twins[0].python, twins[0].env)]
    plan = Plan(models=NAMES, cases=cases, seed=seed)
    unexplained: dict[str, int] = {}
    known: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    with campaign(twins, plan.properties) as running:
        for result in running.run(generated(plan)):
            for verdict in result.verdicts:
                verdicts[verdict.verdict] = verdicts.get(verdict.verdict, 0) + 1
            for finding in result.findings:
                counted = known if finding.deviation or finding.suspect == "reference" else unexplained
                words = f"{finding.signature} ({finding.deviation or finding.model})"
                counted[words] = counted.get(words, 0) + 1
    return {
        "subjects": [twin.name for twin in twins], "cases": cases, "verdicts": verdicts,
        "unexplained": unexplained, "known": known,
    }  # fmt: skip


def table(detected: Sequence[Detected], nulls: Sequence[dict[str, Any]]) -> str:
    """The result as Markdown."""
    lines = [HEADER, "| fault | cases | found as | smallest case | shrunk in |", "| --- | --- | --- | --- | --- |"]
    for entry in detected:
        found = entry.found or "**not found**"
        shrunk = f"{entry.shrink_s:.1f} s, {entry.tried} tried" if entry.cases else ""
        lines.append(f"| {entry.fault} | {entry.cases or ''} | {found} | {entry.smallest} | {shrunk} |")
    times = [entry.shrink_s for entry in detected if entry.cases]
    if times:
        lines.append(f"\nMedian time to the smallest case: {statistics.median(times):.1f} s over {len(times)} faults.")
    lines += [
        f"\n{' beside '.join(run['subjects'])}, {run['cases']} cases: {sum(run['unexplained'].values())} "
        f"unexplained findings, {sum(run['known'].values())} known ones, verdicts {run['verdicts']}."
        for run in nulls
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print each fault as it is found, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="", help="comma-separated; default: all")
    parser.add_argument("--cases", type=int, default=400, help="at most so many cases a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--null", type=int, default=0, help="cases of correct engines beside each other")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--table", type=Path, help="write the table as Markdown, and beside it as JSON for the page Power"
    )
    chosen = parser.parse_args()
    wanted = [fault for fault in read_faults() if not chosen.faults or fault.name in chosen.faults.split(",")]
    assert set(PROPERTIES) == set(Options.properties)
    detected = []
    for fault in wanted:
        detected.append(detect(fault, chosen.cases, chosen.seed))
        print(detected[-1], flush=True)
    pairs = [("native", "native"), ("hf", "native")] if chosen.null else []
    nulls = [null(pair, chosen.null, chosen.seed) for pair in pairs]
    text = table(detected, nulls)
    print(text)
    if chosen.table:
        chosen.table.write_text(text, encoding="utf-8")
    result = {"detected": [asdict(entry) for entry in detected], "null": nulls}
    for path in filter(None, (chosen.json, chosen.table and chosen.table.with_suffix(".json"))):
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if any(entry.cases is None for entry in detected) or any(entry["unexplained"] for entry in nulls):
        sys.exit(1)


if __name__ == "__main__":
    main()
