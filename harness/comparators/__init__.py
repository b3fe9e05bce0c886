"""Comparators: (case, side, side) -> verdicts. Layer 2. A comparator never sees an engine.

Each module compares one thing; this file only says who is compared with whom. Every comparator has a negative
control in tests/test_comparators.py, which must fail when its input is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
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
from harness.comparators.base import Comparison, Context, Limits, Side, guarded, is_ours, load_side, why
from harness.schema import PROBES, Case, Property, Verdict

__all__ = ["Comparison", "Context", "Limits", "Side", "compare", "guarded", "is_ours", "load_side"]


def compare(case: Case, observed: Sequence[Side], context: Context, properties: Collection[Property]) -> Comparison:
    """Everything that can be said about one case: each subject by itself, then each pair in the given order.

    `observed` holds the plain runs and, where the case has a probe, those by its way. Outcomes are always compared: a
    crash is a finding whatever was asked for.
    """
    sides = [side for side in observed if not side.observation.probe]
    comparison = Comparison(verdicts=list(outcomes.check_all(sides)))
    ran = [side for side in sides if side.observation.outcome == "ok"]
    told = comparison.verdicts

    def of_each(prop: Property, stage: str, check: Callable[[Side], Iterable[Verdict]]) -> None:
        for side in sides:
            told.extend(guarded(prop, stage, [(side.name, side.name)], partial(check, side)))

    if "P2" in properties:
        told += counts.check_rounding(case)
        of_each("P2", "counts", lambda side: counts.check(case, side, context))
    if "P6" in properties:
        of_each("P6", "logprobs", lambda side: [logprobs.check(side, context)])
        pairs = [(left.name, right.name) for left, right in combinations(ran, 2)]
        told += guarded("P6", "hidden", pairs, lambda: kl.compare(ran, context, comparison))
    if case.probe is not None and PROBES[case.probe.kind] in properties:
        told += _compare_probe(case, sides, [s for s in observed if s.observation.probe], context)
    if "P10" in properties:
        of_each("P10", "frames", lambda side: sequences.check_video(case, side, context))
    if "P11" in properties:
        of_each("P11", "frames", lambda side: sequences.check_audio(case, side, context))
    if "P12" in properties and case.dtype:
        of_each("P12", "precision", precision.check)
    for left, right in combinations(sides, 2):
        told += _compare_pair(case, left, right, context, properties)
    return comparison


def _compare_probe(case: Case, sides: Sequence[Side], probed: Sequence[Side], context: Context) -> list[Verdict]:
    plain = {side.name: side for side in sides}
    assert case.probe is not None
    kind = case.probe.kind
    if kind == "tensor":
        pairs = [(left.name, right.name) for left, right in combinations(probed, 2)]
        return guarded("P8", kind, pairs, lambda: start_up.check_tensor(plain, probed))
    made = [
        guarded(PROBES[kind], kind, [(side.name,) * 2], partial(probes.check, case, plain[side.name], side, context))
        for side in probed
    ]
    return [verdict for verdicts in made for verdict in verdicts]


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
        open_ = [e for e in asked if e[0] not in features.STAGES or features.media_of(case, e[0])]
        return [Verdict(*stage, *pair, "not comparable", reason=reason) for stage in open_]
    verdicts: list[Verdict] = []
    if "P1" in properties:
        verdicts += guarded("P1", "prompt_ids", [pair], lambda: prompts.compare(left, right, context))
        verdicts += guarded("P1", "counts", [pair], lambda: counts.compare(case, left, right))
    for prop, stages in features.STAGES.items():
        if prop in properties:
            made = partial(features.compare, case, left, right, context, prop)
            verdicts += guarded(prop, stages[-1], [pair], made)
    return verdicts
