"""P6: teacher-forced per-token KL divergence over the full vocabulary, from hidden states.

    kl_left_right[t] = sum_v P_left(v|t) * (ln P_left(v|t) - ln P_right(v|t))        nats, >= 0
    js[t]            = (KL(P_left || M) + KL(P_right || M)) / 2, M their mean         nats, in [0, ln 2]

Direction: the first name is the reference. Both sides go through the same output head and soft cap, chunk by
chunk over the vocabulary, so nothing of size tokens x vocabulary is ever held; sums run in float64. Same
definition as llama.cpp's perplexity tool (KL per position over the vocabulary); NeMo-RL's `gen_kl_error` is an
estimator of this from sampled tokens alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from harness.checkpoint import Checkpoint
from harness.comparators.base import Array, Comparison, Context, Limits, Side, judge, lacking
from harness.comparators.features import input_limit
from harness.comparators.roles import token_roles
from harness.schema import Verdict

VOCABULARY_CHUNK = 16_384

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutputHead:
    """The output head that all subjects share: weight (vocabulary, hidden) and `cap`, of cap * tanh(logit / cap)."""

    weight: torch.Tensor
    cap: float | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> OutputHead:
        """The head of a checkpoint."""
        return cls(checkpoint.output_weight(), checkpoint.config["text_config"]["final_logit_softcapping"])

    def logit_chunks(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Capped logits (T, chunk) in float64, chunk by chunk over the vocabulary."""
        for weight in torch.split(self.weight, VOCABULARY_CHUNK):
            logits = (hidden @ weight.float().T).double()
            yield logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def log_normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        """ln sum exp over the vocabulary, (T, 1)."""
        sums = [chunk.logsumexp(dim=1) for chunk in self.logit_chunks(hidden)]
        return torch.stack(sums).logsumexp(dim=0)[:, None]


@dataclass(frozen=True)
class Divergence:
    """Per position of a prompt of T tokens: KL left to right, JS, whether both sides rank the same token first."""

    kl_left_right: Floats
    js: Floats
    same_top1: npt.NDArray[np.bool_]
    roles: tuple[str, ...]


class _Running:
    """Sums over the vocabulary chunks seen so far for one pair."""

    def __init__(self, positions: int) -> None:
        self.kl, self.js = torch.zeros(2, positions, dtype=torch.float64)

    def add(self, log_p: torch.Tensor, log_q: torch.Tensor) -> None:
        """Add one chunk of both sides' log-probabilities, (T, chunk)."""
        p, q = log_p.exp(), log_q.exp()
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        self.kl += (p * (log_p - log_q)).sum(1)
        self.js += (p * (log_p - log_m) + q * (log_q - log_m)).sum(1) / 2


def diverge(states: Sequence[Array], head: OutputHead, roles: tuple[str, ...]) -> dict[tuple[int, int], Divergence]:
    """Divergences of each pair of (T, hidden) matrices of final normed states, by their places in `states`.

    Two passes over the vocabulary however many sides there are: normalisers first, then all pairs at once.
    """
    sides = [torch.from_numpy(matrix) for matrix in states]
    norms = [head.log_normaliser(side) for side in sides]
    pairs = {pair: _Running(len(states[0])) for pair in combinations(range(len(sides)), 2)}
    best = torch.full((len(sides), len(states[0])), -torch.inf, dtype=torch.float64)
    top1 = torch.zeros(best.shape, dtype=torch.int64)
    seen = 0
    for chunks in zip(*map(head.logit_chunks, sides), strict=True):
        logs = [chunk - norm for chunk, norm in zip(chunks, norms, strict=True)]
        for (left, right), running in pairs.items():
            running.add(logs[left], logs[right])
        value, token = torch.stack(logs).max(dim=2)
        top1 = torch.where(value > best, token + seen, top1)
        best = torch.maximum(value, best)
        seen += logs[0].shape[1]
    return {
        (left, right): Divergence(r.kl.numpy(), r.js.numpy(), (top1[left] == top1[right]).numpy(), roles)
        for (left, right), r in pairs.items()
    }


def realised_logprobs(hidden: Array, token_ids: Array, head: OutputHead) -> Floats:
    """ln P(token t+1 | tokens to t), (T-1,), from final normed states (T, hidden)."""
    states = torch.from_numpy(hidden[:-1])
    chosen = head.weight[torch.from_numpy(token_ids[1:])].float()
    logits = (states * chosen).sum(1).double()
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    result: Floats = (logits - head.log_normaliser(states)[:, 0]).numpy()
    return result


def compare(sides: Sequence[Side], context: Context, comparison: Comparison) -> None:
    """Add a verdict at stage `hidden` for each pair: the largest KL of a position.

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
    comparison.verdicts += [_verdict(*pair, context, comparison) for pair in combinations(sides, 2)]


TIE_NATS = 0.05
TIES_EVERY = 200


def judged(kl: Floats, *, experts: bool) -> int:
    """The position by which a comparison is judged: that of the largest KL; the first NaN, if there is one.

    In a mixture of experts two experts may have shares that rounding puts in the one order or the other, and then one
    token takes another expert: seen once in 250,000 positions in float32, 1.5e-3 nats at that position alone. So up to
    one position in `TIES_EVERY` of at most `TIE_NATS` is passed over.
    """
    order = np.argsort(-kl, kind="stable")
    worst = int(np.argmax(kl))
    if not experts or not kl[worst] <= TIE_NATS:
        return worst
    return int(order[min(max(1, len(kl) // TIES_EVERY), len(kl) - 1)])


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
    worst = judged(kl, experts=context.experts)
    where = f"largest at position {worst} ({divergence.roles[worst]})"
    reason = f"{where}; mean {kl.mean():.3g} over {len(kl)} positions"
    return judge("P6", "hidden", pair, float(kl[worst]), context.limits.kl_nats, "nats", reason)
