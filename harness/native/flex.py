"""Masked attention on a GPU: one kernel that skips the blocks of keys which none of a block of queries sees.

Shapes: T queries; S keys; R blocks of queries, C blocks of keys; N query heads; K key heads; D head size.

Elsewhere, and in float64, which these kernels do not take, `attention.py` cuts the same work into tiles.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from .masks import Spans

BLOCK = 128


@cache
def kernel() -> Any:
    """Flex attention, compiled on its first use. As it stands it would make the whole (T, S) square.

    Imported here and below: it brings the compiler with it.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def attend_blocks(queries: Tensor, keys: Tensor, values: Tensor, blocks: BlockMask) -> Tensor:
    """Softmax attention with scale 1: (T, N, D), 2 of (S, K, D) -> (T, N * D)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    out: Tensor = kernel()(q, k, v, block_mask=blocks, scale=1.0, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def block_mask(spans: Spans) -> BlockMask:
    """What each block of queries sees, as arithmetic on the ends of its spans: no (T, S) square is made."""
    from torch.nn.attention.flex_attention import BlockMask

    first, last = spans.first, spans.last
    queries, keys = len(first), int(last.max()) + 1
    missing = -queries % BLOCK
    # Rows past the last query see nothing: they widen no block's run, and let no key block count as seen by all.
    first_rows = torch.cat([first, first.new_full((missing,), keys)]).reshape(-1, BLOCK, 1)
    last_rows = torch.cat([last, last.new_full((missing,), -1)]).reshape(-1, BLOCK, 1)
    start = torch.arange(0, keys, BLOCK, device=first.device)
    stop = start + BLOCK - 1
    some = (stop >= first_rows.amin(1)) & (start <= last_rows.amax(1))
    full = (start >= first_rows.amax(1)) & (stop <= last_rows.amin(1))

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= first[query]) & (key <= last[query])

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~full), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(queries, keys)
    )


def _ordered(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block sees, and which, those first: (R, C) -> (1, 1, R), (1, 1, R, C)."""
    counts = seen.sum(-1, dtype=torch.int32)
    order = torch.sort(seen.int(), dim=-1, descending=True, stable=True).indices.int()
    return counts[None, None], order[None, None]
