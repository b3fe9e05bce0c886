"""P1: expanded prompt ids are identical, placeholders included. Unit: token positions that differ; limit 0."""

from __future__ import annotations

import numpy as np

from harness.comparators.base import Context, Side, judge
from harness.schema import Verdict
from harness.spec import placeholder_runs


def compare(left: Side, right: Side, context: Context) -> list[Verdict]:
    """One verdict at stage `prompt_ids`. A length mismatch counts every position that only one side has."""
    ids = left.arrays["prompt_ids"], right.arrays["prompt_ids"]
    common = min(map(len, ids))
    differing = int(np.sum(ids[0][:common] != ids[1][:common])) + abs(len(ids[0]) - len(ids[1]))
    reason = ""
    if differing:
        runs = [[n for _, n in placeholder_runs(side.tolist(), context.tokens)] for side in ids]
        reason = (
            f"{left.name}: {len(ids[0])} tokens, placeholders {runs[0]}; "
            f"{right.name}: {len(ids[1])} tokens, placeholders {runs[1]}"
        )
    return [judge("P1", "prompt_ids", (left.name, right.name), differing, 0, "tokens", reason)]
