"""The page History: what moved and with which release, then every series over the nights as a small chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from reports.changes import Regression, Step, by_series, came_in, in_words, regressions, steps
from reports.frames import when
from reports.nights import Night, Point, Series

WIDTH, HEIGHT, _PAD = 300.0, 44.0, 5.0
"""A chart's own units; it is scaled to its column."""


@dataclass(frozen=True)
class History:
    """Nights in order."""

    nights: tuple[Night, ...]

    @cached_property
    def steps(self) -> list[Step]:
        """Every step."""
        return steps(self.nights)

    @cached_property
    def regressions(self) -> list[Regression]:
        """What the newest night brings."""
        return regressions(self.nights)

    def context(self) -> dict[str, Any]:
        """The variables of history.html.j2."""
        table = by_series(self.nights)
        moved: dict[Series, list[Step]] = {}
        for step in self.steps:
            moved.setdefault(step.series, []).append(step)
        rows = [self._row(series, points, moved.get(series, [])) for series, points in table.items()]
        rows.sort(key=lambda row: (not row["steps"], row["signature"], row["model"], row["subject"], row["name"]))
        return {
            "nights": [self._night(number) for number in range(len(self.nights))],
            "changes": self._changes(),
            "regressions": self.regressions,
            "series": [row for row in rows if not row["signature"]],
            "signatures": [row for row in rows if row["signature"]],
            "chart": {"width": WIDTH, "height": HEIGHT},
        }

    def _night(self, number: int) -> dict[str, Any]:
        night = self.nights[number]
        every = list(night.versions)
        return {
            "number": number + 1,
            "run_id": night.run_id,
            "started": when(night.started),
            "seed": night.plan.get("seed"),
            "cases": night.plan.get("cases"),
            "came_in": came_in(self.nights, number, every),
        }

    def _changes(self) -> list[dict[str, Any]]:
        """Steps grouped by the night they are dated to, newest first."""
        grouped: dict[int, list[Step]] = {}
        for step in self.steps:
            grouped.setdefault(step.night, []).append(step)
        return [
            {
                "night": self._night(number),
                "versions": list(dict.fromkeys(words for step in found for words in step.versions)),
                "steps": [_told(step) for step in found],
            }
            for number, found in sorted(grouped.items(), reverse=True)
        ]

    def _row(self, series: Series, points: Sequence[Point | None], moved: Sequence[Step]) -> dict[str, Any]:
        seen = [(number, point) for number, point in enumerate(points) if point is not None]
        shown = [number for number, point in seen if point.value > 0]
        return {
            "name": series.name,
            "model": series.model,
            "subject": ", ".join(series.subjects),
            "unit": series.unit,
            "share": series.kind == "share",
            "signature": series.signature,
            "latest": points[-1].value if points and points[-1] else None,
            "nights": len(shown) if series.signature else len(seen),
            "known": series.signature and all(point.known for _, point in seen if point.value > 0),
            "first": shown[0] + 1 if shown else None,
            "last": shown[-1] + 1 if shown else None,
            "state": self._state(series, moved),
            "steps": [_told(step) for step in moved],
            "chart": _chart(seen, len(points), moved),
        }

    def _state(self, series: Series, moved: Sequence[Step]) -> str:
        """A signature's history in words: introduced in, fixed in."""
        words = []
        for step in moved if series.signature else ():
            release = "; ".join(step.versions) or "no release that differs"
            verb = "more frequent" if step.worse and step.before > 0 else "introduced" if step.worse else "fixed"
            verb = "rarer" if verb == "fixed" and step.after > 0 else verb
            words.append(f"{verb} in night {step.night + 1} ({release})")
        return ", ".join(words)


def _told(step: Step) -> dict[str, Any]:
    return {
        "name": step.series.name,
        "model": step.series.model,
        "subject": ", ".join(step.series.subjects),
        "signature": step.series.signature,
        "night": step.night + 1,
        "worse": step.worse,
        "known": step.known,
        "versions": step.versions,
        **in_words(step),
    }


def _chart(seen: Sequence[tuple[int, Point]], nights: int, moved: Sequence[Step]) -> Mapping[str, Any]:
    """Dots of nights, the mean of every segment, and the places of steps."""
    values = [point.value for _, point in seen]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if seen and seen[0][1].series.kind == "share":
        low, high = 0.0, max(high, 0.05)
    span = (high - low) or 1.0

    def x(number: float) -> float:
        return round(_PAD + (WIDTH - 2 * _PAD) * (number + 0.5) / max(nights, 1), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _PAD - (HEIGHT - 2 * _PAD) * (value - low) / span, 1)

    edges = [-1, *(step.night for step in moved), nights]
    segments = []
    for first, last in pairwise(edges):
        own = [point.value for number, point in seen if max(first, 0) <= number < last]
        if own:
            mean = math.fsum(own) / len(own)
            segments.append({"x1": x(max(first, 0) - 0.5), "x2": x(last - 0.5), "y": y(mean)})
    return {
        "dots": [
            {"x": x(number), "y": y(point.value), "night": number + 1, "value": point.value} for number, point in seen
        ],
        "segments": segments,
        "steps": [{"x": x(step.night - 0.5), "worse": step.worse, "known": step.known} for step in moved],
    }
