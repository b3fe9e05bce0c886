"""Step changes in a history: when a series moved by more than its own noise, and which release came in that night.

PELT (ruptures) minimises, over all ways to cut a series of T nights into segments,

    sum over segments of sum_t (y_t - mean)^2 / s_t^2  +  penalty * number of cuts

s_t is the standard error of night t: of a level as measured over its cases; of a share on the scale
y = asin(sqrt(p)), where it is 1 / sqrt(4 n + 2) whatever p is (Anscombe's p = (k + 3/8) / (n + 3/4)). One cut in a
quiet series lowers the sum by a chi-square of one degree of freedom. So the penalty is the value that this exceeds
with probability

    FALSE_STEPS / (series * (T - 1)),

times how much nights differ beyond s_t: the median of (y_t+1 - y_t)^2 / (s_t^2 + s_t+1^2), divided by that of a
chi-square, where that is above 1. A step moves one difference and no median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import chdtri

from reports.nights import Night, Point, Series

FALSE_STEPS = 0.01
"""How many steps a whole quiet history may be expected to show."""

_ENOUGH_NIGHTS = 6
"""Fewer say nothing about how nights differ."""


@dataclass(frozen=True)
class Step:
    """A series moved: `night` is the number of the first night that is different, `before` and `after` are means."""

    series: Series
    night: int
    before: float
    after: float
    known: bool
    versions: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether it moved in the bad direction."""
        return (self.after > self.before) == (self.series.worse == "up")


def cuts(values: Any, errors: Any, series: int = 1) -> list[int]:
    """Numbers of the nights at which a series moved, beside so many other series."""
    if len(values) < 2:
        return []
    from reports.pelt import fewest  # It takes a second to import, which commands without a history need not wait for.

    return fewest(values, errors, penalty_of(values, errors, series))


def penalty_of(values: Any, errors: Any, series: int) -> float:
    """What one more cut must be worth, as the head of this file says."""
    quantile = float(chdtri(1, FALSE_STEPS / (max(series, 1) * (len(values) - 1))))
    if len(values) < _ENOUGH_NIGHTS:
        return quantile
    squares = np.asarray(errors, dtype=float) ** 2
    between = np.diff(values) ** 2 / (squares[:-1] + squares[1:])
    return quantile * max(1.0, float(np.median(between) / chdtri(1, 0.5)))


def by_series(nights: Sequence[Night]) -> dict[Series, list[Point | None]]:
    """Every series with its point of each night. A signature that a night lacks was seen in none of its cases."""
    table: dict[Series, list[Point | None]] = {}
    for number, night in enumerate(nights):
        for point in night.points:
            table.setdefault(point.series, [None] * len(nights))[number] = point
    for series, points in table.items():
        if series.signature:
            for number, night in enumerate(nights):
                if points[number] is None and (asked := _asked(night, series)):
                    points[number] = Point(series, 0.0, asked)
    return table


def _asked(night: Night, series: Series) -> int:
    """In how many cases of a night a signature could have shown."""
    same = f"unexpected findings of {series.name.partition('/')[0]}"
    there = [p.n for p in night.points if (p.series.name, p.series.model) == (same, series.model)]
    return max(there, default=0)


def steps(nights: Sequence[Night]) -> list[Step]:
    """Every step of every series, oldest first."""
    table = by_series(nights)
    found = []
    for series, points in table.items():
        at = [number for number, point in enumerate(points) if point is not None]
        seen = [point for point in points if point is not None]
        for cut, (before, after) in _segments(seen, len(table)).items():
            known = all(point.known for point in seen if point.value > 0) and series.signature
            found.append(Step(series, at[cut], before, after, known, came_in(nights, at[cut], series.subjects)))
    return sorted(found, key=lambda step: (step.night, step.series.subjects, step.series.name))


def _segments(points: Sequence[Point], series: int) -> dict[int, tuple[float, float]]:
    """Cut -> the means on both sides of it."""
    places = [_scaled(point) for point in points]
    found = cuts([value for value, _ in places], [error for _, error in places], series)
    edges = [0, *found, len(points)]
    means = [float(np.mean([p.value for p in points[a:b]])) for a, b in pairwise(edges)]
    return {cut: (means[k], means[k + 1]) for k, cut in enumerate(found)}


def _scaled(point: Point) -> tuple[float, float]:
    """A value and its standard error on the scale on which steps are looked for."""
    if point.series.kind == "level":
        return point.value, point.error
    share = (point.value * point.n + 0.375) / (point.n + 0.75)
    return float(np.arcsin(np.sqrt(share))), float((4 * point.n + 2) ** -0.5)


def came_in(nights: Sequence[Night], number: int, subjects: Sequence[str]) -> tuple[str, ...]:
    """The packages of those subjects that differ from the night before, in words."""
    if number == 0:
        return ()
    before, after = nights[number - 1].versions, nights[number].versions
    return tuple(
        f"{name}: {package} {before.get(name, {}).get(package, 'none')} → {version}"
        for name in subjects
        for package, version in after.get(name, {}).items()
        if before.get(name, {}).get(package) != version
    )


@dataclass(frozen=True)
class Regression:
    """Why tonight fails: a step for the worse that no night before knew, or a signature that is new."""

    what: str
    series: Series
    detail: str
    versions: tuple[str, ...]


def regressions(nights: Sequence[Night]) -> list[Regression]:
    """What the newest night brings that a written cause does not explain."""
    told = {(step.series, step.worse, step.night) for step in steps(nights[:-1])}
    found = []
    for step in steps(nights):
        if step.worse and not step.known and not any((step.series, True, step.night + k) in told for k in (-1, 0, 1)):
            numbers = f"{_words(step.before, step.series)} until then, {_words(step.after, step.series)} since"
            what = f"step of {step.series.name}"
            found.append(Regression(what, step.series, f"{numbers}; since night {step.night + 1}", step.versions))
    return [*found, *_new_signatures(nights)]


def _new_signatures(nights: Sequence[Night]) -> list[Regression]:
    """Unexplained signatures of tonight that no night before had; the first night of a history has nothing new."""
    if len(nights) < 2:
        return []
    before = {(p.series.name, p.series.model) for night in nights[:-1] for p in night.points if p.series.signature}
    return [
        Regression(
            "new signature", point.series, f"in {point.value:.1%} of {point.n} cases",
            came_in(nights, len(nights) - 1, point.series.subjects),
        )
        for point in nights[-1].points
        if point.series.signature and not point.known and (point.series.name, point.series.model) not in before
    ]  # fmt: skip


def _words(value: float, series: Series) -> str:
    return f"{value:.1%} {series.unit}" if series.kind == "share" else f"{value:.2f} {series.unit}"


def in_words(step: Step) -> Mapping[str, str]:
    """A step's numbers as a person reads them."""
    return {"before": _words(step.before, step.series), "after": _words(step.after, step.series)}
