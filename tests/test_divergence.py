"""Statistics of full distributions from one set of products: by hand, beside float64, and the memory they take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.comparators import divergence
from harness.comparators.divergence import TOP, Statistics, statistics
from harness.comparators.head import OutputHead, realised_logprobs

VOCABULARY, HIDDEN, POSITIONS = 3_000, 64, 20


def _random(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


HEAD = OutputHead(_random(VOCABULARY, 0) / 2, cap=30.0)
STATES = _random(POSITIONS, 1)


def _log_probabilities(states: Tensor) -> Tensor:
    assert HEAD.cap is not None
    logits = states.double() @ HEAD.weight.double().T
    return (HEAD.cap * torch.tanh(logits / HEAD.cap)).log_softmax(dim=1)


def _precise_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL in float64 as ln E_left[exp(E_left[d] - d)], d the difference of log-probabilities: no cancellation."""
    p, q = _log_probabilities(left), _log_probabilities(right)
    gap = p - q
    centred = gap - (p.exp() * gap).sum(1, keepdim=True)
    return torch.log1p((p.exp() * torch.expm1(-centred)).sum(1))


def test_two_vocabulary_entries_by_hand() -> None:
    """P = (3/4, 1/4), Q = (1/2, 1/2): KL(P||Q) = ln 2 - H(P), KL(Q||P) = ln 2 - ln 3 / 2, H(P) = 2 ln 2 - 3/4 ln 3."""
    left, right = (torch.tensor([row]).log() for row in ((0.75, 0.25), (0.5, 0.5)))
    found = statistics([left, right], OutputHead(torch.eye(2), cap=None), entries=1)
    pair, entropy = found.pairs[0, 1], 2 * math.log(2) - 0.75 * math.log(3)
    assert found.sides[0].entropy.item() == pytest.approx(entropy, rel=1e-6)
    assert found.sides[1].entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    assert pair.left_right.item() == pytest.approx(math.log(2) - entropy, rel=1e-6)
    assert pair.right_left.item() == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-6)


@pytest.mark.parametrize(("apart", "relative"), [(1e-1, 1e-5), (1e-3, 1e-5), (1e-5, 1e-4)])
def test_a_small_kl_is_right(apart: float, relative: float) -> None:
    """From 1e-2 down to 1e-10 nats, both ways, KL is what float64 makes of the same states and weights."""
    other = STATES + apart * _random(POSITIONS, 2)
    pair = statistics([STATES, other], HEAD, entries=512).pairs[0, 1]
    torch.testing.assert_close(pair.left_right, _precise_kl(STATES, other), rtol=relative, atol=0)
    torch.testing.assert_close(pair.right_left, _precise_kl(other, STATES), rtol=relative, atol=0)


def test_differences_of_float32_products_would_not_do() -> None:
    """Negative control: a KL of 1e-10 nats from two float32 products is off by more than the test above lets pass."""
    other = STATES + 1e-5 * _random(POSITIONS, 2)
    assert HEAD.cap is not None
    capped = [HEAD.cap * torch.tanh((side @ HEAD.weight.T).double() / HEAD.cap) for side in (STATES, other)]
    p, q = (logits.log_softmax(1) for logits in capped)
    kl = (p.exp() * (p - q)).sum(1)
    assert ((kl / _precise_kl(STATES, other) - 1).abs()).max() > 1e-3


def _everything(found: Statistics) -> list[Tensor]:
    return [value for group in (*found.sides, *found.pairs.values()) for value in group]


@pytest.mark.parametrize("entries", [512, 2_999, 5_000])
@pytest.mark.parametrize("block_bytes", [1, 2**19])
def test_blocks_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, entries: int, block_bytes: int) -> None:
    """A position at a time or many, few entries at a time or all: the same statistics of three sides."""
    sides = [STATES, _random(POSITIONS, 3), STATES + 1e-3 * _random(POSITIONS, 4)]
    whole = statistics(sides, HEAD, entries=VOCABULARY)
    monkeypatch.setattr(divergence, "BLOCK_BYTES", block_bytes)
    for a, b in zip(_everything(statistics(sides, HEAD, entries)), _everything(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-13)


def test_threads_share_the_chunks_and_change_nothing() -> None:
    """One thread, two, or more than chunks; and torch has as many afterwards as before."""
    sides, before = [STATES, STATES + 1e-3 * _random(POSITIONS, 4)], torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(_everything(statistics(sides, HEAD, entries=700)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_the_likeliest_tokens_are_those_of_the_whole_vocabulary() -> None:
    """Wherever they stand, within one chunk or spread over the last ones, they come in the order of their logits."""
    (side,) = statistics([STATES], HEAD, entries=700).sides
    expected = _log_probabilities(STATES).topk(TOP, dim=1).indices
    assert torch.equal(side.top, expected)
    assert torch.equal(side.top1, expected[:, 0])
    together = OutputHead(torch.arange(10.0)[:, None].expand(10, HIDDEN), cap=None)
    for entries in (1, 3, 4, 10):
        (side,) = statistics([torch.ones(1, HIDDEN)], together, entries).sides
        assert side.top.tolist() == [[9, 8, 7, 6, 5]]


def test_of_equal_logits_the_first_token_is_first() -> None:
    """A tie is broken as `argmax` breaks it, within a chunk and between chunks, so that equal sides agree."""
    (side,) = statistics([torch.ones(1, HIDDEN)], OutputHead(torch.ones(10, HIDDEN), cap=None), entries=3).sides
    assert side.top1.tolist() == [0]


def test_a_broken_side_leaves_the_others_whole() -> None:
    """NaN in the first side's states is NaN in each of its pairs at that position, and in no other pair."""
    broken = STATES.clone()
    broken[5, 3] = math.nan
    found = statistics([broken, STATES, STATES + 0.01], HEAD, entries=512)
    assert found.pairs[0, 1].left_right.isnan().nonzero().flatten().tolist() == [5]
    assert found.pairs[0, 2].js.isnan().nonzero().flatten().tolist() == [5]
    assert not any(value.isnan().any() for value in found.pairs[1, 2])


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what comes out."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("positions", [200, 800])
def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    """Whatever the number of positions, no tensor is larger than a block; the logits alone would be many."""
    block = 2**21
    monkeypatch.setattr(divergence, "BLOCK_BYTES", block)
    states = _random(positions, 5)
    inputs = HEAD.weight.nbytes, states.nbytes
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # What another thread allocates is not seen here.
    with _Largest() as seen:  # type: ignore[no-untyped-call]
        statistics([states, states + 0.01], HEAD, entries=512)
        realised_logprobs(states.numpy(), torch.zeros(positions, dtype=torch.int64).numpy(), HEAD)
    assert seen.size <= max(block, *inputs, positions * HIDDEN * 4)
    assert positions * VOCABULARY * 8 > 2 * seen.size
