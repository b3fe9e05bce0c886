"""The test behind a comparison: exact by counting, honest about few cases, and controlled over many comparisons."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from harness.comparators.significance import ALPHA, adjusted, exceedance_p, interval, least_exceeding


@pytest.mark.parametrize(("cases", "noises"), [(3, 4), (5, 2), (1, 6)])
def test_p_values_are_counted(cases: int, noises: int) -> None:
    """Over all ways to deal ranks to cases and noises, the share in which the top k are cases is the p value."""
    ranks = range(cases + noises)
    dealt = [set(hand) for hand in combinations(ranks, cases)]
    for k in range(cases + 1):
        top = set(list(ranks)[len(ranks) - k :])
        assert exceedance_p(k, cases, noises) == pytest.approx(sum(top <= hand for hand in dealt) / len(dealt))


def test_equal_distributions_are_called_different_as_rarely_as_promised() -> None:
    """Of 4,000 experiments with heavy tails and nothing different, at most 1 % and a little are below 1 %."""
    drawn = np.random.default_rng(0).standard_cauchy((4_000, 30)) ** 2
    exceeding = (drawn[:, :20] > drawn[:, 20:].max(axis=1, keepdims=True)).sum(axis=1)
    called = np.mean([exceedance_p(int(k), 20, 10) <= ALPHA for k in exceeding])
    assert called <= ALPHA + 0.005


def test_a_shift_beyond_the_floor_is_seen() -> None:
    """Negative control of the one above: every case exceeds every noise, which is as good as impossible by chance."""
    assert exceedance_p(20, 20, 10) < 1e-7


def test_too_few_cases_cannot_tell() -> None:
    """Two cases beside two noises would be like that one time in six; more are needed, and how many is said."""
    assert least_exceeding(2, 2, ALPHA) is None
    needed = least_exceeding(20, 20, ALPHA)
    assert needed is not None
    assert exceedance_p(needed, 20, 20) <= ALPHA < exceedance_p(needed - 1, 20, 20)


def test_many_comparisons_are_adjusted() -> None:
    """By hand: of p = 0.01, 0.02, 0.9 the q values are 3 x 0.01 / 1, 3 x 0.02 / 2 and 0.9."""
    assert adjusted([0.01, 0.9, 0.02]) == pytest.approx([0.03, 0.9, 0.03])
    assert adjusted([]) == []


def test_the_interval_is_over_cases() -> None:
    """It holds the mean, shrinks with more cases, is the same each time; of one case or infinities there is none."""
    few, many = (np.random.default_rng(1).normal(5, 1, n).tolist() for n in (8, 200))
    low, high = interval(few)
    assert low < np.mean(few) < high
    assert interval(few) == (low, high)
    assert np.diff(interval(many)) < (high - low) / 2
    assert all(map(math.isnan, (*interval([1.0]), *interval([1.0, math.inf]))))
