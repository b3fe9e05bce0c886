"""Where a difference enters: every recorded stage of one case, pair by pair, from prompt to last state. Layer 3.

A stage's verdict is the comparators' own where they give one. Beside it stand the largest absolute difference, the
largest relative error (of a row, in the Euclidean norm; of a vector, relative to its largest entry), and how much
larger that is than at the stage before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.campaign import Campaign, Result
from harness.comparators import Limits, Side
from harness.comparators.features import relative_row_errors
from harness.replay import Replayed, Target, replayed
from harness.schema import ROLES, Case, Finding, Verdict

Array = npt.NDArray[Any]

INPUTS = ("pixels", "positions", "audio_input", "video_pixels", "video_positions")
FEATURES = ("mm_features", "audio_features", "video_features")
STAGES = ("prompt_ids", "counts", *INPUTS, *FEATURES, "hidden", "logprobs")
"""In the order in which a model computes them."""


@dataclass(frozen=True)
class StageRow:
    """One stage of one pair. `growth` is the relative error over that of the last earlier stage that had one."""

    stage: str
    verdict: str
    max_absolute: float | None = None
    max_relative: float | None = None
    growth: float | None = None
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True)
class RoleRow:
    """KL in nats of the positions of one role."""

    role: str
    positions: int
    mean: float
    largest: float


@dataclass(frozen=True)
class PairExplanation:
    """Two runs of the case stage by stage. `first` is the first stage that differs beyond its limit, or empty."""

    left: str
    right: str
    stages: tuple[StageRow, ...]
    roles: tuple[RoleRow, ...]
    first: str


@dataclass(frozen=True)
class Explanation:
    """Everything that is shown of one case. `arrays` holds per-position KL, as a run's store has it."""

    name: str
    case: Case
    finding: Finding | None
    status: str
    findings: tuple[Finding, ...]
    outcomes: dict[str, str]
    versions: dict[str, dict[str, str]]
    pairs: tuple[PairExplanation, ...]
    arrays: Mapping[str, Any]


def explain(entry: Target, campaign: Campaign) -> Explanation:
    """Run a target's case and take it apart."""
    (result,) = campaign.run([entry.case])
    again: Replayed = replayed(entry, result)
    limits = Limits.of(entry.case.dtype or entry.dtype)
    return Explanation(
        entry.name,
        entry.case,
        entry.finding,
        again.status,
        result.findings,
        {_label(side, entry.case): _outcome(side) for side in result.sides},
        campaign.workers.versions,
        tuple(_pair(left, right, result, limits) for left, right in _paired(result.sides)),
        result.arrays,
    )


def _outcome(side: Side) -> str:
    observation = side.observation
    return f"{observation.outcome}: {observation.message}".removesuffix(": ")


def _label(side: Side, case: Case) -> str:
    """A subject's name; that of its probe says which."""
    return f"{side.name} by probe {case.probe.kind}" if side.observation.probe and case.probe else side.name


def _paired(sides: Sequence[Side]) -> Iterator[tuple[Side, Side]]:
    """Each pair of subjects, then each subject with its own probe; only those that answered."""
    ran = [side for side in sides if side.observation.outcome == "ok"]
    plain = [side for side in ran if not side.observation.probe]
    yield from combinations(plain, 2)
    probed = {side.name: side for side in ran if side.observation.probe}
    yield from ((side, probed[side.name]) for side in plain if side.name in probed)


def _pair(left: Side, right: Side, result: Result, limits: Limits) -> PairExplanation:
    rows: list[StageRow] = []
    last = 0.0
    for stage in STAGES:
        row = _stage(stage, left, right, result, limits, last)
        if row is not None:
            rows.append(row)
            last = row.max_relative if row.max_relative and np.isfinite(row.max_relative) else last
    first = next((row.stage for row in rows if row.verdict == "differ"), "")
    names = _label(left, result.case), _label(right, result.case)
    return PairExplanation(*names, tuple(rows), tuple(_roles(left, right, result.arrays)), first)


def _stage(stage: str, left: Side, right: Side, result: Result, limits: Limits, last: float) -> StageRow | None:
    """One row; None where neither side recorded the stage."""
    verdict = _verdict(stage, left, right, result)
    if stage == "counts":
        return _counts(left, right, verdict)
    shared, missing = _arrays(stage, left, right)
    if not shared and not missing:
        return None
    if missing:
        # What runs no model has nothing to lose.
        lost = all("hidden" in side.arrays for side in (left, right))
        unsaid = "differ" if lost else "not comparable"
        return StageRow(stage, verdict.verdict if verdict else unsaid, detail=missing)
    absolute = _largest([_gaps(a, b) for a, b in shared])
    relative = _largest([_relative(a, b) for a, b in shared])
    growth = relative / last if last and np.isfinite(relative) else None
    if verdict is None:
        measured, limit, unit = _judged(stage, absolute, relative, limits)
        kind = "agree" if measured <= limit else "differ"
        return StageRow(stage, kind, absolute, relative, growth, measured, limit, unit)
    judged = verdict.measured, verdict.limit, verdict.unit, verdict.reason
    return StageRow(stage, verdict.verdict, absolute, relative, growth, *judged)


