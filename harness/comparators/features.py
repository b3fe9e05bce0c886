"""P7: what the vision front end makes of each image, stage by stage.

`pixels` and `positions` come from resizing and patching: the largest absolute difference. Positions, in patches,
must be identical; pixels, in [0, 1], too, but for rounding to a reduced compute type. `mm_features` are the rows
that enter the language model: the largest relative error of a row, ||left - right|| / ||left|| in the Euclidean
norm. Row 0 of each image has a verdict of its own (`mm_features.first`), because padding that leaks lands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.comparators.base import Array, Context, Limits, Side, judge
from harness.schema import Case, Verdict

_INPUT_STAGES = {"pixels": "of [0, 1]", "positions": "patches"}


def compare(case: Case, left: Side, right: Side, context: Context) -> list[Verdict]:
    """Verdicts at `pixels`, `positions`, `mm_features.first` and `mm_features`; none without an image."""
    return list(_verdicts(len(case.images), left, right, context.limits)) if case.images else []


def _verdicts(images: int, left: Side, right: Side, limits: Limits) -> Iterator[Verdict]:
    pair = left.name, right.name
    for stage in (*_INPUT_STAGES, "mm_features"):
        paired = _paired(stage, images, left, right)
        if isinstance(paired, str):
            yield Verdict("P7", stage, *pair, "differ", reason=paired)
        elif stage in _INPUT_STAGES:
            # Equal is the rule, and ten times quicker to see than a difference is to measure.
            worst = _worst([np.abs(a.astype(np.float64) - b) for a, b in paired if not np.array_equal(a, b)])
            limit = limits.pixel_absolute if stage == "pixels" else 0.0
            yield judge("P7", stage, pair, worst, limit, _INPUT_STAGES[stage])
        else:
            errors = [relative_row_errors(a, b) for a, b in paired]
            limit, unit = limits.feature_relative, "relative error"
            yield judge("P7", "mm_features.first", pair, _worst([e[:1] for e in errors]), limit, unit)
            yield judge("P7", stage, pair, _worst(errors), limit, unit)


def _worst(arrays: Sequence[Array]) -> float:
    """The largest value; NaN if there is one anywhere, which `max()` would lose. A size of 0 has no error."""
    return float(np.max([0.0, *(array.max(initial=0.0) for array in arrays)]))


def _paired(stage: str, images: int, left: Side, right: Side) -> list[tuple[Array, Array]] | str:
    """The arrays of both sides image by image, or how their shapes or their number part."""
    keys = [f"{stage}.{index}" for index in range(images)]
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
