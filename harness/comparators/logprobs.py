"""Stage `logprobs` of P6: an engine's own log-probabilities must follow from its own hidden states.

Of the realised tokens, through the shared output head. Unit: nats, the largest absolute difference over positions.

Where they do not, the engine changes the distribution after the model: it masks tokens, scales, or rounds.
"""

from __future__ import annotations

import numpy as np

from harness.comparators.base import Context, Side, absent, judge, lacking
from harness.comparators.kl import realised_logprobs
from harness.schema import Verdict


def check(side: Side, context: Context) -> Verdict:
    """One verdict for one subject. A prompt of one token has nothing to score and agrees at 0."""
    if side.observation.outcome != "ok":
        return absent("P6", "logprobs", side)
    if missing := lacking("P6", "logprobs", (side.name, side.name), (side, "hidden"), (side, "logprobs")):
        return missing
    own = side.arrays["logprobs"].astype(np.float64)
    tokens, states = len(side.arrays["prompt_ids"]), len(side.arrays["hidden"])
    if states != tokens or len(own) != tokens - 1:
        reason = f"{tokens} tokens, but {states} hidden states and {len(own)} log-probabilities"
        return Verdict("P6", "logprobs", side.name, side.name, "differ", reason=reason)
    derived = realised_logprobs(side.arrays["hidden"], side.arrays["prompt_ids"], context.head)
    pair = side.name, side.name
    gap = float(np.abs(own - derived).max(initial=0.0))
    return judge("P6", "logprobs", pair, gap, context.limits.logprob_nats, "nats")
