"""Where a difference enters: every recorded stage of one case, pair by pair, from prompt to last state. Layer 3.

A stage's verdict is the comparators' own where they give one. Beside it stand the largest absolute difference, the
largest relative error (of a row, in the Euclidean norm; of a vector, relative to its largest entry), how much
larger that is than at the stage before, and what rounding alone makes of it: `NOISE_FACTOR` times the error of native
beside itself in float64, at the same stage of the same case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.calibration import ANCHOR, FACTOR, ROUNDING
from harness.campaign import Campaign, Result
from harness.comparators import Limits, Side
from harness.comparators.features import relative_row_errors
from harness.evidence import Distance, Evidence, distances, weigh
from harness.replay import Replayed, Target, absent_subjects, replayed, same_finding
from harness.schema import ROLES, Case, Finding, Verdict
from harness.store import roles_of
from harness.transplant import Transplant, all_of

Array = npt.NDArray[Any]

INPUTS = ("pixels", "positions", "audio_input", "video_pixels", "video_positions")
FEATURES = ("mm_features", "audio_features", "video_features")
_INSIDE = ("merged_embeddings",)
_PROMISED = ("prompt_ids", *INPUTS, *FEATURES, "hidden", "logprobs")
NOISE_FACTOR = 4.0
"""Of relative errors: two sides may both round, which is 2, and one case shows one draw of what rounding does."""


def stages_of(*sides: Side) -> tuple[str, ...]:
    """The stages in the order in which a model computes them; layers only where they were recorded."""
    recorded = {name for side in sides for name in side.arrays if name.startswith("layer.")}
    layers = sorted(recorded, key=lambda name: int(name.partition(".")[2]))
    return ("prompt_ids", "counts", *INPUTS, *FEATURES, "merged_embeddings", *layers, "hidden", "logprobs")


@dataclass(frozen=True)
class StageRow:
    """One stage of one pair. `growth` is the relative error over that of the last earlier stage that had one.

    `noise` is the largest relative error that rounding explains; None where it was not measured.
    """

    stage: str
    verdict: str
    max_absolute: float | None = None
    max_relative: float | None = None
    growth: float | None = None
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""
    noise: float | None = None


@dataclass(frozen=True)
class RoleRow:
    """KL in nats of the positions of one role."""

    role: str
    positions: int
    mean: float
    largest: float


@dataclass(frozen=True)
class PairExplanation:
    """Two runs of the case stage by stage. `first` is the first stage that differs beyond its limit, or empty.

    `enters` is the first stage that differs beyond its noise, or, where that was not measured, beyond its limit.
    """

    left: str
    right: str
    stages: tuple[StageRow, ...]
    roles: tuple[RoleRow, ...]
    first: str
    enters: str = ""


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
    evidence: Evidence
    transplants: tuple[Transplant, ...]
    arrays: Mapping[str, Any]


def explain(entry: Target, campaign: Campaign) -> Explanation:
    """Run a target's case and take it apart."""
    (result,) = campaign.run([entry.case])
    again: Replayed = replayed(entry, result)
    limits = Limits.of(entry.case.dtype or entry.dtype)
    plain = {side.name: side for side in (*result.sides, *result.beside) if not side.observation.probe}
    noise = _noise(plain)
    known = distances(result, campaign.context) if noise else []
    return Explanation(
        entry.name,
        entry.case,
        entry.finding,
        again.status,
        result.findings,
        {_label(side, entry.case): _outcome(side) for side in result.sides},
        campaign.workers.versions,
        tuple(_pair(left, right, result, limits, noise) for left, right in _paired(result.sides)),
        weigh(result, _asked_about(entry, result), known, limits),
        tuple(_transplants(result, plain, known, campaign)),
        result.arrays,
    )


