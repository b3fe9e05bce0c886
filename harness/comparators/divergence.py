"""Every full-vocabulary statistic of two or more sides from one set of products, at the speed of these.

    kl_left_right[t] = sum_v P_left(v|t) * (ln P_left(v|t) - ln P_right(v|t))        nats, >= 0
    js[t]            = H(M) - (H(P_left) + H(P_right)) / 2,  M = (P_left + P_right) / 2    nats, in [0, ln 2]
    entropy[t]       = H(P) = -sum_v P(v|t) ln P(v|t)                                 nats

A block of positions goes over the vocabulary chunk by chunk. Each chunk is multiplied once and leaves, for each side,
w = exp(logit - shift) with `shift` the chunk's largest logit, and the sums of w, w * logit and w * difference; the
normaliser ln Z and the rest follow from these. JS alone needs ln Z inside its logarithm, so the block keeps its w, and
JS is taken from them when ln Z is known. So products are never made twice, and memory is that of one block, whatever
the number of threads: they share out its chunks.

KL of nearly equal sides is half the variance of the differences of their logits, so the differences have to be right:
they are products of the differences of the states, not differences of products. What remains is rounding in float64,
1e-15 nats of KL and 1e-14 of JS: 4e-7 and 1e-5 of them at a KL of 3e-9, where differences of products are off by 3e-4
(docs/benchmarks). Sums are float64 on a GPU too, so they need no compensation there.

Legend: S sides, R positions of a block, C entries of a chunk, N chunks, V vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from harness.comparators.head import OutputHead, chunk_length, rows_of_block

TOP = 5
"""Tokens that are kept of each distribution."""

BLOCK_BYTES = 2**29
"""Of the w of one block."""

GPU_BLOCK_BYTES = 2**31


class SideStatistics(NamedTuple):
    """Of one side: entropy (T,) in nats, the first of the likeliest tokens (T,), the `TOP` likeliest (T, TOP)."""

    entropy: Tensor
    top1: Tensor
    top: Tensor


class PairStatistics(NamedTuple):
    """Of two sides, (T,) each: KL both ways and JS, in nats."""

    left_right: Tensor
    right_left: Tensor
    js: Tensor


@dataclass(frozen=True)
class Statistics:
    """Of sides, and of pairs by their places."""

    sides: tuple[SideStatistics, ...]
    pairs: dict[tuple[int, int], PairStatistics]


def statistics(states: Sequence[Tensor], head: OutputHead, entries: int) -> Statistics:
    """All statistics of (T, hidden) matrices of final normed states, `entries` of the vocabulary at a time.

    A position whose states are not all finite numbers gives NaN.
    """
    weights = torch.split(head.weight, chunk_length(states[0], entries))
    on_cpu = states[0].device.type == "cpu"
    room = len(states) * len(weights) * len(weights[0])
    most = (BLOCK_BYTES if on_cpu else GPU_BLOCK_BYTES) // (8 * room)
    rows = max(1, min(rows_of_block(len(states), head.weight, len(weights[0])), most, len(states[0])))
    kept = states[0].new_empty(len(weights), len(states), rows, len(weights[0]), dtype=torch.float64)
    kept[-1, ..., len(weights[-1]) :] = 0
    parts = (torch.split(side, rows) for side in states)
    with _hands(min(torch.get_num_threads(), len(weights)) if on_cpu else 1) as hands:
        blocks = [_block(torch.stack(block), head, weights, kept, hands) for block in zip(*parts, strict=True)]
    pairs = combinations(range(len(states)), 2)
    return Statistics(
        tuple(SideStatistics(*_joined(b.sides[side] for b in blocks)) for side in range(len(states))),
        {pair: PairStatistics(*_joined(b.pairs[pair] for b in blocks)) for pair in pairs},
    )


def _joined(blocks: Iterable[Sequence[Tensor]]) -> Iterator[Tensor]:
    return map(torch.cat, zip(*blocks, strict=True))


T = TypeVar("T")


class Hands(Protocol):
    """Calls a function with every n-th chunk from the first, from the second ..., and returns what it returned."""

    def __call__(self, work: Callable[[slice], T], /) -> list[T]:
        """The results."""
        ...


@contextmanager
def _hands(number: int) -> Iterator[Hands]:
    """So many threads with an equal share of chunks each.

    Left to itself torch has its threads share each step on a chunk, and they wait for each other some thirty times a
    chunk: that takes a tenth of the time of the whole.
    """
    if number == 1:
        yield lambda work: [work(slice(None))]
        return
    shares = [slice(first, None, number) for first in range(number)]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(threads // number,)) as pool:
            yield lambda work: list(pool.map(work, shares))
    finally:
        torch.set_num_threads(threads)  # Setting it in one thread also sets it for threads to come.


def _block(states: Tensor, head: OutputHead, weights: Sequence[Tensor], kept: Tensor, hands: Hands) -> Statistics:
    """Statistics of one block of positions, states (S, R, hidden); `kept` is room for its w, 0 behind the last."""
    finite = states.isfinite().all(dim=2)
    states = torch.where(finite[..., None], states, 0).float()
    sides, rows, _ = states.shape
    states[1:] -= states[0].clone()
    stacked = states.flatten(0, 1)
    pairs = list(combinations(range(sides), 2))
    w = kept[:, :, :rows]
    sums = _ChunkSums.of(kept, (len(w), sides, rows), (len(w), len(pairs), 2, rows))
    rooms = list(sums.chunks())

    def first_pass(share: slice) -> None:
        products = head.products(stacked, weights[share])
        for own, into, product in zip(w[share], rooms[share], products, strict=True):
            logits = product.view(sides, rows, -1)
            logits[1:] += logits[0]
            _first_pass(head.squashed(logits), head.slope_nats, pairs, own[..., : logits.shape[2]], into)

    hands(first_pass)
    return _second_pass(sums.nats(head.slope_nats), w, pairs, finite, hands)


class _ChunkSums(NamedTuple):
    """Of chunks: largest logit, sums of w and of w * logit, (N, S, R); of w * difference both ways, (N, pairs, 2, R).

    Logits are in units of the head's `slope_nats` until `nats`.

    Room for all chunks at once: what is kept of each on its own would lie between the pages that chunks take and give
    back, and every chunk would take new ones.
    """

    shift: Tensor
    total: Tensor
    energy: Tensor
    gaps: Tensor

    @classmethod
    def of(cls, like: Tensor, of_sides: tuple[int, ...], of_pairs: tuple[int, ...]) -> _ChunkSums:
        """Room for sums."""
        return cls(*(like.new_empty(shape) for shape in (of_sides, of_sides, of_sides, of_pairs)))

    def chunks(self) -> Iterator[_ChunkSums]:
        """The room of each chunk."""
        return map(_ChunkSums, *self)

    def nats(self, slope_nats: float) -> _ChunkSums:
        """The same in nats, of logits counted from the first side's largest: small numbers are the more precise."""
        largest = self.shift[:, :1].amax(dim=0)
        shift, energy = self.shift - largest, self.energy - largest * self.total
        return _ChunkSums(shift * slope_nats, self.total, energy * slope_nats, self.gaps * slope_nats)


