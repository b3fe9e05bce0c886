"""What training stacks log, and what their masks would drop: each against numbers worked by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from harness import show
from harness.comparators import Comparison, Context, Limits, Side, kl
from harness.comparators.base import Array
from harness.comparators.estimators import METRICS, gen_kl_error, measured, policy_kl_error, rollout_probs_diff_std
from harness.comparators.forecast import RULES, forecast
from harness.comparators.kl import OutputHead, realised_logprobs
from harness.records import rows_of
from harness.schema import Case, Observation, Part
from harness.spec import MediaTokens
from harness.store import TABLES

GEN, TRAIN = np.log([1 / 2, 1 / 4]), np.log([1 / 4, 1 / 4])

BY_HAND = {
    "gen_kl_error": (math.log(2) - 1 / 2) / 2,  # r = (-ln 2, 0); (1/2 + ln 2 - 1) / 2
    "policy_kl_error": (1 - math.log(2)) / 2,  # (2 - ln 2 - 1) / 2
    "js_divergence_error": math.log(9 / 8) / 4,  # mean 3/8: (1/3 - ln 4/3 - 1/3 - ln 2/3) / 2 over two tokens
    "token_mult_prob_error": 3 / 2,  # (2 + 1) / 2
    "kl": math.log(2) / 2,
    "k3_kl": (math.log(2) - 1 / 2) / 2,
    "chi2_token": -3 / 8,  # (1/4 + 1) / 2 - 1
    "ppl_ratio": math.sqrt(2),  # sqrt(4 * 4) / sqrt(2 * 4)
    "rollout_probs_diff_mean": 1 / 8,
    "rollout_probs_diff_max": 1 / 4,
    "rollout_probs_diff_std": math.sqrt(2) / 8,  # of 1/4 and 0, divided by n - 1
    "rollout_is_eff_sample_size": 0.9,  # weights 1/2 and 1: (3/4)^2 / (5/8)
}

EXCHANGED = BY_HAND | {
    "gen_kl_error": (1 - math.log(2)) / 2,
    "policy_kl_error": (math.log(2) - 1 / 2) / 2,
    "kl": -math.log(2) / 2,
    "k3_kl": (1 - math.log(2)) / 2,
    "chi2_token": 3 / 2,
    "ppl_ratio": math.sqrt(1 / 2),
}


@pytest.mark.parametrize(("gen", "train", "expected"), [(GEN, TRAIN, BY_HAND), (TRAIN, GEN, EXCHANGED)])
def test_metrics_of_two_tokens_by_hand(gen: Array, train: Array, expected: dict[str, float]) -> None:
    """Every metric of two tokens is the number worked by hand; exchanged, those with a direction change."""
    assert measured(gen, train) == pytest.approx(expected, rel=1e-7)


def test_equal_sides_have_no_error() -> None:
    """The same log-probabilities give 0, and 1 for the factors and the effective sample size."""
    found = measured(GEN, GEN)
    ones = {"token_mult_prob_error", "ppl_ratio", "rollout_is_eff_sample_size"}
    assert found == pytest.approx({name: float(name in ones) for name in BY_HAND}, abs=1e-7)


def test_gen_kl_has_a_direction_and_wants_the_same_tokens() -> None:
    """k3 of one token: of r = ln 2 it is 1 - ln 2 one way, ln 2 - 1/2 the other; other tokens are refused."""
    gen, train = np.array([-2.0]), np.array([-2.0 + np.log(2)])
    assert gen_kl_error(gen, train) == pytest.approx(1 - np.log(2))
    assert policy_kl_error(gen, train) == pytest.approx(np.log(2) - 0.5)
    for metric in METRICS:
        with pytest.raises(ValueError, match="same ones"):
            metric(gen, np.zeros(2))


def test_nothing_to_measure_is_no_zero() -> None:
    """Without a token every metric is NaN, and so is the deviation of a single one."""
    assert all(math.isnan(value) for value in measured(GEN[:0], GEN[:0]).values())
    assert math.isnan(rollout_probs_diff_std(GEN[:1], TRAIN[:1]))


def test_a_token_that_one_side_rules_out_is_not_hidden() -> None:
    """A log-probability of minus infinity makes the metrics that stacks make infinite of it infinite here."""
    found = measured(np.array([-1.0, -np.inf]), np.array([-1.0, -2.0]))
    assert found["gen_kl_error"] == np.inf or math.isnan(found["gen_kl_error"])
    assert found["token_mult_prob_error"] == np.inf
    assert found["rollout_is_eff_sample_size"] == pytest.approx(0.9)


def _dropped(ratios: Sequence[float]) -> dict[str, tuple[int, int]]:
    train = np.log(np.array(ratios))
    return {row["rule"]: (row["dropped"], row["n"]) for row in forecast(np.zeros(len(ratios)), train)}


def test_what_each_rule_drops_by_hand() -> None:
    """Ratios 1, 3, 1/4 and 1.1: their product is 0.825, its fourth root 0.953, the mean of exp(|r|) 2.275."""
    assert _dropped([1, 3, 1 / 4, 1.1]) == {
        "verl rollout_is=token": (1, 4),
        "verl rollout_is=sequence": (0, 1),
        "verl rollout_rs=token": (2, 4),
        "verl rollout_rs=sequence": (0, 1),
        "NeMo-RL icepop": (1, 4),
        "NeMo-RL seq-mask-tis": (1, 1),
        "NeMo-RL seq_logprob_error": (1, 1),
        "PPO clip 0.2": (2, 4),
    }


def test_equal_engines_lose_nothing_and_broken_ones_all() -> None:
    """Ratios of 1 touch no rule; a ratio that is no number is kept by none; without tokens nothing is forecast."""
    assert all(dropped == 0 for dropped, _ in _dropped([1, 1, 1]).values())
    broken = list(forecast(np.array([-np.inf]), np.array([-np.inf])))
    assert [row["dropped"] for row in broken] == [1] * len(RULES)
    assert _dropped([]) == {}


def _rows() -> tuple[Comparison, dict[str, list[dict[str, object]]], list[Array]]:
    generator = torch.Generator().manual_seed(0)
    head = OutputHead(torch.randn(30, 8, generator=generator), cap=30.0)
    ids = np.array([1, 2, 10, 11, 12, 3])
    states = [torch.randn(6, 8, generator=generator).numpy()]
    states.append(states[0] + np.float32(0.1))
    own = [realised_logprobs(hidden, ids, head) for hidden in states]
    sides = [
        Side(Observation("c", name, "ok"), {"prompt_ids": ids, "hidden": hidden, "logprobs": logprobs})
        for name, hidden, logprobs in zip("ab", states, own, strict=True)
    ]
    comparison = Comparison()
    kl.compare(sides, Context(MediaTokens(10, 11, 12), head, Limits.of("float32")), comparison)
    rows, _ = rows_of(Case("tiny", (Part(text="x"),)), sides, comparison, [])
    return comparison, rows, own


def test_metrics_are_in_every_run() -> None:
    """The row of all positions has every metric; that of a role, those of the tokens that its positions predict."""
    comparison, rows, own = _rows()
    by_role = {row["role"]: row for row in rows["divergences"]}
    assert by_role["all"].items() >= measured(*own).items()
    assert by_role["all"]["tokens"] == 5
    of_soft = measured(own[0][3:4], own[1][3:4])
    found = {name: by_role["soft"][name] for name in of_soft}
    assert found == pytest.approx(of_soft, nan_ok=True)
    divergence = comparison.divergences["a", "b"]
    assert by_role["all"]["p90"] == pytest.approx(np.percentile(divergence.kl_left_right, 90))
    assert 0 <= float(str(by_role["all"]["top5_shared"])) <= 1
    for table in ("divergences", "forecasts"):
        assert all({*row} <= {*TABLES[table]} for row in rows[table])


def test_a_role_without_a_scored_token_has_no_metrics() -> None:
    """The last position predicts no token: its role has a KL, no tokens, and no metric that could be taken for 0."""
    _, rows, _ = _rows()
    (last,) = [row for row in rows["divergences"] if row["role"] == "after_media"]
    assert (last["n"], last["tokens"], last.get("gen_kl_error")) == (1, 0, None)


def test_the_summary_says_what_would_be_lost() -> None:
    """One line a pair sums over cases, names the rules that act, and says so where none does."""
    rows = [
        {"left": left, "right": right, "rule": rule, "level": level, "n": 10, "dropped": dropped}
        for left, right, dropped in (("hf", "vllm", 2), ("hf", "vllm", 1), ("hf", "native", 0))
        for rule, level in (("PPO clip 0.2", "token"),)
    ]
    written = io.StringIO()
    show.forecasts(Console(file=written, width=200), pd.DataFrame(rows))
    assert written.getvalue().splitlines() == [
        "RL forecast hf -> vllm: PPO clip 0.2 3 of 20 tokens",
        "RL forecast hf -> native: no mask or clip acts",
    ]
