"""From verdicts to findings: who is the odd one out.

With three or more subjects, the one that differs from others who agree among themselves is the suspect. Hugging
Face is a voter like any other: it has shipped three different mask rules. Where the votes do not single one
out, the finding says `undecided`.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.schema import Case, Finding, Property, Verdict, error_signature

UNDECIDED = "undecided"


def suspect_of(verdicts: Sequence[Verdict]) -> str:
    """The one subject whose absence would leave no disagreement, if others remain who agree."""
    differing = [verdict for verdict in verdicts if verdict.verdict == "differ"]
    own = {verdict.left for verdict in differing if verdict.left == verdict.right}
    if len(own) == 1:
        return own.pop()
    common = set.intersection(*({verdict.left, verdict.right} for verdict in differing))
    agreeing = [verdict for verdict in verdicts if verdict.verdict == "agree"]
    odd = {name for name in common if any(name not in (v.left, v.right) for v in agreeing)}
    return odd.pop() if len(odd) == 1 else UNDECIDED


def findings(case: Case, verdicts: Iterable[Verdict]) -> list[Finding]:
    """One finding for each property, stage and kind (within one subject, or between two) that differs somewhere."""
    groups: defaultdict[tuple[Property, str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        within = verdict.left if verdict.left == verdict.right else ""
        groups[verdict.property, verdict.stage, within].append(verdict)
    return [_finding(case, group) for group in groups.values() if any(verdict.verdict == "differ" for verdict in group)]


def _severity(verdict: Verdict) -> float:
    """What was measured; something that is no number is worse than any."""
    measured = verdict.measured or 0.0
    return math.inf if math.isnan(measured) else measured


def _finding(case: Case, group: Sequence[Verdict]) -> Finding:
    differing = [verdict for verdict in group if verdict.verdict == "differ"]
    worst = max(differing, key=_severity)
    suspect = suspect_of(group)
    subjects = tuple(dict.fromkeys(name for verdict in differing for name in (verdict.left, verdict.right)))
    who = suspect if suspect != UNDECIDED else "+".join(subjects)
    signature = f"{worst.property}/{worst.stage}/{who}"
    if worst.stage == "outcome":
        signature += f"/{error_signature(worst.reason)}"
    return Finding(
        id=hashlib.sha256(f"{signature}|{case.model}".encode()).hexdigest()[:8],
        signature=signature,
        property=worst.property,
        stage=worst.stage,
        subjects=subjects,
        suspect=suspect,
        model=case.model,
        case_id=case.id,
        measured=worst.measured,
        limit=worst.limit,
        unit=worst.unit,
        detail=worst.reason,
    )
