"""What a number is when nothing is wrong: two runs of one subject, or native beside itself in float64.

    kl[t]   = KL(one || other) in nats, as P6 has it; `one` is the plain run, or the anchor in float64
    |dlogp| = |ln P_one(token t+1) - ln P_other(token t+1)| in nats, both from hidden states through the shared head

Beside both stands the largest relative error of a row of an image's features. Histograms count positions by decade from
1e-16 to 1e2 nats; the first entry has everything below too, the last everything above.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from harness.comparators.base import Context, Side
from harness.comparators.features import relative_row_errors
from harness.comparators.head import Floats
from harness.comparators.kl import diverge, realised_logprobs

DECADES = np.logspace(-16, 2, 19)
"""Edges of the histograms, in nats."""


def measured(one: Side, other: Side, context: Context) -> dict[str, Any] | None:
    """The numbers of one row of the store's table `noise`; None where the two runs cannot be laid side by side."""
    sides = one, other
    if any(side.observation.outcome != "ok" or "hidden" not in side.arrays for side in sides):
        return None
    ids = one.arrays["prompt_ids"]
    states = [side.arrays["hidden"] for side in sides]
    if not np.array_equal(ids, other.arrays["prompt_ids"]) or any(len(rows) != len(ids) for rows in states):
        return None
    kl = diverge(states, context.head, ("",) * len(ids))[0, 1].kl_left_right
    own, others = (realised_logprobs(rows, ids, context.head) for rows in states)
    gaps = np.abs(own - others) if len(ids) > 1 else np.zeros(1)
    p50, p99, p99_9 = np.percentile(kl, (50, 99, 99.9))
    gap_p50, gap_p99, gap_p99_9 = np.percentile(gaps, (50, 99, 99.9))
    return {
        "n": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_p50": float(p50),
        "kl_p99": float(p99),
        "kl_p99_9": float(p99_9),
        "kl_max": float(kl.max()),
        "logprob_mean": float(gaps.mean()),
        "logprob_p50": float(gap_p50),
        "logprob_p99": float(gap_p99),
        "logprob_p99_9": float(gap_p99_9),
        "logprob_max": float(gaps.max()),
        "kl_histogram": json.dumps(_by_decade(kl)),
        "logprob_histogram": json.dumps(_by_decade(gaps)),
        "feature_max": _feature_max(one, other),
    }


def _by_decade(values: Floats) -> list[int]:
    counts, _ = np.histogram(np.clip(values, DECADES[0], DECADES[-1]), DECADES)
    return [int(count) for count in counts]


def _feature_max(one: Side, other: Side) -> float | None:
    """Of the images of both runs; None where one of them has none."""
    shared = [key for key in one.arrays if key.startswith("mm_features.") and key in other.arrays]
    pairs = [(one.arrays[key], other.arrays[key]) for key in shared]
    errors = [relative_row_errors(a, b).max(initial=0.0) for a, b in pairs if a.shape == b.shape]
    return float(max(errors)) if errors else None
