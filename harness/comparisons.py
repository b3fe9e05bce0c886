"""What a whole run says of a pair of subjects on a model, once noise was measured. Layer 3.

The number of a case is its mean KL over positions (P6, stage `hidden`), or the largest relative error of a row of its
images (P7, stage `mm_features`). The effect is its mean over the cases. `harness.comparators.significance` has the
test, and docs/verdicts.md explains all of it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.calibration import FACTOR, sound
from harness.comparators.significance import ALPHA, adjusted, exceedance_p, interval, least_exceeding
from harness.schema import Property, VerdictKind
from harness.store import RunStore


@dataclass(frozen=True)
class Measure:
    """A stage that is compared: where its noise is, how far apart two noisy sides may be, what else may be the cause.

    `causes` are the properties whose findings explain a difference here: that of the stage, and of what enters it.
    """

    property: Property
    stage: str
    unit: str
    noise: str
    factor: float
    causes: tuple[Property, ...]


MEASURES = (
    Measure("P6", "hidden", "nats", "kl_mean", FACTOR, ("P1", "P2", "P6", "P7", "P10", "P11")),
    # Two sides that are each d from the truth may be 2 d apart; twice that, because an engine may round where native
    # does not: vLLM hands on pixels in the compute type.
    Measure("P7", "mm_features", "relative error", "feature_max", 2 * math.sqrt(FACTOR), ("P1", "P7")),
)


@dataclass(frozen=True)
class Row:
    """One row of the store's table `comparisons`. Effects and floors have the unit of the row."""

    model: str
    property: Property
    stage: str
    left: str
    right: str
    dtype: str
    device: str
    unit: str
    cases: int
    verdict: VerdictKind = "not comparable"
    reason: str = ""
    effect: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    floor: float = math.nan
    p_value: float = math.nan
    q_value: float = math.nan
    smallest_visible: float = math.nan


@dataclass(frozen=True)
class Sample:
    """What is known of one comparison before it is judged: a number of each case, its ids, and the noises."""

    row: Row
    numbers: Mapping[str, float]
    noises: tuple[float, ...]
    left_out: int
    beyond: frozenset[str]
    causes: Mapping[str, frozenset[str]]

    @property
    def exceeding(self) -> list[str]:
        """Cases whose number is above the floor."""
        return [case for case, number in self.numbers.items() if not number <= self.row.floor]


def of_run(run: RunStore, dtype: str, device: str) -> list[dict[str, Any]]:
    """The comparisons of a finished run, those that differ first; none where no noise was measured."""
    noise = run.rows("noise")
    if not noise:
        return []
    samples = [sample for measure in MEASURES for sample in _samples(run, noise, measure, dtype, device)]
    rows = judged(samples)
    return [vars(row) for row in sorted(rows, key=lambda row: row.verdict != "differ")]


def _samples(
    run: RunStore, noise: Sequence[Mapping[str, Any]], measure: Measure, dtype: str, device: str
) -> Iterator[Sample]:
    """One for each model and pair that was compared at a stage in the run's own type."""
    cases, verdicts, findings = (run.frame(table) for table in ("cases", "verdicts", "findings"))
    own = verdicts[verdicts["case_id"].isin(cases.loc[cases["dtype"] == "", "case_id"])]
    own = own[(own["property"] == measure.property) & (own["stage"] == measure.stage)]
    numbers = _numbers(run, own, measure)
    # What an engine makes of its own distribution afterwards explains nothing before it.
    possible = findings["property"].isin(measure.causes) & (findings["stage"] != "logprobs")
    known_causes = _causes(findings[possible])
    for named, group in own.groupby(["model", "left", "right"], sort=False):
        model, left, right = map(str, named)
        known = {case: numbers[case, left, right] for case in group["case_id"] if (case, left, right) in numbers}
        noises, left_out = _noises([row for row in noise if row["model"] == model], (left, right), measure, dtype)
        row = Row(model, measure.property, measure.stage, left, right, dtype, device, measure.unit, len(known))
        if noises:
            row = replace(row, floor=measure.factor * max(noises))
        beyond = frozenset(group.loc[group["verdict"] == "differ", "case_id"])
        told = {case: [cause for who, cause in known_causes.get(case, []) if who & {left, right}] for case in known}
        causes = {case: frozenset(named) for case, named in told.items() if named and "" not in named}
        yield Sample(row, known, noises, left_out, beyond & known.keys(), causes)


