"""What training stacks log of two engines, from the log-probabilities of the same tokens alone: docs/metrics.md.

Each takes `gen` and `train`, two (n,) vectors: ln P of the tokens by the engine that generates and by the one that
trains. r = train - gen, the logarithm of the importance ratio. Without a token they are NaN. As estimates of a KL they
hold over tokens that `gen` sampled; of other text they are a distance all the same, 0 where both agree. `hidden` of P6
gives the KL itself: these are shown beside the numbers of training runs, and nothing is judged by them.

Sources, read for their definitions: NVIDIA-NeMo/RL `nemo_rl/algorithms/loss_functions.py` (its clipped policy-gradient
loss); volcengine/verl `verl/trainer/ppo/rollout_corr_helper.py` and `verl/utils/debug/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from harness.comparators.base import Array

Floats = npt.NDArray[np.float64]

SAFETY_BOUND = 20.0
"""verl's, of a log ratio before it is an exponent."""

IS_THRESHOLD = 2.0
"""verl's default `rollout_is_threshold`; its reciprocal is the lower one."""


def gen_kl_error(gen: Array, train: Array) -> float:
    """NeMo-RL: mean of exp(r) - r - 1, in nats; estimates KL(gen || train) (its k3 without a clamp)."""
    return _mean(_k3(_log_ratio(gen, train)))


def policy_kl_error(gen: Array, train: Array) -> float:
    """NeMo-RL: mean of exp(-r) + r - 1, in nats; estimates KL(train || gen)."""
    return _mean(_k3(_log_ratio(train, gen)))


def js_divergence_error(gen: Array, train: Array) -> float:
    """NeMo-RL: mean of (k3(gen - m) + k3(train - m)) / 2, m = ln((P_gen + P_train) / 2), k3(x) = exp(x) - x - 1.

    In nats, symmetric. `js_mean` is the JS itself.
    """
    a, b = gen.astype(np.float64), train.astype(np.float64)
    _log_ratio(a, b)
    mixture = np.logaddexp(a, b) - np.log(2.0)
    return _mean((_k3(a - mixture) + _k3(b - mixture)) / 2)


def token_mult_prob_error(gen: Array, train: Array) -> float:
    """NeMo-RL: mean of exp(|r|), a factor of at least 1; symmetric."""
    return _mean(np.exp(np.abs(_log_ratio(gen, train))))


def kl(gen: Array, train: Array) -> float:
    """verl `rollout_corr/kl`: mean of -r, in nats; the unbiased estimate of KL(gen || train), of either sign."""
    return _mean(-_log_ratio(gen, train))


def k3_kl(gen: Array, train: Array) -> float:
    """verl `rollout_corr/k3_kl`: the same number as NeMo-RL's `gen_kl_error`."""
    return gen_kl_error(gen, train)


def chi2_token(gen: Array, train: Array) -> float:
    """verl `rollout_corr/chi2_token`: mean of exp(r)^2 minus 1, r within +-20; estimates chi^2(train || gen)."""
    return _mean(np.expm1(2 * np.clip(_log_ratio(gen, train), -SAFETY_BOUND, SAFETY_BOUND)))


def ppl_ratio(gen: Array, train: Array) -> float:
    """verl `rollout_corr/ppl_ratio` of one sequence: exp(-mean r), the trainer's perplexity over the generator's."""
    return float(np.exp(-_mean(_log_ratio(gen, train))))


def rollout_probs_diff_mean(gen: Array, train: Array) -> float:
    """verl `training/rollout_probs_diff_mean`: mean of |P_gen - P_train|; symmetric."""
    return _mean(_gaps(gen, train))


def rollout_probs_diff_max(gen: Array, train: Array) -> float:
    """verl `training/rollout_probs_diff_max`: the largest |P_gen - P_train|; symmetric."""
    gaps = _gaps(gen, train)
    return float(gaps.max()) if len(gaps) else np.nan


def rollout_probs_diff_std(gen: Array, train: Array) -> float:
    """verl `training/rollout_probs_diff_std`: of |P_gen - P_train|, divided by n - 1; NaN for one token."""
    gaps = _gaps(gen, train)
    return float(gaps.std(ddof=1)) if len(gaps) > 1 else np.nan


def rollout_is_eff_sample_size(gen: Array, train: Array) -> float:
    """verl `rollout_corr/rollout_is_eff_sample_size`: mean(w)^2 / mean(w^2), w = exp(r) within [1/2, 2]; at most 1."""
    ratio = np.exp(np.clip(_log_ratio(gen, train), -SAFETY_BOUND, SAFETY_BOUND))
    weights = np.clip(ratio, 1 / IS_THRESHOLD, IS_THRESHOLD)
    return 1 / _mean((weights / (_mean(weights) + 1e-8)) ** 2)


METRICS: tuple[Callable[[Array, Array], float], ...] = (
    gen_kl_error,
    policy_kl_error,
    js_divergence_error,
    token_mult_prob_error,
    kl,
    k3_kl,
    chi2_token,
    ppl_ratio,
    rollout_probs_diff_mean,
    rollout_probs_diff_max,
    rollout_probs_diff_std,
    rollout_is_eff_sample_size,
)
"""In the order of docs/metrics.md; their names are the store's columns."""


def measured(gen: Array, train: Array) -> dict[str, float]:
    """Every metric by its name. A token that one side rules out gives infinity or NaN, as it does in those stacks."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return {metric.__name__: metric(gen, train) for metric in METRICS}


def _log_ratio(gen: Array, train: Array) -> Floats:
    if gen.shape != train.shape:
        raise ValueError(f"log-probabilities of {gen.shape} and {train.shape} tokens: they must be of the same ones")
    return train.astype(np.float64) - gen.astype(np.float64)


def _k3(log_ratio: Floats) -> Floats:
    k3: Floats = np.expm1(log_ratio) - log_ratio
    return k3


def _gaps(gen: Array, train: Array) -> Floats:
    _log_ratio(gen, train)
    gaps: Floats = np.abs(np.exp(gen.astype(np.float64)) - np.exp(train.astype(np.float64)))
    return gaps


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else np.nan
