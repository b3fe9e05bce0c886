"""P8: every config variant starts, loads every tensor, and every tensor matters.

Stage `load`: tensors that are missing, unexpected or made up, by the engine's own report and by content; a checkpoint
that an engine breaks on counts one, one that it has no model for is not comparable. Stage `tensor`: of a changed
tensor, whether anything that was recorded moved; two subjects must agree on it. Which tensors are dead is the
architecture's affair (layers that read another's keys have keys of their own in the files); that one engine reads what
another ignores is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from harness.comparators.base import Side, judge
from harness.schema import LoadReport, Verdict


def check_loaded(reports: Mapping[str, LoadReport], refused: Mapping[str, str]) -> Iterator[Verdict]:
    """One verdict at stage `load` for each subject that tried; `refused` has the words of those that could not."""
    for name, report in reports.items():
        if report.unchecked:
            yield Verdict("P8", "load", name, name, "not comparable", reason="; ".join(report.unchecked))
            continue
        wrong = [*report.missing, *report.unexpected, *report.reinitialised]
        reason = f"missing, unexpected or made up: {', '.join(wrong[:5])}" if wrong else ""
        yield judge("P8", "load", (name, name), len(wrong), 0, "tensors", reason)
    for name, why in refused.items():
        yield Verdict("P8", "load", name, name, "differ", reason=why)


def check_tensor(plain: Mapping[str, Side], probed: Sequence[Side]) -> Iterator[Verdict]:
    """Verdicts of each pair of subjects at stage `tensor`."""
    for left, right in combinations(probed, 2):
        pair = left.name, right.name
        ran = [side for side in (left, right) if side.observation.outcome == "ok" and plain[side.name].arrays]
        if len(ran) < 2:
            words = "; ".join(f"{s.name} {s.observation.outcome} {s.observation.message}" for s in (left, right))
            yield Verdict("P8", "tensor", *pair, "not comparable", reason=words)
            continue
        moved = [has_moved(plain[side.name], side) for side in (left, right)]
        said = ", ".join(f"{side.name} {'moved' if m else 'unmoved'}" for side, m in zip(ran, moved, strict=True))
        yield judge("P8", "tensor", pair, float(moved[0] != moved[1]), 0, "subjects", said)


def has_moved(plain: Side, probed: Side) -> bool:
    """Whether any floating array of the two runs differs."""
    return any(
        stage in probed.arrays and not np.array_equal(array, probed.arrays[stage], equal_nan=True)
        for stage, array in plain.arrays.items()
        if array.dtype.kind == "f"
    )
