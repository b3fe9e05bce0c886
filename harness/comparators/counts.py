"""P2 within one subject, and predicted counts between two (P1). Unit: soft tokens; limit 0.

Both right answers of `harness.spec` stand beside every disagreement: the reference rule as shipped and the exact
contract.
"""

from __future__ import annotations

from harness.comparators.base import Context, Side, absent, judge
from harness.schema import Case, Verdict
from harness.spec import placeholder_runs, soft_tokens


def check(case: Case, side: Side, context: Context) -> list[Verdict]:
    """predicted = placeholders = feature rows <= declared maximum, image by image."""
    if side.observation.outcome != "ok":
        return [absent("P2", "counts", side)]
    images = len(case.images)
    ids = side.arrays["prompt_ids"].tolist()
    placeholders = [length for _, length in placeholder_runs(ids, context.tokens)]
    counted = [count for count in side.observation.counts if count.medium == "image"]
    rows = [count.feature_rows for count in counted]
    pair = side.name, side.name
    if not len(placeholders) == len(counted) == images:
        reason = f"{images} images, placeholder runs {placeholders}, feature rows {rows}"
        excess = max(abs(sum(placeholders) - sum(rows)), 1)
        return [judge("P2", "counts", pair, excess, 0, "soft tokens", reason)]
    worst, reason = 0, ""
    for index, (count, placed) in enumerate(zip(counted, placeholders, strict=True)):
        over = max(0, count.feature_rows - count.declared_max)
        off = max(abs(count.predicted - placed), abs(count.feature_rows - placed), over)
        if off > worst:
            worst = off
            reason = (
                f"image {index}: predicted {count.predicted}, placeholders {placed}, feature rows "
                f"{count.feature_rows}, declared maximum {count.declared_max}; {_both_answers(case, index)}"
            )
    return [judge("P2", "counts", pair, worst, 0, "soft tokens", reason)]


def check_rounding(case: Case) -> list[Verdict]:
    """One verdict if the reference rule loses tokens to rounding for an image of this case.

    This is about the reference rule alone: engines that follow it agree with each other.
    """
    answers = [soft_tokens(i.width_px, i.height_px, case.max_soft_tokens) for i in case.images]
    sensitive = [index for index, answer in enumerate(answers) if answer.rounding_sensitive]
    if not sensitive:
        return []
    lost = max(answers[index].contract - answers[index].reference for index in sensitive)
    reason = f"reference loses tokens to rounding: {_both_answers(case, sensitive[0])}"
    return [judge("P2", "rounding", ("reference", "reference"), lost, 0, "soft tokens", reason)]


def compare(case: Case, left: Side, right: Side) -> list[Verdict]:
    """Predicted counts of two subjects, at stage `counts` of P1."""
    pair = left.name, right.name
    predicted = [
        [count.predicted for count in side.observation.counts if count.medium == "image"] for side in (left, right)
    ]
    if len(predicted[0]) != len(predicted[1]):
        excess = abs(len(predicted[0]) - len(predicted[1]))
        return [judge("P1", "counts", pair, excess, 0, "images", f"counted {predicted[0]} and {predicted[1]}")]
    gaps = [abs(a - b) for a, b in zip(*predicted, strict=True)]
    worst = max(gaps, default=0)
    reason = ""
    if worst:
        index = gaps.index(worst)
        reason = f"{left.name} {predicted[0][index]}, {right.name} {predicted[1][index]}; {_both_answers(case, index)}"
    return [judge("P1", "counts", pair, worst, 0, "soft tokens", reason)]


def _both_answers(case: Case, index: int) -> str:
    if index >= len(case.images):
        return f"the case has {len(case.images)} images"
    image = case.images[index]
    answer = soft_tokens(image.width_px, image.height_px, case.max_soft_tokens)
    return (
        f"{image.width_px} x {image.height_px} px at budget {case.max_soft_tokens}: "
        f"reference rule {answer.reference}, exact contract {answer.contract}"
    )
