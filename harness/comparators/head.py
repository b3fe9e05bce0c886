"""The output head that all subjects share, and what a single one's final states say through it.

Products run in float32, everything behind them in float64. Nothing here holds more than a block of logits, however many
positions and vocabulary entries there are.

Legend: T positions, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.checkpoint import Checkpoint
from harness.comparators.base import Array

Floats = npt.NDArray[np.float64]

VOCABULARY_CHUNK = 1_024
"""Entries at a time on a CPU: with `_STACKED_ROWS` what stays in its cache. A GPU takes eight times as many."""

_STACKED_ROWS = 256
"""Of all sides together: with fewer a product of matrices is far from the speed that more would give it."""


@dataclass(frozen=True)
class OutputHead:
    """Weight (V, hidden) and `cap`, of cap * tanh(logit / cap)."""

    weight: Tensor
    cap: float | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> OutputHead:
        """The head of a checkpoint."""
        return cls(checkpoint.output_weight(), checkpoint.config["text_config"].get("final_logit_softcapping"))

    def products(self, states: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
        """Uncapped logits (rows, chunk) of (rows, hidden), in float64, chunk by chunk of the vocabulary.

        `weights` are parts of the head's, the first at least as long as the others. Each product is written over the
        one before: room of its own for each would be a GiB of pages that are not given back.
        """
        single = states.new_empty(len(states) * len(weights[0]))
        double = single.new_empty(len(single), dtype=torch.float64)
        for weight in weights:
            shape = len(states), len(weight)
            product, wide = (room[: shape[0] * shape[1]].view(shape) for room in (single, double))
            yield wide.copy_(torch.mm(states, weight.float().T, out=product))

    def capped(self, logits: Tensor) -> Tensor:
        """Logits behind the soft cap, in place: cap * tanh(x / cap) = 2 cap * sigmoid(2 x / cap) - cap.

        To 1e-14 the same, in half the time.
        """
        return logits if self.cap is None else self.squashed(logits).mul_(self.slope_nats).sub_(self.cap)

    def squashed(self, logits: Tensor) -> Tensor:
        """`capped` but for a constant, which a softmax does not see, and in units of `slope_nats`; in place."""
        return logits if self.cap is None else logits.mul_(2 / self.cap).sigmoid_()

    @property
    def slope_nats(self) -> float:
        """What 1 of `squashed` is worth."""
        return 1.0 if self.cap is None else 2 * self.cap

    def log_normaliser(self, states: Tensor) -> Tensor:
        """ln sum exp over the vocabulary, (T,)."""
        chunk = chunk_length(states, VOCABULARY_CHUNK)
        weights, blocks = torch.split(self.weight, chunk), []
        for block in torch.split(states, rows_of_block(1, self.weight, chunk)):
            sums = [self.capped(logits).logsumexp(dim=1) for logits in self.products(block, weights)]
            blocks.append(torch.stack(sums).logsumexp(dim=0))
        return torch.cat(blocks) if blocks else states.new_zeros(0, dtype=torch.float64)


def chunk_length(states: Tensor, entries: int) -> int:
    """Vocabulary entries at a time: on a GPU the start of a computation costs more than its memory."""
    return entries if states.device.type == "cpu" else 8 * entries


def rows_of_block(sides: int, weight: Tensor, chunk: int) -> int:
    """Positions at a time: enough for fast products, and for work on a chunk that outlasts its start."""
    busy = VOCABULARY_CHUNK // min(chunk, len(weight)) if weight.device.type == "cpu" else 8
    return max(1, _STACKED_ROWS * max(1, busy) // sides)


def realised_logprobs(hidden: Array, token_ids: Array, head: OutputHead) -> Floats:
    """ln P(token t+1 | tokens to t), (T-1,), from final normed states (T, hidden)."""
    states = torch.as_tensor(hidden[:-1])
    chosen = head.weight[torch.from_numpy(token_ids[1:])].float()
    logits = head.capped((states * chosen).sum(1).double())
    result: Floats = (logits - head.log_normaliser(states)).cpu().numpy()
    return result
