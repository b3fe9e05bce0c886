"""P6: teacher-forced per-token KL divergence over the full vocabulary, from hidden states.

    kl_left_right[t] = sum_v P_left(v|t) * (ln P_left(v|t) - ln P_right(v|t))        nats, >= 0
    js[t]            = (KL(P_left || M) + KL(P_right || M)) / 2, M their mean         nats, in [0, ln 2]

Direction: the first name is the reference. Both sides go through the same output head and soft cap; how all of it comes
from one set of products is in `divergence`. Same definition as llama.cpp's perplexity tool (KL per position over the
vocabulary); NeMo-RL's `gen_kl_error` is an estimator of this from sampled tokens alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from harness.comparators.base import Array, Comparison, Context, Limits, Side, judge, lacking
from harness.comparators.divergence import statistics
from harness.comparators.features import input_limit
from harness.comparators.head import VOCABULARY_CHUNK, Floats, OutputHead, realised_logprobs
from harness.comparators.roles import token_roles
from harness.schema import Verdict

__all__ = ["VOCABULARY_CHUNK", "Divergence", "OutputHead", "compare", "diverge", "judged", "realised_logprobs"]


@dataclass(frozen=True)
class Divergence:
    """Per position of a prompt of T tokens: KL left to right, JS, whether both sides rank the same token first.

    Then KL right to left, both entropies, and each side's likeliest tokens, (T, 5).
    """

    kl_left_right: Floats
    js: Floats
    same_top1: npt.NDArray[np.bool_]
    roles: tuple[str, ...]
    kl_right_left: Floats
    entropy_left: Floats
    entropy_right: Floats
    top_left: npt.NDArray[np.int64]
    top_right: npt.NDArray[np.int64]


def diverge(states: Sequence[Array], head: OutputHead, roles: tuple[str, ...]) -> dict[tuple[int, int], Divergence]:
    """Divergences of each pair of (T, hidden) matrices of final normed states, by their places in `states`.

    Tensors are taken as well; the work is done where they are.
    """
    if len(states) < 2:
        return {}
    found = statistics([torch.as_tensor(matrix) for matrix in states], head, VOCABULARY_CHUNK)
    entropy, top1, top = zip(*([t.cpu().numpy() for t in side] for side in found.sides), strict=True)
    divergences = {}
    for (a, b), pair in found.pairs.items():
        forward, backward, js = (t.cpu().numpy() for t in pair)
        sides = entropy[a], entropy[b], top[a], top[b]
        divergences[a, b] = Divergence(forward, js, top1[a] == top1[b], roles, backward, *sides)
    return divergences


def compare(sides: Sequence[Side], context: Context, comparison: Comparison) -> list[Verdict]:
    """A verdict at stage `hidden` for each pair, the largest KL of a position; divergences go into the comparison.

    Only equal inputs compare: the same token ids, and pixels that differ by no more than their limit. Where they do,
    P1 or P7 has found it, and a KL would say how large that difference is, not whether the models agree.
    """
    groups: defaultdict[tuple[bytes, tuple[int, ...]], list[Side]] = defaultdict(list)
    for side in sides:
        if "hidden" not in side.arrays:
            continue  # The verdict of each of its pairs says so.
        groups[side.arrays["prompt_ids"].tobytes(), side.arrays["hidden"].shape].append(side)
    for (_, shape), group in groups.items():
        if shape[0] != len(group[0].arrays["prompt_ids"]):
            continue  # Stage `logprobs` says of each side that its states do not fit its prompt.
        roles = token_roles(group[0].arrays["prompt_ids"].tolist(), context.tokens)
        found = diverge([side.arrays["hidden"] for side in group], context.head, roles)
        for (left, right), divergence in found.items():
            if not _inputs_differ(group[left], group[right], context.limits):
                comparison.divergences[group[left].name, group[right].name] = divergence
    return [_verdict(*pair, context, comparison) for pair in combinations(sides, 2)]


def judged(kl: Floats, context: Context) -> int:
    """The position by which a comparison is judged: that of the largest KL; the first NaN, if there is one.

    In a mixture of experts two experts may have shares that rounding puts in the one order or the other, and then one
    token takes another expert, and those that look at it follow: seen once in 250,000 positions in float32, 1.5e-3 nats
    at that position alone, and in most prompts of a reduced type. So a few are passed over, as `Limits` says.
    """
    limits, order = context.limits, np.argsort(-kl, kind="stable")
    worst = int(np.argmax(kl))
    if not context.experts or not kl[worst] < limits.tie_nats:
        return worst
    return int(order[min(max(1, len(kl) // limits.ties_every), len(kl) - 1)])


def place(kl: Floats, judged_at: int) -> str:
    """What the position by which a comparison is judged is called in its reason."""
    return "largest" if judged_at == int(np.argmax(kl)) else "largest but for ties of experts"


def _inputs_differ(left: Side, right: Side, limits: Limits) -> bool:
    """Whether some medium entered the two models differently; that one side lacks a stage is not said here."""
    for key in left.arrays.keys() & right.arrays.keys():
        stage = key.partition(".")[0]
        if stage in ("pixels", "positions", "video_pixels", "video_positions", "audio_input"):
            a, b, limit = left.arrays[key], right.arrays[key], input_limit(stage, limits)
            # A NaN is a difference: no comparison with it is true.
            if a.shape != b.shape or not bool((np.abs(a - b) <= limit).all()):
                return True
    return False


def _why_not(left: Side, right: Side) -> str:
    if not np.array_equal(left.arrays["prompt_ids"], right.arrays["prompt_ids"]):
        return "prompt ids differ"
    shapes = left.arrays["hidden"].shape, right.arrays["hidden"].shape
    if shapes[0] != shapes[1] or shapes[0][0] != len(left.arrays["prompt_ids"]):
        return f"hidden states of shape {shapes[0]} and {shapes[1]}"
    return "media enter differently"


def _verdict(left: Side, right: Side, context: Context, comparison: Comparison) -> Verdict:
    pair = left.name, right.name
    if missing := lacking("P6", "hidden", pair, (left, "hidden"), (right, "hidden")):
        return missing
    divergence = comparison.divergences.get(pair)
    if divergence is None:
        return Verdict("P6", "hidden", *pair, "not comparable", reason=_why_not(left, right))
    kl = divergence.kl_left_right
    worst = judged(kl, context)
    where = f"{place(kl, worst)} at position {worst} ({divergence.roles[worst]})"
    reason = f"{where}; mean {kl.mean():.3g} over {len(kl)} positions"
    return judge("P6", "hidden", pair, float(kl[worst]), context.limits.kl_nats, "nats", reason)
