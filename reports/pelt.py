"""PELT with errors of their own for every night; `reports.changes` says what it minimises and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import ruptures
from ruptures.base import BaseCost


class _WeightedMean(BaseCost):  # type: ignore[misc]
    """Squares around a segment's mean, in units of each night's own error."""

    model = "weighted-mean"
    min_size = 1

    def fit(self, signal: Any) -> _WeightedMean:
        self.signal, self.value, self.weight = signal, signal[:, 0], signal[:, 1]
        return self

    def error(self, start: int, end: int) -> float:
        value, weight = self.value[start:end], self.weight[start:end]
        return float((weight * (value - np.average(value, weights=weight)) ** 2).sum())


def fewest(values: Any, errors: Any, penalty: float) -> list[int]:
    """Where the cheapest segmentation cuts, a cut costing so much."""
    signal = np.column_stack([values, np.asarray(errors, dtype=float) ** -2.0])
    ends: list[int] = ruptures.Pelt(custom_cost=_WeightedMean(), min_size=1, jump=1).fit(signal).predict(pen=penalty)
    return ends[:-1]