def _verdict(stage: str, left: Side, right: Side, result: Result) -> Verdict | None:
    """What the comparators said of this stage and pair, or, of a subject and its probe, what they said of the probe."""
    pair = {left.name, right.name}
    if left.name == right.name:
        probe = result.case.probe
        kind = probe.kind if probe else ""
        stages = {"hidden": (kind,), "prompt_ids": (f"prompt_ids.{kind}",)}.get(stage, ())
    else:
        stages = (stage,)
    return next((v for v in result.verdicts if v.stage in stages and {v.left, v.right} == pair), None)


def _counts(left: Side, right: Side, verdict: Verdict | None) -> StageRow | None:
    """Soft tokens of each medium as either side counts them."""
    numbers = [[(c.predicted, c.feature_rows) for c in side.observation.counts] for side in (left, right)]
    if not any(numbers):
        return None
    words = "; ".join(f"{s.name} (predicted, rows) {n}" for s, n in zip((left, right), numbers, strict=True))
    gaps = [abs(a - b) for one, other in zip(*numbers, strict=False) for a, b in zip(one, other, strict=True)]
    same = numbers[0] == numbers[1] and (verdict is None or verdict.verdict == "agree")
    absolute = float(max(gaps, default=0))
    return StageRow("counts", "agree" if same else "differ", absolute, None, None, absolute, 0.0, "soft tokens", words)


def _arrays(stage: str, left: Side, right: Side) -> tuple[list[tuple[Array, Array]], str]:
    """The arrays of a stage side by side, medium by medium, and in words how they cannot be put so."""
    keys = [key for key in (*left.arrays, *right.arrays) if key.partition(".")[0] == stage]
    pairs = []
    for key in sorted(dict.fromkeys(keys), key=lambda key: int(key.partition(".")[2] or 0)):
        if absent := [side.name for side in (left, right) if key not in side.arrays]:
            return [], f"{absent[0]} has no {key}"
        a, b = left.arrays[key], right.arrays[key]
        if left.name == right.name and stage in ("hidden", "logprobs"):
            common = min(len(a), len(b))  # A prefix that was found in a cache has no states.
            a, b = a[len(a) - common :], b[len(b) - common :]
        if a.shape != b.shape:
            return [], f"{key}: {left.name} {a.shape}, {right.name} {b.shape}"
        pairs.append((a, b))
    return pairs, ""


def _judged(stage: str, absolute: float, relative: float, limits: Limits) -> tuple[float, float, str]:
    """What counts where the comparators say nothing of a stage: inputs as pixels, the rest as features."""
    if stage == "logprobs":
        return absolute, limits.logprob_nats, "nats"
    if stage in FEATURES or stage == "hidden":
        return relative, limits.feature_relative, "relative error"
    return absolute, limits.pixel_absolute if "pixels" in stage else 0.0, "absolute"


def _gaps(left: Array, right: Array) -> Array:
    """Absolute differences in float64; equal infinities do not differ."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps: Array = np.where(a == b, 0.0, np.abs(a - b))
    return gaps


def _relative(left: Array, right: Array) -> Array:
    """Relative errors: of each row of a matrix, or of a vector as a whole."""
    if left.ndim == 2 and np.issubdtype(left.dtype, np.floating):
        return relative_row_errors(left, right)
    finite = np.abs(left[np.isfinite(left)].astype(np.float64)) if left.size else np.zeros(1)
    largest = finite.max(initial=0.0)
    return _gaps(left, right) / (largest or 1.0)


def _largest(arrays: Sequence[Array]) -> float:
    """The largest value; NaN if there is one anywhere."""
    return float(np.max([0.0, *(array.max(initial=0.0) for array in arrays)]))


def _roles(left: Side, right: Side, arrays: Mapping[str, Any]) -> Iterator[RoleRow]:
    kl = arrays.get(f"kl/{left.name}/{right.name}")
    if kl is None or left.name == right.name or len(arrays["roles"]) != len(kl):
        return
    for index, role in enumerate(ROLES):
        chosen = kl[arrays["roles"] == index]
        if len(chosen):
            yield RoleRow(role, len(chosen), float(chosen.mean()), float(np.max(chosen)))
