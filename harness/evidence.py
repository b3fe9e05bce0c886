"""Who is wrong in one case: votes, exact arithmetic, and the distance to native in float64. Layer 3.

A subject is `far` if its KL from the anchor is more than four times native's own, which is what rounding makes of the
same code. The anchor is native's code, so it says nothing about native itself, and where native is the odd one out
nothing about anybody. Hugging Face is a voter like the others: "hf is wrong" is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.calibration import ANCHOR, FACTOR, ROUNDING
from harness.campaign import Result
from harness.comparators import Context, Limits, Side
from harness.comparators.suspects import UNDECIDED
from harness.schema import Case, Finding
from harness.spec import soft_tokens
from harness.transplant import mean_kl


@dataclass(frozen=True)
class Distance:
    """KL(anchor || subject) in nats, mean over positions, and in units of native's own."""

    subject: str
    kl: float
    times: float

    @property
    def far(self) -> bool:
        """Further than two roundings that happen to add up."""
        return not self.times <= FACTOR


@dataclass(frozen=True)
class Evidence:
    """Who is wrong, or `undecided`, and why: one sentence for each kind of evidence that there is."""

    wrong: str
    reasons: tuple[str, ...]
    distances: tuple[Distance, ...]


def distances(result: Result, context: Context) -> list[Distance]:
    """Of every subject that can be laid beside the anchor; none without an anchor or without native."""
    plain = {side.name: side for side in (*result.sides, *result.beside) if not side.observation.probe}
    if ANCHOR not in plain or ROUNDING not in plain:
        return []
    own = mean_kl(plain[ANCHOR], plain[ROUNDING], context)
    if not own:
        return []
    told = {name: mean_kl(plain[ANCHOR], side, context) for name, side in plain.items() if name != ANCHOR}
    return [Distance(name, kl, kl / own) for name, kl in told.items() if kl is not None]


def weigh(result: Result, found: Sequence[Finding], known: Sequence[Distance], limits: Limits) -> Evidence:
    """What the evidence says of a case and of the findings of it that are asked about."""
    voters = [side for side in result.sides if not side.observation.probe and side.observation.outcome == "ok"]
    votes = _votes(found)
    counted = _miscounted(result.case, voters)
    told = [entry for entry in known if any(side.name == entry.subject for side in voters)]
    far, near = ([e.subject for e in told if e.far is is_far and e.kl > 0] for is_far in (True, False))
    real = [entry for entry in told if entry.far and entry.kl > limits.kl_nats]
    reasons = [words for words in (votes[1], counted[1]) if words]
    if known and votes[0] != ROUNDING:
        reasons.append(_distance_words(known, far))
    elif known:
        reasons.append(f"native is the odd one out, and {ANCHOR} is its own code: distances say nothing here")
    by_distance = far[0] if len(far) == len(real) == 1 and near and votes[0] != ROUNDING else ""
    wrong = next((who for who in (votes[0], counted[0], by_distance) if who), UNDECIDED)
    return Evidence(wrong, tuple(reasons), tuple(known))


def _votes(found: Sequence[Finding]) -> tuple[str, str]:
    decided = [finding for finding in found if finding.suspect != UNDECIDED]
    if not decided:
        return "", ("votes single nobody out" if found else "")
    first = decided[0]
    if len(first.subjects) == 1:
        return first.suspect, f"{first.suspect} differs from itself or from a rule ({first.property} {first.stage})"
    return first.suspect, f"odd one out at {first.property} {first.stage}: the others agree without {first.suspect}"


def _miscounted(case: Case, voters: Sequence[Side]) -> tuple[str, str]:
    """The one subject that counts an image's soft tokens as neither rule does."""
    answers = [soft_tokens(image.width_px, image.height_px, case.max_soft_tokens) for image in case.images]
    wrong: dict[str, str] = {}
    for side in voters:
        counted = [count for count in side.observation.counts if count.medium == "image"]
        for answer, count in zip(answers, counted, strict=False):
            right = {answer.reference, answer.contract}
            if not {count.predicted, count.feature_rows} <= right:
                told = f"predicts {count.predicted} and has {count.feature_rows} rows"
                wrong[side.name] = f"exact arithmetic gives {answer.reference} soft tokens, {side.name} {told}"
    who = next(iter(wrong)) if len(wrong) == 1 else ""
    return who, "; ".join(wrong.values())


def _distance_words(known: Sequence[Distance], far: Sequence[str]) -> str:
    told = ", ".join(f"{entry.subject} {entry.kl:.2g} nats ({entry.times:.2g} times native's)" for entry in known)
    said = f"{', '.join(far)} beyond what rounding does" if far else "nobody beyond what rounding does"
    return f"distance to {ANCHOR}: {told}; {said}"
