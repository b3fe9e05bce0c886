"""The vision tower of E2B, E4B, 26B-A4B and 31B: patches of images -> one row per soft token.

Shapes: P patches of all images, one image after another (rows * columns of each grid, both multiples of 3);
S = P / 9 soft tokens; V tower width; N heads; D head size; H decoder width.

    pixels (P, 768) -> patches + position rows (P, V) -> layers (P, V) -> 3x3 mean (S, V) -> projector (S, H)

Nothing is padded to the budget: products run over all patches at once, attention over each image alone, where
every patch sees every patch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import attend, whole
from .layers import (
    ClippedLinear,
    GatedMLP,
    Linear,
    RMSNorm,
    Rotation,
    rms_normalize,
    rope,
    rotate,
    wide,
    wide_dtype,
)

if TYPE_CHECKING:
    from .attention import Plan
    from .config import TowerConfig


class TowerAttention(nn.Module):
    """Attention of every patch to every patch, rotated along x and y separately."""

    def __init__(self, config: TowerConfig, linear: type[Linear]) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.head_shape = (config.heads, config.head_dim)
        self.eps = config.eps
        self.q, self.k, self.v = (linear(config.hidden, width) for _ in range(3))
        self.o = linear(width, config.hidden)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)

    def forward(self, x: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        """(P, V) -> (P, V)."""
        queries = rotate_axes(self.q_norm(self.q(x).unflatten(-1, self.head_shape)), rotation)
        keys = rotate_axes(self.k_norm(self.k(x).unflatten(-1, self.head_shape)), rotation)
        values = rms_normalize(self.v(x).unflatten(-1, self.head_shape), self.eps).to(x.dtype)
        out: Tensor = self.o(attend(queries, keys, values, plan))
        return out


class TowerLayer(nn.Module):
    """Attention, then MLP; each is normed on its way in and on its way out, then added."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        linear = ClippedLinear if config.clipped else Linear
        self.attention = TowerAttention(config, linear)
        self.mlp = GatedMLP(config.hidden, config.mlp_width, linear)
        self.attention_norm = RMSNorm(config.hidden, config.eps)
        self.attention_out_norm = RMSNorm(config.hidden, config.eps)
        self.mlp_norm = RMSNorm(config.hidden, config.eps)
        self.mlp_out_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        """(P, V) -> (P, V)."""
        x = x + self.attention_out_norm(self.attention(self.attention_norm(x), rotation, plan))
        out: Tensor = x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))
        return out


class VisionTower(nn.Module):
    """From pixels to the rows that replace the soft tokens in the decoder's input."""

    offset: Tensor
    scale: Tensor

    def __init__(self, config: TowerConfig, decoder_width: int) -> None:
        super().__init__()
        self.config = config
        self.patch = Linear(3 * config.patch_px**2, config.hidden)
        self.positions = nn.Parameter(torch.empty(2, config.position_rows, config.hidden))
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.depth))
        self.project = Linear(config.hidden, decoder_width)
        if config.standardize:
            self.register_buffer("offset", torch.empty(config.hidden))
            self.register_buffer("scale", torch.empty(config.hidden))

    def forward(self, patches: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Patches (P, 768) in [0, 1], their (x, y), (P, 2), and how many belong to each image -> (S, H)."""
        x, y = positions.unbind(-1)
        hidden = self.embed(patches) + self.positions[0, x] + self.positions[1, y]
        rotation, plan = self.rotation(positions), whole(lengths, patches.device)
        for layer in self.layers:
            hidden = layer(hidden, rotation, plan)
        images = zip(torch.split(hidden, lengths), torch.split(x, lengths), strict=True)
        pooled = torch.cat([self.pool(image, columns=int(column.max()) + 1) for image, column in images])
        out: Tensor = self.project(rms_normalize(self.standardize(pooled), self.config.eps).to(hidden.dtype))
        return out

    def embed(self, patches: Tensor) -> Tensor:
        """(P, 768) in [0, 1] -> (P, V). Pixels are centred to [-1, 1] first and rounded after."""
        weight = self.patch.weight
        centred = 2 * (patches.to(wide_dtype(weight.dtype)) - 0.5)
        out: Tensor = self.patch(centred.to(weight.dtype))
        return out

    def rotation(self, positions: Tensor) -> Rotation:
        """The (x, y) of each patch (P, 2) -> 2 of (P, 1, 2, D/2): each axis turns one half of the head."""
        flat = positions.flatten().to(wide_dtype(self.positions.dtype))
        cos, sin = rope(flat, self.config.theta, self.config.head_dim // 2)
        return Rotation(cos.reshape(len(positions), 1, 2, -1), sin.reshape(len(positions), 1, 2, -1))

    def pool(self, hidden: Tensor, columns: int) -> Tensor:
        """Mean over 3 x 3 patches, times sqrt(V), wide: (P, V) -> (S, V).

        Wide, because the product can pass the largest float16 before it is standardised.
        """
        cell = self.config.pool
        cells = wide(hidden).reshape(-1, cell, columns // cell, cell, hidden.shape[-1])
        return cells.mean(dim=(1, 3)).flatten(0, 1) * math.sqrt(hidden.shape[-1])

    def standardize(self, pooled: Tensor) -> Tensor:
        """Shift and scale each feature where the checkpoint asks for it, then round: (S, V) -> (S, V)."""
        if self.config.standardize:
            pooled = (pooled - wide(self.offset)) * wide(self.scale)
        return pooled.to(self.positions.dtype)


def rotate_axes(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate half of each head by x, half by y: (P, N, D) -> (P, N, D)."""
    return rotate(x.reshape(*x.shape[:2], 2, -1), rotation).flatten(-2)
