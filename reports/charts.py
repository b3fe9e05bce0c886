"""Small charts that are part of a table's row: geometry here, SVG in templates/charts.html.j2. No script needed.

Places are percent of a chart's width, so that one drawing fits a phone and a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cell:
    """A piece of a strip: where it starts, how wide it is, how dark (0 to 1), and what it holds."""

    x: float
    width: float
    dark: float
    words: str


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from 10**low to 10**high; what is below or above is drawn at its ends."""

    low: int
    high: int
    steps: int = 2
    """Cells of a strip in a decade."""

    def place(self, value: float) -> float:
        """Percent of the width."""
        exponent = math.log10(value) if value > 0 else self.low
        return round(100 * (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def ticks(self, every: int = 3) -> list[tuple[float, str]]:
        """Places and words of powers of ten."""
        return [(self.place(10.0**power), _power(power)) for power in range(self.low, self.high + 1, every)]

    def strip(self, values: Any, unit: str) -> list[Cell]:
        """How values are spread."""
        finite = np.asarray(values, dtype=np.float64)
        finite = np.clip(finite[np.isfinite(finite)], 10.0**self.low, 10.0**self.high)
        edges = np.linspace(self.low, self.high, (self.high - self.low) * self.steps + 1)
        counts, _ = np.histogram(np.log10(finite), edges)
        return cells(counts.tolist(), [f"{10.0**edge:.1g}" for edge in edges], unit)


KL_SCALE = Scale(-15, 2)


def cells(counts: Sequence[int], edges: Sequence[str], unit: str) -> list[Cell]:
    """A histogram as cells; the fullest is darkest, and one that holds anything can be seen."""
    most, width = max(counts, default=0), 100 / max(len(counts), 1)
    return [
        Cell(
            round(k * width, 2),
            round(width, 2),
            round(0.25 + 0.75 * math.sqrt(count / most), 2),
            f"{count:,} from {edges[k]} to {edges[k + 1]} {unit}",
        )
        for k, count in enumerate(counts)
        if count
    ]


def _power(power: int) -> str:
    small = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if power == 0 else f"10{small}"
