"""P6, stage `generation`: continuations that subjects wrote, scored by all of them.

Unit: nats, the largest KL(left || right) over the positions of the continuation, over all continuations of a case;
limit as in P6. `generation.prefill`: prompt and continuation in one pass; `generation.decode`: the continuation token
by token from the cache. A pair that differs in the prompt already is told so by `hidden`, and is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness.comparators.base import Comparison, Context, Side, judge
from harness.comparators.kl import diverge, judged, place
from harness.schema import SILENT, Verdict

WAYS = ("prefill", "decode")


@dataclass(frozen=True)
class Round:
    """What every subject made of one request: to write a continuation, or to score one that `authors` wrote."""

    way: str
    authors: tuple[str, ...]
    tokens: tuple[int, ...]
    sides: tuple[Side, ...]


def compare(rounds: Sequence[Round], context: Context, comparison: Comparison) -> Iterator[Verdict]:
    """One verdict a pair and way, and one of each subject that could not write."""
    agreed = {(v.left, v.right) for v in comparison.verdicts if v.stage == "hidden" and v.verdict == "agree"}
    (writing,) = [r for r in rounds if r.way == "write"]
    for side in writing.sides:
        if side.observation.outcome != "ok":
            yield _without("generation.write", side, side)
    for left, right in combinations([side.name for side in writing.sides], 2):
        for way in WAYS:
            scored = [r for r in rounds if r.way == way]
            yield _of_pair(way, left, right, scored, context, told=(left, right) not in agreed)


def _of_pair(way: str, left: str, right: str, rounds: Sequence[Round], context: Context, *, told: bool) -> Verdict:
    stage, pair = f"generation.{way}", (left, right)
    if told or not rounds:
        reason = "the prompt alone differs, or is not comparable" if told else "no subject wrote a continuation"
        return Verdict("P6", stage, *pair, "not comparable", reason=reason)
    verdicts = [_scored(stage, *_of(round_, *pair), round_, context) for round_ in rounds]
    differing = [verdict for verdict in verdicts if verdict.verdict == "differ"]
    open_ = [verdict for verdict in verdicts if verdict.verdict == "not comparable"]
    return max(differing or open_ or verdicts, key=lambda v: np.nan_to_num(v.measured or 0.0, nan=np.inf))


def _of(round_: Round, left: str, right: str) -> tuple[Side, Side]:
    sides = {side.name: side for side in round_.sides}
    return sides[left], sides[right]


def _scored(stage: str, left: Side, right: Side, round_: Round, context: Context) -> Verdict:
    if (left.observation.outcome, right.observation.outcome) != ("ok", "ok"):
        return _without(stage, left, right)
    pair, count = (left.name, right.name), len(round_.tokens)
    ids = left.arrays["prompt_ids"], right.arrays["prompt_ids"]
    if not np.array_equal(*ids) or tuple(ids[0][-count:].tolist()) != round_.tokens:
        return Verdict("P6", stage, *pair, "not comparable", reason="prompt ids differ")
    states = [side.arrays["hidden"][-count:] for side in (left, right)]
    kl = diverge(states, context.head, ("",) * count)[0, 1].kl_left_right
    worst = judged(kl, context)
    where = f"{place(kl, worst)} at token {worst + 1} of {count}"
    reason = f"{where} that {', '.join(round_.authors)} wrote; mean {kl.mean():.3g}"
    return judge("P6", stage, pair, float(kl[worst]), context.limits.kl_nats, "nats", reason)


def _without(stage: str, left: Side, right: Side) -> Verdict:
    """Of sides of which at least one has no result: who died where the other ran differs."""
    sides = {side.name: side.observation for side in (left, right)}
    told = len({entry.outcome for entry in sides.values()} - {*SILENT}) < 2
    words = ", ".join(f"{name} {entry.outcome}: {entry.message}" for name, entry in sides.items())
    return Verdict("P6", stage, left.name, right.name, "not comparable" if told else "differ", reason=words)
