"""Comparators: (case, side, side) -> verdicts. Layer 2. A comparator never sees an engine.

Each module compares one thing; this file only says who is compared with whom. Every comparator has a negative
control in tests/test_comparators.py, which must fail when its input is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from harness.comparators import counts, features, kl, logprobs, outcomes, probes, prompts
from harness.comparators.base import Comparison, Context, Limits, Side, load_side
from harness.schema import PROBES, Case, Property, Verdict

__all__ = ["Comparison", "Context", "Limits", "Side", "compare", "load_side"]


def compare(case: Case, observed: Sequence[Side], context: Context, properties: Collection[Property]) -> Comparison:
    """Everything that can be said about one case: each subject by itself, then each pair in the given order.

    `observed` holds the plain runs and, where the case has a probe, those by its way. Outcomes are always compared: a
    crash is a finding whatever was asked for.
    """
    sides = [side for side in observed if not side.observation.probe]
    comparison = Comparison(verdicts=list(outcomes.check_all(sides)))
    ran = [side for side in sides if side.observation.outcome == "ok"]
    if "P2" in properties:
        comparison.verdicts += counts.check_rounding(case)
        comparison.verdicts += [verdict for side in sides for verdict in counts.check(case, side, context)]
    if "P6" in properties:
        comparison.verdicts += [logprobs.check(side, context) for side in sides]
        kl.compare(ran, context, comparison)
    if case.probe is not None and PROBES[case.probe.kind] in properties:
        plain = {side.name: side for side in sides}
        for probed in (side for side in observed if side.observation.probe):
            comparison.verdicts += probes.check(case, plain[probed.name], probed, context)
    for left, right in combinations(sides, 2):
        comparison.verdicts += _compare_pair(case, left, right, context, properties)
    return comparison


_PAIR_STAGES: tuple[tuple[Property, str], ...] = (("P1", "prompt_ids"), ("P6", "hidden"), ("P7", "mm_features"))


def _compare_pair(
    case: Case, left: Side, right: Side, context: Context, properties: Collection[Property]
) -> list[Verdict]:
    """What is compared pair by pair; a side that did not run makes each property `not comparable`, never absent."""
    pair = left.name, right.name
    absent = [f"{s.name} {s.observation.outcome}" for s in (left, right) if s.observation.outcome != "ok"]
    if absent:
        reason = ", ".join(absent)
        stages = [entry for entry in _PAIR_STAGES if entry[0] in properties and (case.images or entry[0] != "P7")]
        return [Verdict(*stage, *pair, "not comparable", reason=reason) for stage in stages]
    verdicts: list[Verdict] = []
    if "P1" in properties:
        verdicts += prompts.compare(left, right, context) + counts.compare(case, left, right)
    if "P7" in properties:
        verdicts += features.compare(case, left, right, context)
    return verdicts
