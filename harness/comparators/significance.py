"""Whether cases differ by more than noise does: an exact test that assumes nothing of how noise is distributed.

Of m calibration cases each has a noise, of n cases each a difference. The floor is the largest noise. If differences
were only noise, all n + m numbers would be exchangeable, and of the k largest each might be of either kind:

    P(k or more of n differences exceed the largest of m noises) = C(n, k) / C(n + m, k)

This is the exceedance test (S. Rosenbaum, Ann. Math. Statist. 25 (1954), 146). It needs exchangeable *cases*, so
cases are counted, never tokens; that the floor itself was estimated from m cases is in the formula. Over all
comparisons of a run, p values are adjusted by Benjamini and Hochberg's procedure (scipy.stats.false_discovery_control).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

ALPHA = 0.01
"""The share of false ones among the comparisons of a run that are called different; so also, where nothing differs at
all, the chance that a run calls anything different."""

RESAMPLES = 2_000


def exceedance_p(exceeding: int, cases: int, noises: int) -> float:
    """The chance that so many or more of the cases exceed all noises although nothing differs."""
    return float(stats.hypergeom.pmf(exceeding, cases + noises, cases, exceeding))


def least_exceeding(cases: int, noises: int, alpha: float) -> int | None:
    """How many cases have to exceed the floor for a p value of at most `alpha`; None if all would not be enough."""
    return next((k for k in range(1, cases + 1) if exceedance_p(k, cases, noises) <= alpha), None)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """q values: the smallest share of false ones at which each would be called different."""
    return [float(q) for q in stats.false_discovery_control(list(p_values), method="bh")] if p_values else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over cases: percentile bootstrap, cases drawn whole; NaN where there is none."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    drawn = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