def _numbers(run: RunStore, verdicts: pd.DataFrame, measure: Measure) -> dict[tuple[str, str, str], float]:
    """(case, left, right) -> the case's number. One that is not a number counts as infinite."""
    table, column = verdicts[verdicts["measured"].notna() | (verdicts["verdict"] == "differ")], "measured"
    if measure.stage == "hidden":
        divergences = run.frame("divergences")
        table, column = divergences[divergences["role"] == "all"], "mean"
    numbers = table[column].fillna(math.inf)
    return dict(zip(zip(table["case_id"], table["left"], table["right"], strict=True), numbers, strict=True))


def _causes(findings: pd.DataFrame) -> dict[str, list[tuple[set[str], str]]]:
    """Case -> of each finding who is suspected, or, if nobody is, who differs; and what it is known as."""
    causes: defaultdict[str, list[tuple[set[str], str]]] = defaultdict(list)
    for finding in findings.to_dict("records"):
        subjects = set(json.loads(finding["subjects"]))
        blamed = {finding["suspect"]} & subjects or subjects
        causes[finding["case_id"]].append((blamed, finding["deviation"]))
    return causes


def _noises(
    noise: Sequence[Mapping[str, Any]], pair: tuple[str, str], measure: Measure, dtype: str
) -> tuple[tuple[float, ...], int]:
    """The noise of each calibration case that has all it takes, and how many rows were findings instead.

    It takes native's distance from its own float64 and either subject's distance from itself.
    """
    rows = [row for row in noise if row["kind"] == "anchor" or row["subject"] in pair]
    kept = [row for row in sound(rows, dtype) if pd.notna(row[measure.noise])]
    found = []
    for case in dict.fromkeys(row["case_id"] for row in kept):
        own = [row for row in kept if row["case_id"] == case]
        told = {row["subject"] for row in own if row["kind"] != "anchor"}
        if told >= set(pair) and any(row["kind"] == "anchor" for row in own):
            found.append(max(float(row[measure.noise]) for row in own))
    return tuple(found), len(rows) - len(sound(rows, dtype))


def judged(samples: Sequence[Sample]) -> list[Row]:
    """A row for each sample, p values adjusted over all that could be tested."""
    alpha = ALPHA / max(1, len(samples))  # With this any one is called, whatever the others are.
    needed = [least_exceeding(s.row.cases, len(s.noises), alpha) if s.noises else None for s in samples]
    able = [k for k, count in enumerate(needed) if count is not None]
    p_values = [exceedance_p(len(s.exceeding), s.row.cases, len(s.noises)) for s in (samples[k] for k in able)]
    q_values = dict(zip(able, zip(p_values, adjusted(p_values), strict=True), strict=True))
    return [
        _row(sample, count, *q_values.get(k, (math.nan, math.nan)))
        for k, (sample, count) in enumerate(zip(samples, needed, strict=True))
    ]


def _row(sample: Sample, needed: int | None, p_value: float, q_value: float) -> Row:
    row, numbers = sample.row, list(sample.numbers.values())
    if numbers:
        low, high = interval(numbers)
        row = replace(row, effect=sum(numbers) / len(numbers), ci_low=low, ci_high=high)
    if needed is None and not sample.beyond:
        why = f"{row.cases} cases and {len(sample.noises)} of calibration are too few to tell"
        return replace(row, reason=why if sample.noises else "no noise was measured of this pair")
    if needed is not None:
        row = replace(row, p_value=p_value, q_value=q_value, smallest_visible=row.floor * needed / row.cases)
    differs = bool(sample.beyond) or q_value <= ALPHA
    return replace(row, verdict="differ" if differs else "agree", reason=_reason(sample))


def _reason(sample: Sample) -> str:
    """How many cases are above the floor and beyond the limit of a case, and which known deviations explain them."""
    differing = dict.fromkeys([*sample.exceeding, *sample.beyond])
    words = [f"{len(sample.exceeding)} of {sample.row.cases} cases above the floor"]
    if sample.beyond:
        words.append(f"{len(sample.beyond)} beyond the limit of a case")
    causes = [sample.causes.get(case, frozenset()) for case in differing]
    if known := sorted(frozenset().union(*causes)):
        unknown = causes.count(frozenset())
        words.append(f"known: {', '.join(known)}" + (f", but for {unknown}" if unknown else ""))
    if sample.left_out:
        words.append(f"{sample.left_out} rows of calibration are findings, no noise")
    return "; ".join(words)


def is_explained(reason: str) -> bool:
    """Whether known deviations explain every case that a reason counts."""
    return "known: " in reason and ", but for " not in reason
