"""Would the harness have caught its founding failures? Generated cases on the releases that had them.

    uv run python -m benchmarks.time_machine [--only NAME,...] [--cases 200] [--seed 0] [--table FILE] [--json FILE]

Each row of time_machine.toml names a failure and a release that has it. Generated cases run there until one shows it;
that case is shrunk and kept as a capsule, and bisected both ways: since which release, and until which. The failure
that no release has is planted, and its capsule is asked of every release without the plant.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.requirements import Requirement

from harness.bisect import Asked, Asking, bisect, status_of
from harness.campaign import Campaign, Result
from harness.environments import Subject, releases, resolve
from harness.errors import EngineUnavailable
from harness.fleet import Options, fleet
from harness.hunt import Search
from harness.replay import Target, renamed, replay
from harness.schema import Capsule, Finding, Property
from harness.session import Plan, generated, locate, require_available
from harness.store import write_json
from harness.wording import in_words

CAPSULES = Path("docs/time-machine")
TABLE = Path(__file__).with_name("time_machine.toml")

HEADER = """# Time machine: the founding failures, found on the releases that had them

Written by `nox -s time_machine`. Nothing stored leads to them: cases are generated from a seed, and run on a release
that has the failure until one shows it. That case is shrunk and kept in time-machine/ (`uv run harness replay FILE`
runs it again), then asked of other releases: `harness bisect` walks them both ways. `first good` is the first release
without the failure; it may fail in another way, which the last table says.

| failure | thread | found on | seed | cases until found | smallest case | first bad | first good | message |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

ASKED = """
## What each release did with the smallest case

| failure | release | | |
| --- | --- | --- | --- |"""


@dataclass(frozen=True)
class Failure:
    """One founding failure, as time_machine.toml has it."""

    name: str
    thread: str
    subject: str
    bad: str
    others: tuple[str, ...]
    models: tuple[str, ...]
    properties: tuple[Property, ...]
    signature: str
    says: str
    earliest: str = ""
    good: str = ""
    absent: str = ""

    def is_it(self, finding: Finding) -> bool:
        """Whether a finding is this failure and no other."""
        return fnmatchcase(finding.signature, self.signature) and bool(re.search(self.says, finding.detail))


@dataclass(frozen=True)
class Travelled:
    """What became of one failure. `cases` counts up to and with the first that showed it; None if none did."""

    failure: Failure
    seed: int
    cases: int | None = None
    smallest: str = ""
    message: str = ""
    first_bad: str = ""
    first_good: str = ""
    asked: tuple[Asked, ...] = field(default_factory=tuple)
    wall_s: float = 0.0


