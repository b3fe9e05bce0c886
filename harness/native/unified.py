"""The embedders of the 12B for images and sound: one row per soft token. No tower, no attention.

Shapes: S patches of 48 x 48 pixels or slices of 640 samples, one per soft token; E embedder width; H decoder width.

    pixels (S, 6912) -> norm, dense, norm (S, E) -> + position rows, norm (S, E) -> projector (S, H)
    wave (S, 640) -> projector (S, H)

Pixels stay in [0, 1]: unlike the tower, nothing centres them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Linear, rms_normalize, wide, wide_dtype

if TYPE_CHECKING:
    from .config import UnifiedConfig
    from .config_media import WaveformConfig

# Not in config.json: these norms keep the default of the training code, ten times the eps of the RMS norms.
LAYER_NORM_EPS = 1e-5


class LayerNorm(nn.Module):
    """Mean and variance normalisation with weight and bias, wide."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F)."""
        out = functional.layer_norm(wide(x), self.weight.shape, wide(self.weight), wide(self.bias), LAYER_NORM_EPS)
        return out.to(x.dtype)


class UnifiedEmbedder(nn.Module):
    """From pixels to the rows that replace the soft tokens in the decoder's input."""

    def __init__(self, config: UnifiedConfig, decoder_width: int) -> None:
        super().__init__()
        self.eps = config.eps
        pixels = 3 * config.patch_px**2
        self.patch_norm = LayerNorm(pixels)
        self.patch = nn.Linear(pixels, config.width)
        self.embedding_norm = LayerNorm(config.width)
        self.positions = nn.Parameter(torch.empty(config.position_rows, 2, config.width))
        self.position_norm = LayerNorm(config.width)
        self.project = Linear(config.width, decoder_width)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Patches (S, 6912) in [0, 1] and their (x, y), (S, 2) -> (S, H)."""
        x, y = positions.unbind(-1)
        hidden = self.embedding_norm(self.patch(self.patch_norm(patches.to(self.positions.dtype))))
        hidden = self.position_norm(hidden + self.positions[x, 0] + self.positions[y, 1])
        out: Tensor = self.project(rms_normalize(hidden, self.eps).to(hidden.dtype))
        return out


class WaveformEmbedder(nn.Module):
    """From slices of the wave itself to the rows that replace the soft tokens in the decoder's input."""

    def __init__(self, config: WaveformConfig, decoder_width: int) -> None:
        super().__init__()
        self.eps = config.eps
        self.project = Linear(config.samples, decoder_width)

    def forward(self, frames: Tensor) -> Tensor:
        """Samples (S, 640) -> (S, H). The norm takes the loudness out of each slice; eps keeps silence silent."""
        dtype = self.project.weight.dtype
        out: Tensor = self.project(rms_normalize(frames.to(wide_dtype(dtype)), self.eps).to(dtype))
        return out
