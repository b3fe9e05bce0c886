"""From verdicts to findings: who is the odd one out.

With three or more subjects, the one that differs from others who agree among themselves is the suspect. Hugging
Face is a voter like any other: it has shipped three different mask rules. Subjects of one engine, its releases and
options, have one vote: that two releases of an engine agree accuses nobody else. Where the votes do not single one
out, the finding says `undecided`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from harness.schema import Case, Finding, Property, Verdict, error_signature

UNDECIDED = "undecided"

Engines = Mapping[str, str]
"""Subject -> its engine; one that is not there is an engine of its own."""

_EACH_ITS_OWN: Engines = MappingProxyType({})


def suspect_of(verdicts: Sequence[Verdict], engines: Engines = _EACH_ITS_OWN) -> str:
    """The subject whose absence would leave no disagreement, if others remain who agree; else such an engine."""
    differing = [verdict for verdict in verdicts if verdict.verdict == "differ"]
    own = {verdict.left for verdict in differing if verdict.left == verdict.right}
    if len(own) == 1:
        return own.pop()

    def engine(name: str) -> str:
        return engines.get(name, name)

    agreeing = [v for v in verdicts if v.verdict == "agree" and engine(v.left) != engine(v.right)]
    for name in (str, engine):
        if who := _odd_one_out(_pairs(differing, name), _pairs(agreeing, name)):
            return who
    return UNDECIDED


def _pairs(verdicts: Iterable[Verdict], name: Callable[[str], str]) -> list[frozenset[str]]:
    """Who was compared with whom, each by another name; two of the same name are no pair."""
    pairs = (frozenset((name(verdict.left), name(verdict.right))) for verdict in verdicts)
    return [pair for pair in pairs if len(pair) > 1]


def _odd_one_out(differing: Sequence[frozenset[str]], agreeing: Sequence[frozenset[str]]) -> str:
    """The one name in every pair that differs, if a pair without it agrees; empty if there is no such name, or two."""
    common = frozenset.intersection(*differing) if differing else frozenset()
    odd = [name for name in common if any(name not in pair for pair in agreeing)]
    return odd[0] if len(odd) == 1 else ""


def findings(case: Case, verdicts: Iterable[Verdict], engines: Engines = _EACH_ITS_OWN) -> list[Finding]:
    """One finding for each property, stage and kind (within one subject, or between two) that differs somewhere."""
    groups: defaultdict[tuple[Property, str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        within = verdict.left if verdict.left == verdict.right else ""
        groups[verdict.property, verdict.stage, within].append(verdict)
    differing = [group for group in groups.values() if any(verdict.verdict == "differ" for verdict in group)]
    return [_finding(case, group, engines) for group in differing]


def _by_engine(reason: str, engines: Engines) -> str:
    """What outcomes are called by, the same for every release: the engine's name for that of the subject."""
    for name, engine in engines.items():
        reason = re.sub(rf"(?<![\w@.-]){re.escape(name)}(?= (?:crashed|rejected|timeout):)", engine, reason)
    return reason


def _severity(verdict: Verdict) -> float:
    """What was measured; something that is no number is worse than any."""
    measured = verdict.measured or 0.0
    return math.inf if math.isnan(measured) else measured


def _differing(subjects: Sequence[str], differing: Sequence[Verdict], engines: Engines) -> Iterable[str]:
    """Who differs, where nobody is singled out; several of an engine that are one among themselves by its name."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in subjects:
        groups[engines.get(name, name)].append(name)
    pairs = [{verdict.left, verdict.right} for verdict in differing]
    for engine, names in groups.items():
        together = len(names) > 1 and not any(pair <= {*names} for pair in pairs)
        yield from [engine] if together else names


def _finding(case: Case, group: Sequence[Verdict], engines: Engines) -> Finding:
    differing = [verdict for verdict in group if verdict.verdict == "differ"]
    worst = max(differing, key=_severity)
    suspect = suspect_of(group, engines)
    subjects = tuple(dict.fromkeys(name for verdict in differing for name in (verdict.left, verdict.right)))
    who = suspect if suspect != UNDECIDED else "+".join(_differing(subjects, differing, engines))
    signature = f"{worst.property}/{worst.stage}/{who}"
    if worst.stage == "outcome":
        signature += f"/{error_signature(_by_engine(worst.reason, engines))}"
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
