"""What reinforcement learning would lose: the tokens and sequences that the masks and clips of training stacks touch.

r = ln P_train - ln P_gen of each token of a sequence; a rule keeps a token, or a sequence, whose statistic lies within
its bounds. What is no number is not kept. All but the clip of PPO are off unless asked for; the bounds are
the stack's default, or, where there is none, those that its own source or recipes give.

Sources: verl `verl/trainer/ppo/rollout_corr_helper.py`, `verl/trainer/config/algorithm/rollout_correction.yaml` and
`config/actor/actor.yaml` (volcengine/verl); `nemo_rl/algorithms/loss_functions.py` and `grpo.py` (NVIDIA-NeMo/RL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.comparators.base import Array
from harness.comparators.estimators import IS_THRESHOLD, Floats


def _ratio(log_ratio: Floats) -> Floats:
    """exp(r), token by token."""
    ratio: Floats = np.exp(log_ratio)
    return ratio


def _product(log_ratio: Floats) -> Floats:
    """exp(sum of r): the importance weight of the sequence."""
    statistic: Floats = np.exp(log_ratio.sum(keepdims=True))
    return statistic


def _geometric(log_ratio: Floats) -> Floats:
    """exp(mean of r)."""
    statistic: Floats = np.exp(log_ratio.mean(keepdims=True))
    return statistic


def _error(log_ratio: Floats) -> Floats:
    """Mean of exp(|r|): `token_mult_prob_error` of the sequence."""
    statistic: Floats = np.exp(np.abs(log_ratio)).mean(keepdims=True)
    return statistic


@dataclass(frozen=True)
class Rule:
    """A mask or clip: its name, what it counts, the statistic of r and the bounds within which it changes nothing."""

    name: str
    level: Literal["token", "sequence"]
    statistic: Callable[[Floats], Floats]
    lower: float
    upper: float


RULES = (
    # rollout_is: truncates at rollout_is_threshold, 2.0 by default.
    Rule("verl rollout_is=token", "token", _ratio, -np.inf, IS_THRESHOLD),
    Rule("verl rollout_is=sequence", "sequence", _product, -np.inf, IS_THRESHOLD),
    # rollout_rs: masks outside [1 / threshold, threshold]; null takes the threshold of rollout_is.
    Rule("verl rollout_rs=token", "token", _ratio, 1 / IS_THRESHOLD, IS_THRESHOLD),
    Rule("verl rollout_rs=sequence", "sequence", _product, 1 / IS_THRESHOLD, IS_THRESHOLD),
    # truncated_importance_sampling_type, with the bounds that its comments give as reference.
    Rule("NeMo-RL icepop", "token", _ratio, 0.5, 5.0),
    Rule("NeMo-RL seq-mask-tis", "sequence", _geometric, 0.999, 1.002),
    # seq_logprob_error_threshold: null by default, 2 in its recipes.
    Rule("NeMo-RL seq_logprob_error", "sequence", _error, -np.inf, 2.0),
    # clip_ratio 0.2 of verl, ratio_clip_min and ratio_clip_max 0.2 of NeMo-RL, where the old policy is the generator.
    Rule("PPO clip 0.2", "token", _ratio, 0.8, 1.2),
)


def forecast(gen: Array, train: Array) -> Iterator[dict[str, Any]]:
    """A row a rule for one sequence: how many tokens, or sequences, there are, and how many of them it touches."""
    with np.errstate(over="ignore", invalid="ignore"):
        log_ratio = train.astype(np.float64) - gen.astype(np.float64)
        for rule in RULES if len(log_ratio) else ():
            values = rule.statistic(log_ratio)
            kept = (values >= rule.lower) & (values <= rule.upper)
            yield {"rule": rule.name, "level": rule.level, "n": len(values), "dropped": int((~kept).sum())}
