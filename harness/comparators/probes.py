"""P3, P4, P5 and P9: a case's probe beside the plain run, within one subject.

Unit: nats, the largest KL over the positions that both have, from the plain run to the probe; limit as in P6. The last
positions of both are compared, because a run that finds a prefix in a cache gives hidden states of the rest only. Where
the prompt must be the same tokens, stage `prompt_ids.KIND` counts those that are not, with limit 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.comparators import visibility
from harness.comparators.base import Array, Context, Side, judge, lacking
from harness.comparators.kl import diverge, judged, place
from harness.schema import PROBES, SILENT, Case, Property, Verdict


def check(case: Case, plain: Side, probed: Side, context: Context) -> Iterator[Verdict]:
    """Verdicts of one subject at stages `KIND` and `prompt_ids.KIND`."""
    assert case.probe is not None
    kind = case.probe.kind
    prop, pair = PROBES[kind], (plain.name, plain.name)
    outcomes = plain.observation.outcome, probed.observation.outcome
    if outcomes != ("ok", "ok"):
        yield from _without_result(case, plain, probed)
        return
    ids = plain.arrays["prompt_ids"], probed.arrays["prompt_ids"]
    if not np.array_equal(*ids):
        common = min(map(len, ids))
        differing = int(np.sum(ids[0][:common] != ids[1][:common])) + abs(len(ids[0]) - len(ids[1]))
        reason = f"{len(ids[0])} tokens plainly, {len(ids[1])} by probe {kind}"
        yield judge(prop, f"prompt_ids.{kind}", pair, differing, 0, "tokens", reason)
        return
    if kind == "repeat" and all("processor_state" in side.arrays for side in (plain, probed)):
        left_behind = float(not np.array_equal(plain.arrays["processor_state"], probed.arrays["processor_state"]))
        yield judge(prop, "state.repeat", pair, left_behind, 0, "states", "processor or class defaults changed")
    missing = lacking(prop, kind, pair, (plain, "hidden"), (probed, "hidden"))
    if missing:
        yield missing
    elif kind == "visibility":
        yield from visibility.check(plain, probed, context)
    else:
        yield _by_states(plain, probed, context, prop, kind)


def _by_states(plain: Side, probed: Side, context: Context, prop: Property, kind: str) -> Verdict:
    measured, reason = largest_kl(plain.arrays["hidden"], probed.arrays["hidden"], context)
    return judge(prop, kind, (plain.name, plain.name), measured, context.limits.kl_nats, "nats", reason)


def largest_kl(plain: Array, probed: Array, context: Context) -> tuple[float, str]:
    """The largest KL over the last positions that both (T, hidden) matrices have, and where it is."""
    common = min(len(plain), len(probed))
    if not common:
        return float("nan"), "no hidden states"
    states = plain[-common:], probed[-common:]
    if np.array_equal(*states):
        return 0.0, ""
    kl = diverge(states, context.head, ("",) * common)[0, 1].kl_left_right
    worst = judged(kl, context)
    where = f"{place(kl, worst)} at position {worst + len(plain) - common} of {len(plain)}"
    return float(kl[worst]), f"{where}; mean {kl.mean():.3g}"


def _without_result(case: Case, plain: Side, probed: Side) -> Iterator[Verdict]:
    """A probe that dies where the plain run did not is a finding; what a subject does not have is not comparable."""
    assert case.probe is not None
    kind = case.probe.kind
    prop, pair = PROBES[kind], (plain.name, plain.name)
    words = f"{plain.name} {plain.observation.outcome} plainly, {probed.observation.outcome} by probe {kind}"
    reason = f"{words}: {probed.observation.message or plain.observation.message}"
    same = plain.observation.outcome == probed.observation.outcome
    told = same or bool({*SILENT} & {plain.observation.outcome, probed.observation.outcome})
    yield Verdict(prop, f"outcome.{kind}", *pair, "not comparable" if told else "differ", reason=reason)
