"""From an RGB image to patches: how large it becomes, how it is resized, how it is cut.

Shapes: H, W height and width in pixels; P patches; side = patch side in pixels (tower 16, 12B 48).

A soft token stands for 48 x 48 pixels of the *resized* image, so a budget of N soft tokens is an area of
N * 48^2 pixels. Two rules give the resized size. They differ only where an ideal side is a multiple of 48 and
the float64 result lands just below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

UNIT_PX = 48
BUDGETS = (70, 140, 280, 560, 1120)


@dataclass(frozen=True, eq=False)
class ImagePatches:
    """One image for the model: patches (P, side * side * 3) in [0, 1], positions (P, 2) as (x, y)."""

    patches: Tensor
    positions: Tensor
    soft_tokens: int


def reference_size(height_px: int, width_px: int, max_soft_tokens: int) -> tuple[int, int]:
    """The resized (height, width) in pixels by the rule as shipped: float64, in this order of operations.

    Both sides are scaled by sqrt(budget area / area) and rounded down to a multiple of 48. The order matters:
    the scale is rounded before it is multiplied, so an ideal side of exactly 48 * k can become 48 * (k - 1).
    """
    _check(height_px, width_px, max_soft_tokens)
    budget_px = max_soft_tokens * UNIT_PX**2
    scale = math.sqrt(budget_px / (height_px * width_px))
    high = math.floor(scale * height_px / UNIT_PX)
    wide = math.floor(scale * width_px / UNIT_PX)
    if high == 0 and wide == 0:
        raise ValueError(f"{height_px} x {width_px} px at {max_soft_tokens} soft tokens becomes 0 x 0; crop it")
    if high == 0:
        high, wide = 1, min(math.floor(width_px / height_px), max_soft_tokens)
    elif wide == 0:
        high, wide = min(math.floor(height_px / width_px), max_soft_tokens), 1
    if high * wide > max_soft_tokens:
        raise ValueError(
            f"{height_px} x {width_px} px becomes {high} x {wide} soft tokens, "
            f"over the budget of {max_soft_tokens}; crop the image or choose a larger budget"
        )
    return high * UNIT_PX, wide * UNIT_PX


def contract_size(height_px: int, width_px: int, max_soft_tokens: int) -> tuple[int, int]:
    """The resized (height, width) in pixels by the documented contract, in exact integers.

    An ideal side in units of 48 px is sqrt(N * h / w), and floor(sqrt(q)) = isqrt(floor(q)), so nothing is
    rounded. One side is at least 1, because N * h / w and N * w / h cannot both be below 1.
    """
    _check(height_px, width_px, max_soft_tokens)
    high = math.isqrt(max_soft_tokens * height_px // width_px)
    wide = math.isqrt(max_soft_tokens * width_px // height_px)
    if high == 0:
        high, wide = 1, min(width_px // height_px, max_soft_tokens)
    elif wide == 0:
        high, wide = min(height_px // width_px, max_soft_tokens), 1
    return high * UNIT_PX, wide * UNIT_PX


def soft_tokens(size_px: tuple[int, int]) -> int:
    """How many soft tokens a resized (height, width) stands for."""
    return size_px[0] * size_px[1] // UNIT_PX**2


def resize(image: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of a uint8 image (3, H, W) to `size_px`, still uint8.

    The uint8 kernel works in fixed point: converting to float first would give other values.
    """
    if (image.shape[1], image.shape[2]) == size_px:
        return image
    batch, size = image[None], list(size_px)
    return functional.interpolate(batch, size, mode="bicubic", align_corners=False, antialias=True)[0]


def patchify(pixels: Tensor, side_px: int) -> Tensor:
    """Cut (3, H, W) into (P, side * side * 3): patches row by row; inside a patch row, column, channel."""
    channels, height_px, width_px = pixels.shape
    grid = pixels.reshape(channels, height_px // side_px, side_px, width_px // side_px, side_px)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, side_px * side_px * channels)


def grid_positions(rows: int, columns: int) -> Tensor:
    """The (x, y) of every patch, row by row: (rows * columns, 2)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def prepare_image(image: np.ndarray, max_soft_tokens: int, *, side_px: int, pixel_scale: float) -> ImagePatches:
    """Resize, scale and cut one image.

    Args:
        image: (H, W, 3) uint8, RGB.
        max_soft_tokens: the budget, one of `BUDGETS`.
        side_px: patch side, 16 or 48.
        pixel_scale: what a byte is multiplied by, 1/255.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}; convert to RGB")
    size_px = reference_size(image.shape[0], image.shape[1], max_soft_tokens)
    channels_first = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    pixels = resize(channels_first, size_px).to(torch.float32) * pixel_scale
    return ImagePatches(
        patches=patchify(pixels, side_px),
        positions=grid_positions(size_px[0] // side_px, size_px[1] // side_px),
        soft_tokens=soft_tokens(size_px),
    )


def _check(height_px: int, width_px: int, max_soft_tokens: int) -> None:
    if height_px < 1 or width_px < 1:
        raise ValueError(f"an image of {height_px} x {width_px} px has no pixels; both sides must be at least 1")
    if max_soft_tokens not in BUDGETS:
        raise ValueError(f"max_soft_tokens={max_soft_tokens} is not supported; use one of {BUDGETS}")
