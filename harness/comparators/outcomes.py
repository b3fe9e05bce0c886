"""Stage `outcome` of P1: an engine that died or refused has no expanded prompt to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from harness.comparators.base import Side
from harness.schema import Verdict


def check_all(sides: Sequence[Side]) -> Iterator[Verdict]:
    """A dead engine differs from what was promised; a refusal differs from another engine's acceptance.

    What the harness or the machine did to a side leaves its pairs `not comparable`.
    """
    for side in sides:
        dead = side.observation.outcome in ("crashed", "timeout")
        if dead:
            yield Verdict("P1", "outcome", side.name, side.name, "differ", reason=_words(side))
    for left, right in combinations(sides, 2):
        yield _compare(left, right)


def _compare(left: Side, right: Side) -> Verdict:
    kinds = {left.observation.outcome, right.observation.outcome}
    pair = left.name, right.name
    absent = [side for side in (left, right) if side.observation.outcome not in ("ok", "rejected")]
    if absent:
        return Verdict("P1", "outcome", *pair, "not comparable", reason="; ".join(map(_words, absent)))
    if len(kinds) == 1:
        return Verdict("P1", "outcome", *pair, "agree")
    refused = left if left.observation.outcome == "rejected" else right
    return Verdict("P1", "outcome", *pair, "differ", reason=_words(refused))


def _words(side: Side) -> str:
    return f"{side.name} {side.observation.outcome}: {side.observation.message}"