def read_failures() -> list[Failure]:
    """Every failure of the table."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    lists = ("others", "models", "properties")
    return [Failure(name, **{**row, **{key: tuple(row[key]) for key in lists}}) for name, row in table.items()]


def travel(failure: Failure, cases: int, seed: int) -> Travelled:
    """Find a failure, make its smallest case, and ask the other releases about it."""
    started = time.perf_counter()
    found = hunt(failure, cases, seed)
    if found is None:
        return Travelled(failure, seed, wall_s=time.perf_counter() - started)
    number, capsule = found
    CAPSULES.mkdir(parents=True, exist_ok=True)
    write_json(CAPSULES / f"{failure.name}.json", capsule)
    ask = planted if failure.absent else walked
    travelled = Travelled(failure, seed, number, in_words(capsule.case), capsule.finding.detail)
    return replace(ask(travelled, capsule), wall_s=time.perf_counter() - started)


def hunt(failure: Failure, cases: int, seed: int) -> tuple[int, Capsule] | None:
    """The number of the first generated case with the failure, and its smallest case; None if none has it."""
    names = [*failure.others, f"{failure.subject}@{failure.bad}"]
    require_available(names, _say)
    plan = Plan(models=failure.models, cases=cases, seed=seed, properties=failure.properties)
    options = Options(properties=failure.properties)
    with tempfile.TemporaryDirectory() as logs, fleet(resolve(names), options, Path(logs)) as workers:
        campaign = Campaign(workers, locate)
        drawn = sorted(generated(plan), key=lambda case: (case.model, case.dtype, case.id))
        for number, result in enumerate(campaign.run(drawn), start=1):
            if why := workers.absent.get(names[-1]):
                _say(f"{result.case.model}: {why}")
            if finding := _sought(failure, result):
                return number, Search(campaign, Target(failure.name, result.case, finding)).run().capsule
    return None


def _sought(failure: Failure, result: Result) -> Finding | None:
    return next((finding for finding in result.findings if failure.is_it(finding)), None)


def walked(travelled: Travelled, capsule: Capsule) -> Travelled:
    """First bad and first good release, by bisection either way."""
    failure = travelled.failure
    first_bad, asked = failure.bad, list[Asked]()
    if failure.earliest != failure.bad:
        asked = [Asking(capsule, failure.subject, _say).ask(failure.earliest)]
        if asked[0].status == "bad":
            first_bad = f"{failure.earliest} (the first that can run it)"
        elif asked[0].status == "unknown":
            first_bad = f"{failure.bad}, or before: {failure.earliest} could not be asked"
        else:
            back = bisect(capsule, failure.subject, failure.earliest, failure.bad, _say, _told)
            first_bad, asked = back.since, [*asked, *back.asked]
    forward = bisect(capsule, failure.subject, failure.good, failure.bad, _say, _told)
    return replace(travelled, first_bad=first_bad, first_good=forward.since, asked=_once([*asked, *forward.asked]))


def planted(travelled: Travelled, capsule: Capsule) -> Travelled:
    """The same case on every release of the subject without the plant, beside the transformers that each pins."""
    failure = travelled.failure
    (subject,) = resolve([failure.absent])
    asked = tuple(_without(failure, capsule, version) for version in releases()[subject.engine])
    bad = [answer.version for answer in asked if answer.status == "bad"]
    good = [answer.version for answer in asked if answer.status == "good"]
    return replace(
        travelled,
        first_bad=f"planted; without the plant: {', '.join(bad) or 'none'}",
        first_good=", ".join(good),
        asked=asked,
    )


def _without(failure: Failure, capsule: Capsule, version: str) -> Asked:
    """One release without the plant: bad if it is as far from its own transformers as the plant makes it.

    A hundredth of that will do; what is less is another, smaller fault of that release.
    """
    name = f"{failure.absent}@{version}"
    reference = f"hf@{pinned_transformers(resolve([name])[0])}"
    try:
        require_available([reference, name], _say)
    except EngineUnavailable as error:
        return Asked(version, "unknown", str(error))
    sought = renamed(capsule.finding, f"{failure.subject}@{failure.bad}", name)
    sought = renamed(sought, failure.others[0], reference)
    (result,) = replay([Target(name, capsule.case, sought)], [reference, name])
    status = status_of(result, sought, name)
    measured = max((f.measured or 0.0 for f in result.findings if f.signature == sought.signature), default=0.0)
    if status == "bad" and measured < (capsule.finding.measured or 0.0) / 100:
        status = "another"
    _told(answer := Asked(version, status, result.detail))
    return answer


def pinned_transformers(subject: Subject) -> str:
    """The version of transformers in a subject's recipe."""
    assert subject.recipe is not None
    (line,) = (entry for entry in map(Requirement, subject.recipe.requirements) if entry.name == "transformers")
    return str(line.specifier).removeprefix("==")


def _once(asked: Sequence[Asked]) -> tuple[Asked, ...]:
    """Each release once, the first answer."""
    return tuple({answer.version: answer for answer in reversed(asked)}.values())[::-1]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _told(answer: Asked) -> None:
    _say(f"{answer.version}: {answer.status} {answer.detail[:200]}")


def table(travelled: Sequence[Travelled]) -> str:
    """The result as Markdown."""
    lines = [HEADER.rstrip()]
    for entry in travelled:
        failure = entry.failure
        cells = [
            failure.name, failure.thread, f"{failure.subject} {failure.bad}", entry.seed,
            entry.cases or "**not found**", entry.smallest, entry.first_bad, entry.first_good,
            f"`{entry.message[:160]}`",
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    lines.append(ASKED)
    for entry in travelled:
        for answer in entry.asked:
            detail = " ".join(answer.detail.split()).replace("|", "/")[:300]
            lines.append(f"| {entry.failure.name} | {answer.version} | {answer.status} | {detail} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print each failure as it is found, then the table. Exit status 1 if one was not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated failures; default: all")
    parser.add_argument("--cases", type=int, default=200, help="at most so many cases a failure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="write the table as Markdown")
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name]
    known = {failure.name: failure for failure in read_failures()}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only {', '.join(unknown)}: known are {', '.join(known)}")
    if names and chosen.table:
        parser.error("--table writes the table of all failures; leave out --only")
    travelled = []
    for name in names or known:
        travelled.append(travel(known[name], chosen.cases, chosen.seed))
        _say(str(travelled[-1]))
        # After each: one that ends in an error must not take the others with it.
        if chosen.table:
            chosen.table.write_text(table(travelled), encoding="utf-8")
        if chosen.json:
            chosen.json.write_text(json.dumps([asdict(t) for t in travelled], indent=1) + "\n", encoding="utf-8")
    print(table(travelled))
    if any(entry.cases is None for entry in travelled):
        sys.exit(1)


if __name__ == "__main__":
    main()
