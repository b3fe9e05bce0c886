"""Which token may look at which.

Shapes: T tokens of one sample.

Full layers are causal. In sliding layers a token sees the last `window` tokens, itself included; where the
checkpoint asks for it, the soft tokens of one image or video frame see each other there in both directions as
well. The window still bounds the past side of a block that is longer than it; nothing bounds its future side.

Under these rules what a token sees is always one unbroken run of keys, so a mask is two numbers per token rather
than a (T, T) square, and its cost grows with T, not with T squared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import FULL, SLIDING
from .prompt import IMAGE, VIDEO

if TYPE_CHECKING:
    from collections.abc import Iterator

# Media types whose soft tokens form a block; audio is heard in order.
SEEN_AT_ONCE = (IMAGE, VIDEO)


@dataclass(frozen=True, eq=False)
class Spans:
    """The keys that each token sees: `first` to `last`, both (T,) and inclusive."""

    first: Tensor
    last: Tensor

    def rows(self, tokens: slice) -> Spans:
        """The spans of some of the tokens."""
        return Spans(self.first[tokens], self.last[tokens])

    def shift(self, by: int) -> Spans:
        """The same spans where key 0 has become key `by`."""
        return Spans(self.first + by, self.last + by)

    def visible(self, keys: range) -> Tensor:
        """The mask of every token against some keys: (T, len(keys)), True = visible."""
        key = torch.arange(keys.start, keys.stop, device=self.first.device)
        return (key >= self.first[:, None]) & (key <= self.last[:, None])


def image_blocks(media_types: Tensor) -> Tensor:
    """Number each unbroken run of soft tokens of images and videos 1, 2, ...; all else is 0. (T,) -> (T,)."""
    soft = torch.isin(media_types, media_types.new_tensor(SEEN_AT_ONCE))
    before = torch.cat([soft.new_zeros(1), soft[:-1]])
    return torch.cumsum(soft & ~before, dim=0) * soft


def block_ends(media_types: Tensor) -> Tensor:
    """The last token of the block that a token is in, or the token itself: (T,) -> (T,)."""
    block, position = image_blocks(media_types), torch.arange(len(media_types))
    ends = torch.zeros(int(block.max()) + 1, dtype=torch.long).scatter_reduce(0, block, position, "amax")
    return torch.where(block > 0, ends[block], position)


def causal(length: int, past: int = 0) -> Spans:
    """Each token sees itself and everything before it, of which `past` tokens precede the first one here."""
    return Spans(torch.zeros(length, dtype=torch.long), past + torch.arange(length))


def sliding(media_types: Tensor, window: int, *, vision_blocks: bool, past: int = 0) -> Spans:
    """Each token sees the last `window` tokens and, with `vision_blocks`, its own image ahead of it."""
    position = torch.arange(len(media_types))
    last = block_ends(media_types) if vision_blocks else position
    return Spans((past + position - window + 1).clamp(min=0), past + last)


def layer_spans(media_types: Tensor, window: int, *, vision_blocks: bool, past: int = 0) -> dict[str, Spans]:
    """What each token of a sample sees in each layer kind; on the CPU, where the work is then cut into tiles."""
    types = media_types.cpu()
    return {
        FULL: causal(len(types), past),
        SLIDING: sliding(types, window, vision_blocks=vision_blocks, past=past),
    }


def chunks(media_types: Tensor, size: int, *, vision_blocks: bool) -> Iterator[slice]:
    """Cut a sample into runs of at most `size` tokens, or of one block where a block is longer than that.

    A block is never cut where its tokens see ahead. In layer 2 its first token needs the keys of its last one, which
    come out of layer 1 and need the whole block there: in exact arithmetic a block is computed together or not at
    all. So a boundary inside a block moves back to its start or, if that leaves nothing, on to its end.
    """
    if size < 1:
        raise ValueError(f"chunks of {size} tokens are not possible; give at least 1")
    ends = block_ends(media_types.cpu()).tolist() if vision_blocks else list(range(len(media_types)))
    start = 0
    while start < len(ends):
        stop = min(start + size, len(ends))
        while stop > start and ends[stop - 1] >= stop:
            stop -= 1
        yield slice(start, stop := stop if stop > start else ends[start] + 1)
        start = stop
