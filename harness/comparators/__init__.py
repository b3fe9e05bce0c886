"""Comparators: (case, side, side) -> verdicts. Layer 2. A comparator never sees an engine.

Each module compares one thing; this file only says who is compared with whom. Every comparator has a negative
control in tests/test_comparators.py, which must fail when its input is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from harness.comparators import (
    counts,
    features,
    kl,
    logprobs,
    outcomes,
    precision,
    probes,
    prompts,
    sequences,
    start_up,
)
from harness.comparators.base import Comparison, Context, Limits, Side, load_side, why
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
        comparison.verdicts += _compare_probe(case, sides, [s for s in observed if s.observation.probe], context)
    if "P10" in properties:
        comparison.verdicts += [verdict for side in sides for verdict in sequences.check_video(case, side, context)]
    if "P11" in properties:
        comparison.verdicts += [verdict for side in sides for verdict in sequences.check_audio(case, side, context)]
    if "P12" in properties and case.dtype:
        comparison.verdicts += [verdict for side in sides for verdict in precision.check(side)]
    for left, right in combinations(sides, 2):
        comparison.verdicts += _compare_pair(case, left, right, context, properties)
    return comparison


def _compare_probe(case: Case, sides: Sequence[Side], probed: Sequence[Side], context: Context) -> list[Verdict]:
    plain = {side.name: side for side in sides}
    assert case.probe is not None
    if case.probe.kind == "tensor":
        return list(start_up.check_tensor(plain, probed))
    return [verdict for side in probed for verdict in probes.check(case, plain[side.name], side, context)]


_PAIR_STAGES: tuple[tuple[Property, str], ...] = (
    ("P1", "prompt_ids"),
    ("P6", "hidden"),
    *((prop, stages[-1]) for prop, stages in features.STAGES.items()),
)


def _compare_pair(
    case: Case, left: Side, right: Side, context: Context, properties: Collection[Property]
) -> list[Verdict]:
    """What is compared pair by pair; a side that did not run makes each property `not comparable`, never absent."""
    pair = left.name, right.name
    absent = [why(s) for s in (left, right) if s.observation.outcome != "ok"]
    if absent:
        reason = ", ".join(absent)
        asked = [entry for entry in _PAIR_STAGES if entry[0] in properties]
        stages = [e for e in asked if e[0] not in features.STAGES or features.media_of(case, e[0])]
        return [Verdict(*stage, *pair, "not comparable", reason=reason) for stage in stages]
    verdicts: list[Verdict] = []
    if "P1" in properties:
        verdicts += prompts.compare(left, right, context) + counts.compare(case, left, right)
    for prop in features.STAGES:
        if prop in properties:
            verdicts += features.compare(case, left, right, context, prop)
    return verdicts