def _first_pass(
    logits: Tensor, slope_nats: float, pairs: Sequence[tuple[int, int]], w: Tensor, into: _ChunkSums
) -> None:
    """Fill w (S, R, C) of a chunk, and sum what can be summed before the normalisers are known."""
    slope_bits = slope_nats / math.log(2)
    torch.amax(logits, dim=2, out=into.shift)
    torch.add(into.shift[..., None] * -slope_bits, logits, alpha=slope_bits, out=w)
    torch.sum(w.exp2_(), dim=2, out=into.total)  # In half the time of exp.
    for (left, right), (forward, backward) in zip(pairs, into.gaps, strict=True):
        gap = logits[left] - logits[right]
        torch.sum(w[left] * gap, dim=1, out=forward)
        torch.sum(gap.mul_(w[right]), dim=1, out=backward).neg_()
    torch.sum(logits.mul_(w), dim=2, out=into.energy)


def _second_pass(
    sums: _ChunkSums, w: Tensor, pairs: Sequence[tuple[int, int]], finite: Tensor, hands: Hands
) -> Statistics:
    """What needs the normalisers, from the sums of all chunks and w (N, S, R, C)."""
    norm = (sums.shift + sums.total.log()).logsumexp(dim=0)
    share = (sums.shift - norm).exp_()  # (N, S, R): p = w * share
    norm = torch.where(finite, norm, torch.nan)
    entropy = norm - (share * sums.energy).sum(0)
    top1, top = _likeliest(sums.shift, w)
    found = {}
    for k, (left, right) in enumerate(pairs):
        change = norm[left] - norm[right]
        forward = (share[:, left] * sums.gaps[:, k, 0]).sum(0) - change
        backward = (share[:, right] * sums.gaps[:, k, 1]).sum(0) + change
        mixed = hands(partial(_mixture_entropy, w, share, left, right))
        js = torch.stack(mixed).sum(0) - (entropy[left] + entropy[right]) / 2
        found[left, right] = PairStatistics(forward, backward, js)
    return Statistics(tuple(map(SideStatistics, entropy, top1, top)), found)


def _mixture_entropy(w: Tensor, share: Tensor, left: int, right: int, part: slice) -> Tensor:
    """What some chunks add to H(M) of the mean of two distributions w * share; 0 ln 0 is 0."""
    entropy = torch.zeros_like(share[0, 0])
    for p, half in zip(w[part], share[part] / 2, strict=True):
        mean = (p[left] * half[left, :, None]).addcmul_(p[right], half[right, :, None])
        entropy -= mean.clamp_min(1e-300).log_().mul_(mean).sum(1)
    return entropy


def _likeliest(shift: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the likeliest tokens, (S, R), and the `TOP` likeliest, (S, R, TOP): they lie in as many chunks."""
    chunk = w.shape[3]
    numbers = shift.topk(min(TOP, len(shift)), dim=0).indices.sort(dim=0).values  # (n, S, R)
    logits = w.gather(0, numbers[..., None].expand(*numbers.shape, chunk)).log_()
    logits = logits.add_(shift.gather(0, numbers)[..., None]).movedim(0, 2).flatten(2)  # (S, R, n C)
    first = logits.argmax(dim=2, keepdim=True)
    ranks = torch.cat([first, logits.topk(min(TOP, logits.shape[2]), dim=2).indices], dim=2)
    tokens = numbers.movedim(0, 2).gather(2, ranks // chunk) * chunk + ranks % chunk
    return tokens[..., 0], tokens[..., 1:]
