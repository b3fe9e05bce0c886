"""Keys and values of the tokens that a model has read, so that it can read on.

Shapes: S kept tokens; n new ones; K key heads; D head size.

A full layer keeps every token, a sliding layer the last window - 1: the next token sees itself and those. Layers
that share keys and values read their donor's rows of this pass, before they are cut to the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .config import SLIDING

if TYPE_CHECKING:
    from .config import TextConfig


class LayerCache:
    """The rotated keys and the values of one layer, as `empty` (0, K, D) is.

    `limit` is how many tokens outlive a pass, None for all.
    """

    def __init__(self, limit: int | None, empty: Tensor) -> None:
        self.limit = limit
        self.buffers: tuple[Tensor, ...] = (empty, empty)
        self.start = self.stop = 0

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Append n tokens, 2 of (n, K, D). The first ones are kept as they are, without a copy."""
        if not len(self.buffers[0]):
            self.buffers, self.stop = (keys, values), len(keys)
            return
        self.reserve(len(keys))
        for kept, rows in zip(self.read(), (keys, values), strict=True):
            kept[len(kept) - len(rows) :] = rows

    def reserve(self, tokens: int) -> None:
        """Append rows that are still to be written."""
        if self.stop + tokens > len(self.buffers[0]):
            self._move(2 * (self.stop - self.start + tokens))
        self.stop += tokens

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all kept tokens: 2 of (S, K, D)."""
        keys, values = (buffer[self.start : self.stop] for buffer in self.buffers)
        return keys, values

    def trim(self) -> None:
        """Forget what no later token sees. Memory is given back once the dead rows outnumber the kept ones."""
        if self.limit is None:
            return
        self.start = max(self.start, self.stop - self.limit)
        if self.start > self.limit:
            self._move(2 * (self.stop - self.start) + 1)

    def _move(self, capacity: int) -> None:
        """Copy the kept rows to new buffers: capacity doubles, so that a token costs one copy on average."""
        rows = self.read()
        self.buffers = tuple(kept.new_empty(capacity, *kept.shape[1:]) for kept in rows)
        for buffer, kept in zip(self.buffers, rows, strict=True):
            buffer[: len(kept)] = kept
        self.start, self.stop = 0, len(rows[0])


class Cache:
    """What a decoder remembers of one sample; `length` tokens have been read. `like` has its dtype and device."""

    def __init__(self, config: TextConfig, like: Tensor) -> None:
        self.length = 0
        self.layers = {
            shape.index: LayerCache(
                limit=config.window - 1 if shape.kind == SLIDING else None,
                empty=like.new_empty(0, shape.kv_heads, shape.head_dim),
            )
            for shape in config.layers
            if shape.donor is None
        }
        self._kinds = {shape.kind: shape.index for shape in config.layers if shape.donor is None}

    def first(self, kind: str) -> int:
        """Position of the first token that layers of a kind still keep."""
        kept = self.layers[self._kinds[kind]]
        return self.length - (kept.stop - kept.start)

    def reserve(self) -> None:
        """Room in every layer for the rows of one token."""
        for layer in self.layers.values():
            layer.reserve(1)

    def advance(self, tokens: int) -> None:
        """Note that every layer has read `tokens` more."""
        self.length += tokens
        for layer in self.layers.values():
            layer.trim()
