"""P7, P10, P11: what the front ends make of each image, video and recording, stage by stage.

`pixels` and `positions` come from resizing and patching: the largest absolute difference. Positions, in patches,
must be identical; pixels, in [0, 1], too, but for rounding to a reduced compute type. `mm_features` are the rows
that enter the language model: the largest relative error of a row, ||left - right|| / ||left|| in the Euclidean
norm. Row 0 of each image has a verdict of its own (`mm_features.first`), because padding that leaks lands there.

A video has `video_pixels`, `video_positions` and `video_features` of all its frames; a recording has `audio_input`, the
frames that enter the network, and `audio_features`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.comparators.base import Array, Context, Limits, Side, judge
from harness.schema import Case, Property, Verdict

STAGES: dict[Property, tuple[str, ...]] = {
    "P7": ("pixels", "positions", "mm_features"),
    "P10": ("video_pixels", "video_positions", "video_features"),
    "P11": ("audio_input", "audio_features"),
}
"""Stages by property, in the order of the computation; the last one of each is the rows for the decoder."""

_INPUT_UNITS = {
    "pixels": "of [0, 1]",
    "positions": "patches",
    "video_pixels": "of [0, 1]",
    "video_positions": "patches",
    "audio_input": "natural log or amplitude",
}


def media_of(case: Case, prop: Property) -> int:
    """How many items of the medium that a property is about a case has."""
    return len({"P7": case.images, "P10": case.videos, "P11": case.audios}[prop])


def compare(case: Case, left: Side, right: Side, context: Context, prop: Property = "P7") -> list[Verdict]:
    """Verdicts at each of the property's stages, and at `mm_features.first`; none without such a medium."""
    items = media_of(case, prop)
    return list(_verdicts(prop, items, left, right, context.limits)) if items else []


def _verdicts(prop: Property, items: int, left: Side, right: Side, limits: Limits) -> Iterator[Verdict]:
    pair = left.name, right.name
    for stage in STAGES[prop]:
        if without := [side.name for side in (left, right) if _runs_no_model(stage, side)]:
            reason = ", ".join(f"{name} recorded no {stage} and no hidden" for name in without)
            yield Verdict(prop, stage, *pair, "not comparable", reason=reason)
            continue
        paired = _paired(stage, items, left, right)
        if isinstance(paired, str):
            yield Verdict(prop, stage, *pair, "differ", reason=paired)
        elif stage in _INPUT_UNITS:
            # Equal is the rule, and ten times quicker to see than a difference is to measure.
            worst = _worst([np.abs(a.astype(np.float64) - b) for a, b in paired if not np.array_equal(a, b)])
            yield judge(prop, stage, pair, worst, input_limit(stage, limits), _INPUT_UNITS[stage])
        else:
            errors = [relative_row_errors(a, b) for a, b in paired]
            limit, unit = limits.feature_relative, "relative error"
            if prop == "P7":
                yield judge(prop, "mm_features.first", pair, _worst([e[:1] for e in errors]), limit, unit)
            yield judge(prop, stage, pair, _worst(errors), limit, unit)


def _runs_no_model(stage: str, side: Side) -> bool:
    """Whether a side has neither rows for the decoder nor states of it, as one that is a processor alone.

    A side with states that lacks rows has lost them, which differs.
    """
    rows = any(key.partition(".")[0] == stage for key in side.arrays)
    return stage not in _INPUT_UNITS and not rows and "hidden" not in side.arrays


def input_limit(stage: str, limits: Limits) -> float:
    """The largest absolute difference of an input stage that counts as agreement."""
    if stage == "audio_input":
        return limits.audio_absolute
    if stage == "video_pixels":
        # Bytes of a frame are divided by 255 or multiplied by 1/255: one rounding apart.
        return max(limits.pixel_absolute, 2.0**-23)
    return limits.pixel_absolute if stage == "pixels" else 0.0


def _worst(arrays: Sequence[Array]) -> float:
    """The largest value; NaN if there is one anywhere, which `max()` would lose. A size of 0 has no error."""
    return float(np.max([0.0, *(array.max(initial=0.0) for array in arrays)]))


def _paired(stage: str, items: int, left: Side, right: Side) -> list[tuple[Array, Array]] | str:
    """The arrays of both sides item by item, or how their shapes or their number part."""
    keys = [f"{stage}.{index}" for index in range(items)]
    if stage.startswith("audio"):
        # A recording of no soft token leaves no rows: some engines then record none, others an array of none.
        keys = [key for key in keys if any(len(side.arrays.get(key, ())) for side in (left, right))]
    absent = [f"{side.name} has no {key}" for key in keys for side in (left, right) if key not in side.arrays]
    if absent:
        return ", ".join(absent)
    pairs = [(left.arrays[key], right.arrays[key]) for key in keys]
    for key, (a, b) in zip(keys, pairs, strict=True):
        if a.shape != b.shape:
            return f"{key}: {left.name} {a.shape}, {right.name} {b.shape}"
    return pairs


def relative_row_errors(left: Array, right: Array) -> Array:
    """||left - right|| / ||left|| for each row of two (rows, width) arrays, in float64.

    A row of zeros on both sides has error 0; one on the left alone, infinity.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    gaps, sizes = np.linalg.norm(left - right, axis=1), np.linalg.norm(left, axis=1)
    errors: Array = np.divide(gaps, sizes, out=np.where(gaps == 0, 0.0, np.inf), where=sizes != 0)
    return errors
