"""P3: attention sees what the mask rule says.

The probe negates one row of what enters the decoder. A position whose final hidden state moves depends on that row; the
rule of `harness.spec`, carried through the layers, says which may. Unit: positions; limit 0.

`too_much` counts positions that moved and may not. `too_little` counts positions that should have moved and did not:
they are the same to the last bit, or moved by no more than rounding moves those that may not see the row. It moves some
in a mixture of experts, where a token that takes another expert leaves the others of both to another order of sums.
`too_little` is asked only where at most `NEAR` positions should move, because a weight of one in a thousand keys may be
lost to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.comparators.base import Array, Context, Side, judge, lacking
from harness.schema import Verdict
from harness.spec import block_numbers, reached

NEAR = 128
"""Reached positions up to which each must show it."""

MOVED = 1e-4
"""Relative change of a row that counts as moved: above what another order of additions does in float32."""

ROUNDINGS = 4
"""Times the largest change of a row that may not see the negated one, up to which a change is rounding."""


def check(plain: Side, probed: Side, context: Context) -> Iterator[Verdict]:
    """Verdicts of one subject at stages `visibility.too_much` and `visibility.too_little`."""
    pair = plain.name, plain.name
    missing = lacking("P3", "visibility", pair, (probed, "perturbed"))
    rows = [len(side.arrays["hidden"]) for side in (plain, probed)]
    if missing or rows != [len(plain.arrays["prompt_ids"])] * 2:
        reason = f"{len(plain.arrays['prompt_ids'])} tokens, hidden states {rows[0]} plainly and {rows[1]} by probe"
        yield missing or Verdict("P3", "visibility", *pair, "not comparable", reason=reason)
        return
    ids, position = plain.arrays["prompt_ids"].tolist(), int(probed.arrays["perturbed"][0])
    expected = reached(position, block_numbers(ids, context.tokens), context.layers)
    change = relative_change(plain.arrays["hidden"], probed.arrays["hidden"])
    too_much = np.flatnonzero((change > max(MOVED, context.limits.feature_relative)) & ~expected)
    reason = f"row {position} of {len(ids)} negated; {_words(too_much)} moved and may not see it"
    yield judge("P3", "visibility.too_much", pair, len(too_much), 0, "positions", reason)
    if expected.sum() <= NEAR:
        rounding = min(ROUNDINGS * change[~expected].max(initial=0.0), MOVED)
        too_little = np.flatnonzero((change <= rounding) & expected)
        reason = f"row {position} of {len(ids)} negated; {_words(too_little)} should see it and did not move"
        yield judge("P3", "visibility.too_little", pair, len(too_little), 0, "positions", reason)


def relative_change(plain: Array, probed: Array) -> Array:
    """||probed - plain|| / ||plain|| of each row; what is no number counts as infinite."""
    left, right = plain.astype(np.float64), probed.astype(np.float64)
    change: Array = np.linalg.norm(right - left, axis=1) / np.maximum(np.linalg.norm(left, axis=1), 1e-30)
    return np.where(np.isfinite(change), change, np.inf)


def _words(positions: Array) -> str:
    shown = ", ".join(map(str, positions[:6]))
    return f"{len(positions)} positions ({shown}{', ...' if len(positions) > 6 else ''})"
