"""Softmax attention over runs of keys, in tiles: only keys that some query of a tile sees are multiplied.

Shapes: T queries; S keys; N query heads; K key heads (K divides N, G = N / K); D head size.

A sliding layer costs the same per token however long the sample is, images packed after one another see only
themselves, and nothing is padded. On a GPU one kernel does what the tiles of a plan do one by one: see `flex.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .flex import attend_blocks, block_mask
from .masks import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.nn.attention.flex_attention import BlockMask

# Rows of a masked tile. A tile reads its rows' window and as many keys again as it has rows, so small tiles waste
# fewer products; on a GPU a launch costs more than they do.
TILE_ROWS = {"cpu": 128, "cuda": 1024}


@dataclass(frozen=True)
class Tile:
    """A run of queries and the run of keys that they see; `masked` if some of them see only a part of it."""

    queries: slice
    keys: slice
    masked: bool
    causal: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """How the attention of one layer kind is cut: made once, used by each of its layers."""

    spans: Spans
    tiles: tuple[Tile, ...]

    def mask(self, tile: Tile) -> Tensor | None:
        """(queries, keys) of a tile, True = visible; made anew each time, because all of them are T * S large."""
        if not tile.masked:
            return None
        return self.spans.rows(tile.queries).visible(range(tile.keys.start, tile.keys.stop))

    @cached_property
    def blocks(self) -> BlockMask:
        """All tiles at once, for the kernel of `flex.py`."""
        return block_mask(self.spans)


def plan(samples: Sequence[Spans], device: torch.device) -> Plan:
    """Cut the queries of packed samples into tiles, none of them across two samples.

    Args:
        samples: on the CPU, what the queries of each sample see, counted in keys of the whole pack.
        device: where the attention will run.
    """
    starts = [0]
    for sample in samples:
        starts.append(starts[-1] + len(sample.first))
    tiles = [tile for start, spans in zip(starts, samples, strict=False) for tile in _cut(start, spans, device)]
    first, last = torch.cat([spans.first for spans in samples]), torch.cat([spans.last for spans in samples])
    return Plan(Spans(first.to(device), last.to(device)), tuple(tiles))


def whole(lengths: Sequence[int], device: torch.device) -> Plan:
    """The plan of images packed after one another, in each of which every patch sees every patch."""
    samples, start = [], 0
    for length in lengths:
        samples.append(Spans(torch.full((length,), start), torch.full((length,), start + length - 1)))
        start += length
    return plan(samples, device)


def _cut(start: int, spans: Spans, device: torch.device) -> Iterator[Tile]:
    """One tile for a whole sample where no mask is needed, or only the causal one that kernels have built in."""
    length = len(spans.first)
    tile = _tile(start, spans)
    begins = int(spans.first.max()) == tile.keys.start
    if not tile.masked:
        yield tile
    elif begins and torch.equal(spans.last, torch.arange(tile.keys.start, tile.keys.start + length)):
        yield Tile(tile.queries, tile.keys, masked=False, causal=True)
    else:
        rows = TILE_ROWS.get(device.type, TILE_ROWS["cuda"])
        for at in range(0, length, rows):
            yield _tile(start + at, spans.rows(slice(at, at + rows)))


def _tile(start: int, spans: Spans) -> Tile:
    keys = slice(int(spans.first.min()), int(spans.last.max()) + 1)
    masked = bool((spans.first > keys.start).any() or (spans.last < keys.stop - 1).any())
    return Tile(slice(start, start + len(spans.first)), keys, masked)


def attend(queries: Tensor, keys: Tensor, values: Tensor, plan: Plan) -> Tensor:
    """Softmax attention with scale 1: the norms of queries and keys set the temperature.

    Args:
        queries: (T, N, D).
        keys: (S, K, D); query head n uses key head n // G.
        values: (S, K, D).
        plan: which queries see which keys.

    Returns:
        (T, N * D).
    """
    if queries.is_cuda and queries.dtype != torch.float64 and len(plan.tiles) > 1:
        return attend_blocks(queries, keys, values, plan.blocks)
    return attend_tiles(queries, keys, values, plan)


def attend_tiles(queries: Tensor, keys: Tensor, values: Tensor, plan: Plan) -> Tensor:
    """The same, tile by tile."""
    groups = queries.shape[1] // keys.shape[1]
    q = queries.reshape(len(queries), keys.shape[1], groups, -1).permute(1, 2, 0, 3)
    # The groups share their keys by a stride of 0: nothing is repeated in memory.
    k, v = (x.transpose(0, 1)[:, None].expand(-1, groups, -1, -1) for x in (keys, values))
    outs = [
        functional.scaled_dot_product_attention(
            q[:, :, tile.queries],
            k[:, :, tile.keys],
            v[:, :, tile.keys],
            attn_mask=plan.mask(tile),
            is_causal=tile.causal,
            scale=1.0,
        )
        for tile in plan.tiles
    ]
    return torch.cat([out.permute(2, 0, 1, 3).flatten(1) for out in outs])


def attend_next(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same for one query that sees all keys: (1, N, D), 2 of (S, K, D) -> (1, N * D).

    The heads of a group are rows of one product, so that its keys are read once and not G times.
    """
    q = query.reshape(1, keys.shape[1], -1, keys.shape[2])
    k, v = (x.transpose(0, 1)[None] for x in (keys, values))
    return functional.scaled_dot_product_attention(q, k, v, scale=1.0).reshape(1, -1)
