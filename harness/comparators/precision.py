"""P12: whatever the compute type, what enters and leaves the decoder is finite. Unit: values; limit 0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.comparators.base import Side, absent, judge, lacking
from harness.schema import Verdict


def check(side: Side) -> Iterator[Verdict]:
    """One verdict for one subject at stage `finite`; `logprobs` may be minus infinity where tokens are suppressed."""
    if side.observation.outcome != "ok":
        yield absent("P12", "finite", side)
        return
    if missing := lacking("P12", "finite", (side.name, side.name), (side, "hidden")):
        yield missing
        return
    floating = {stage: array for stage, array in side.arrays.items() if array.dtype.kind == "f" and stage != "logprobs"}
    counts = {stage: int((~np.isfinite(array)).sum()) for stage, array in floating.items()}
    bad = {stage: count for stage, count in counts.items() if count}
    reason = ", ".join(f"{stage} has {count} of {floating[stage].size}" for stage, count in bad.items())
    yield judge("P12", "finite", (side.name, side.name), sum(bad.values()), 0, "values", reason)