def _noise(plain: Mapping[str, Side]) -> dict[str, float]:
    """Stage -> the relative error of native beside itself in float64; none where one of the two did not run."""
    if any(name not in plain or plain[name].observation.outcome != "ok" for name in (ANCHOR, ROUNDING)):
        return {}
    truth, rounded = plain[ANCHOR], plain[ROUNDING]
    shared = {stage: _arrays(stage, truth, rounded)[0] for stage in stages_of(truth) if stage != "counts"}
    return {stage: _largest([_relative(a, b) for a, b in arrays]) for stage, arrays in shared.items() if arrays}


def _asked_about(entry: Target, result: Result) -> Sequence[Finding]:
    """The finding of the target as it is now, if it is still there; of a case without one, whatever it has."""
    if entry.finding is None:
        return result.findings
    same = same_finding(entry.finding, result.findings, absent_subjects(entry.finding, result))
    return [same] if same else []


def _transplants(
    result: Result, plain: Mapping[str, Side], known: Sequence[Distance], campaign: Campaign
) -> list[Transplant]:
    """Of the subjects whose KL from native is more than rounding explains: of the others there is nothing to say."""
    floor = FACTOR * next((entry.kl for entry in known if entry.subject == ROUNDING), 0.0)
    if not floor:
        return []
    voters = [plain[name] for name in plain if name not in (ROUNDING, ANCHOR)]
    return all_of(result.case, voters, plain[ROUNDING], floor, campaign.workers, campaign.context)


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


def _pair(left: Side, right: Side, result: Result, limits: Limits, noise: Mapping[str, float]) -> PairExplanation:
    rows: list[StageRow] = []
    last = 0.0
    for stage in stages_of(left, right):
        row = _stage(stage, left, right, result, limits, last)
        if row is not None:
            rows.append(_beside_noise(row, noise))
            last = row.max_relative if row.max_relative and np.isfinite(row.max_relative) else last
    first = next((row.stage for row in rows if row.verdict == "differ"), "")
    names = _label(left, result.case), _label(right, result.case)
    enters = next((row.stage for row in rows if _is_above_noise(row)), "")
    return PairExplanation(*names, tuple(rows), tuple(_roles(left, right, result.arrays)), first, enters)


def _beside_noise(row: StageRow, noise: Mapping[str, float]) -> StageRow:
    """The row with what rounding explains of it, which judges stages that the comparators say nothing of."""
    rounding = noise.get(row.stage)
    if not rounding or row.max_relative is None or row.stage == "logprobs":
        return row
    row = replace(row, noise=NOISE_FACTOR * rounding)
    if row.stage not in _INSIDE and not row.stage.startswith("layer."):
        return row
    kind = "differ" if _is_above_noise(row) else "agree"
    return replace(row, verdict=kind, measured=row.max_relative, limit=row.noise, unit="relative error")


def _is_above_noise(row: StageRow) -> bool:
    if row.noise is None or row.max_relative is None:
        return row.verdict == "differ"
    return not row.max_relative <= row.noise


def _stage(stage: str, left: Side, right: Side, result: Result, limits: Limits, last: float) -> StageRow | None:
    """One row; None where neither side recorded the stage."""
    verdict = _verdict(stage, left, right, result)
    if stage == "counts":
        return _counts(left, right, verdict)
    shared, missing = _arrays(stage, left, right)
    if not shared and not missing:
        return None
    if missing:
        # What runs no model has nothing to lose, and not every way through a model shows what is inside.
        lost = all("hidden" in side.arrays for side in (left, right)) and stage in _PROMISED
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
    keys = [key for key in (*left.arrays, *right.arrays) if stage in (key, key.partition(".")[0])]
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
    if stage not in (*INPUTS, "prompt_ids"):
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
    roles = roles_of(arrays, left.name, right.name)
    if kl is None or left.name == right.name or len(roles) != len(kl):
        return
    for index, role in enumerate(ROLES):
        chosen = kl[roles == index]
        if len(chosen):
            yield RoleRow(role, len(chosen), float(chosen.mean()), float(np.max(chosen)))
