"""What training stacks log of two engines, from the log-probabilities of the tokens of a prompt alone.

    gen_kl_error    = mean over tokens of exp(r) - r - 1,  r = ln P_train - ln P_gen    nats, estimates KL(gen || train)
    policy_kl_error = the same with train and gen exchanged                             nats, estimates KL(train || gen)

Both are NeMo-RL's (`gen_kl_error`, `policy_kl_error` of its loss, k3 without a clamp). They are estimates of a KL only
over tokens that the first engine sampled; of other text they are a distance all the same, 0 where both agree. `hidden`
of P6 gives the KL itself. They are shown beside numbers of training runs, and nothing is judged by them.
"""

from __future__ import annotations

import numpy as np

from harness.comparators.base import Array


def gen_kl_error(gen: Array, train: Array) -> float:
    """NeMo-RL's `gen_kl_error` of two (T-1,) vectors of log-probabilities of the same tokens; 0 without a token."""
    if gen.shape != train.shape:
        raise ValueError(f"log-probabilities of {gen.shape} and {train.shape} tokens: they must be of the same ones")
    ratio = train.astype(np.float64) - gen.astype(np.float64)
    return float((np.expm1(ratio) - ratio).mean()) if len(ratio) else 0.0


def policy_kl_error(gen: Array, train: Array) -> float:
    """NeMo-RL's `policy_kl_error`: the other direction."""
    return gen_kl_error(train, gen)
