"""The parts that the decoder and the vision tower share: norm, rotation, gated MLP.

Shapes: T tokens or patches; N heads; D head size; F features.
Samples are packed after one another, so there is no batch dimension and no padding anywhere.

Precision: "wide" is float64 for float64 weights and float32 otherwise. Norms and rotations run wide and round
once at the end; matrix products run in the dtype of the weights, softmax wide between two of them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype for norms, rotations and softmax beside weights of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The same values in the dtype for norms, rotations and softmax."""
    return x.to(wide_dtype(x.dtype))


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """Divide by sqrt(mean(x^2) + eps) over the last dimension, wide."""
    return functional.rms_norm(wide(x), x.shape[-1:], eps=eps)


class RMSNorm(nn.Module):
    """RMS normalisation times a weight; the weight is used as it is, not as 1 + weight.

    PyTorch's function runs wide and rounds once, as everything here; a test holds it to the formula.
    """

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., F)."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(nn.Module):
    """A linear map without bias."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features_out, features_in))

    def forward(self, x: Tensor) -> Tensor:
        """(..., features_in) -> (..., features_out)."""
        return product(x, self.weight)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight transposed: (..., features_in), (features_out, features_in) -> (..., features_out).

    One row goes as a vector: CPU libraries then read the weights once, where their product of matrices packs them
    first and takes up to three times as long. Compiled, a sum over rows is a plain loop, which reads them nearly at the
    speed of memory, and shares it with what stands before and after. Half precision keeps to one kernel, because two
    round differently.
    """
    if len(x) == 1 and x.ndim == 2 and x.dtype == wide_dtype(x.dtype):
        if torch.compiler.is_compiling():
            return (weight * x).sum(-1)[None]
        return functional.linear(x[0], weight)[None]
    return functional.linear(x, weight)


class ClippedLinear(Linear):
    """A linear map whose input and output are clamped to stored bounds, as in quantisation-aware training."""

    input_min: Tensor
    input_max: Tensor
    output_min: Tensor
    output_max: Tensor

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out)
        for bound in ("input_min", "input_max", "output_min", "output_max"):
            self.register_buffer(bound, torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., features_in) -> (..., features_out)."""
        return super().forward(x.clamp(self.input_min, self.input_max)).clamp(self.output_min, self.output_max)


class GatedMLP(nn.Module):
    """down(gelu(gate x) * up x), with the tanh form of gelu."""

    def __init__(self, features: int, width: int, linear: type[Linear] = Linear) -> None:
        super().__init__()
        self.gate = linear(features, width)
        self.up = linear(features, width)
        self.down = linear(width, features)

    def forward(self, x: Tensor) -> Tensor:
        """(T, F) -> (T, F)."""
        out: Tensor = self.down(gelu(self.gate(x)) * self.up(x))
        return out


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit, tanh approximation."""
    return functional.gelu(x, approximate="tanh")


def rope_angles(positions: Tensor, theta: float, dim: int, rotated: float = 1.0) -> Tensor:
    """Rotation angles: positions (T,), wide -> (T, dim / 2).

    Frequency j is theta^(-2j / dim) for the first `rotated` fraction and 0, no rotation, for the others. The
    exponent divides by the whole `dim`, not by the rotated part of it.
    """
    return positions[:, None] * _frequencies(theta, dim, rotated).to(positions)


@cache
def _frequencies(theta: float, dim: int, rotated: float) -> Tensor:
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    frequencies[int(rotated * dim // 2) :] = 0
    return frequencies


class Rotation(NamedTuple):
    """What features are multiplied with, and what their partners are: computed once, used by each layer of a kind.

    Both (T, 1, ..., D): the cosines of the angles twice, and their sines, first negative, then positive.
    """

    cos: Tensor
    sin: Tensor


def rope(positions: Tensor, theta: float, dim: int, rotated: float = 1.0) -> Rotation:
    """The rotation of heads of `dim` features by one position each: (T,), wide -> 2 of (T, 1, dim)."""
    angles = rope_angles(positions, theta, dim, rotated)[:, None]
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate feature i with feature i + D/2 by angle i: (T, N, ..., D) -> the same shape."""
    features = wide(x)
    partners = features.roll(features.shape[-1] // 2, dims=-1)
    return (features * rotation.cos + partners * rotation.sin).to(x.dtype)
