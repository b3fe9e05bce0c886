"""Which token may look at which.

Shapes: T tokens; a mask is (T, T), row = the token that looks, column = the token looked at, True = visible.

Full layers are causal. In sliding layers a token sees the last `window` tokens, itself included; where the
checkpoint asks for it, the soft tokens of one image see each other there in both directions as well. The
window still bounds the past side of a block that is longer than the window; nothing bounds its future side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import FULL, SLIDING
from .prompt import IMAGE, VIDEO


def image_blocks(media_types: Tensor) -> Tensor:
    """Number each unbroken run of image or video tokens 1, 2, ...; text and audio are 0. (T,) -> (T,)."""
    soft = (media_types == IMAGE) | (media_types == VIDEO)
    before = torch.cat([soft.new_zeros(1), soft[:-1]])
    return torch.cumsum(soft & ~before, dim=0) * soft


def causal(length: int) -> Tensor:
    """Each token sees itself and everything before it."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def sliding(media_types: Tensor, window: int, *, vision_blocks: bool) -> Tensor:
    """Each token sees the last `window` tokens and, with `vision_blocks`, its own image ahead of it."""
    length = media_types.shape[0]
    visible = causal(length)
    if vision_blocks:
        block = image_blocks(media_types)
        visible |= (block[:, None] == block[None, :]) & (block[:, None] != 0)
    return visible.triu(1 - window)


def layer_masks(media_types: Tensor, window: int, *, vision_blocks: bool) -> dict[str, Tensor]:
    """The mask of each layer kind."""
    types = media_types.cpu()
    masks = {FULL: causal(types.shape[0]), SLIDING: sliding(types, window, vision_blocks=vision_blocks)}
    return {kind: mask.to(media_types.device) for kind, mask in masks.items()}
