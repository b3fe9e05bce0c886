"""The audio tower of E2B and E4B, a conformer: log-mel frames -> one row per soft token.

Shapes: F frames of 10 ms; T = ceil(F / 4) tokens of 40 ms; B = 128 mel bins; C channels; A tower width; N heads;
D = A / N head size; W keys in a window; O output width; H decoder width.

    log-mel (F, B) -> two strided convolutions (C, T, B / 4) -> (T, A) -> layers (T, A) -> (T, O) -> projector (T, H)

Notable:
- one recording at a time without padding, so the only mask is the window; nothing looks ahead but the convolutions
- a query sees itself and the 11 tokens before it; its distance to each is part of the score
- scores are kept within a soft cap by tanh *before* what lies in front of the recording is masked
- a layer is half a feed-forward block, attention, a causal convolution and the other half; its stream is normed last
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .audio_features import MEL_BINS
from .layers import ClippedLinear, Linear, RMSNorm, rms_normalize, wide

if TYPE_CHECKING:
    from .config_media import AudioTowerConfig

# softplus(1) / ln 2 and 1 / ln 2: at their initial value the learned scales then leave a plain 1 / sqrt(D) for queries.
KEY_SCALE = math.log(1 + math.e) / math.log(2)
QUERY_SCALE = 1 / math.log(2)
LONGEST_WAVE = 10_000.0


class StridedConvolution(nn.Module):
    """A 3 x 3 convolution that halves time and frequency, a norm over channels and a rectifier."""

    def __init__(self, channels_in: int, channels_out: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, 3, 3))
        self.norm = nn.Parameter(torch.empty(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(C, F, B) -> (C', ceil(F / 2), ceil(B / 2))."""
        convolved = functional.conv2d(x[None], self.weight, stride=2, padding=1)[0].movedim(0, -1)
        normed = functional.layer_norm(wide(convolved), self.norm.shape, wide(self.norm), eps=self.eps)
        return normed.to(x.dtype).relu().movedim(-1, 0)


class AudioFeedForward(nn.Module):
    """Two clipped linears around SiLU; half of the result is added to the stream."""

    def __init__(self, config: AudioTowerConfig, linear: type[Linear]) -> None:
        super().__init__()
        self.residual, self.bound = config.residual, config.bound
        self.norm = RMSNorm(config.hidden, config.eps)
        self.up = linear(config.hidden, 4 * config.hidden)
        self.down = linear(4 * config.hidden, config.hidden)
        self.out_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(T, A) -> (T, A)."""
        inner = self.down(functional.silu(self.up(self.norm(bounded(x, self.bound)))))
        out: Tensor = x + self.residual * self.out_norm(bounded(inner, self.bound))
        return out


class WindowAttention(nn.Module):
    """Attention of each token to the last W, with a score for the distance; all of it wide."""

    def __init__(self, config: AudioTowerConfig, linear: type[Linear]) -> None:
        super().__init__()
        self.heads = (config.heads, config.hidden // config.heads)
        self.window, self.softcap = config.window, config.softcap
        self.q, self.k, self.v, self.o = (linear(config.hidden, config.hidden) for _ in range(4))
        self.distance = Linear(config.hidden, config.hidden)
        self.scale = nn.Parameter(torch.empty(self.heads[1]))

    def forward(self, x: Tensor) -> Tensor:
        """(T, A) -> (T, A)."""
        queries, keys, values = (self.split(linear(x)) for linear in (self.q, self.k, self.v))
        queries = queries * (QUERY_SCALE * self.heads[1] ** -0.5) * functional.softplus(wide(self.scale))
        scores = torch.einsum("tnd,tndw->tnw", queries, self.windows(keys * KEY_SCALE))
        scores = scores + torch.einsum("tnd,wnd->tnw", queries, self.distances(x.dtype))
        scores = self.softcap * torch.tanh(scores / self.softcap)
        shares = scores.masked_fill(~self.inside(x)[:, None], float("-inf")).softmax(-1)
        mixed = torch.einsum("tnw,tndw->tnd", shares, self.windows(values))
        out: Tensor = self.o(mixed.flatten(1).to(x.dtype))
        return out

    def windows(self, x: Tensor) -> Tensor:
        """The rows that each token sees, itself last, zeros in front of the first: (T, N, D) -> (T, N, D, W)."""
        return functional.pad(x, (0, 0, 0, 0, self.window - 1, 0)).unfold(0, self.window, 1)

    def inside(self, x: Tensor) -> Tensor:
        """Which places of each window lie in the recording: (T, W), True = inside."""
        places = torch.arange(self.window, device=x.device) - (self.window - 1)
        return torch.arange(len(x), device=x.device)[:, None] + places >= 0

    def distances(self, dtype: torch.dtype) -> Tensor:
        """The vector that a query is scored with at each distance W - 1 ... 0, wide: (W, N, D)."""
        steps = torch.arange(self.window - 1, -1, -1, dtype=torch.float64)
        waves = sinusoids(steps, self.distance.weight.shape[1])
        return self.split(self.distance(waves.to(self.distance.weight.device, dtype)))

    def split(self, x: Tensor) -> Tensor:
        """Features by head, wide: (T, A) -> (T, N, D)."""
        return wide(x).reshape(-1, *self.heads)


class CausalConvolution(nn.Module):
    """A gated linear, a convolution over the last few tokens of each feature by itself, and a linear."""

    def __init__(self, config: AudioTowerConfig, linear: type[Linear]) -> None:
        super().__init__()
        self.bound = config.bound
        self.norm = RMSNorm(config.hidden, config.eps)
        self.start = linear(config.hidden, 2 * config.hidden)
        self.kernel = nn.Parameter(torch.empty(config.hidden, 1, config.kernel))
        self.inner_norm = RMSNorm(config.hidden, config.eps)
        self.end = linear(config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(T, A) -> (T, A)."""
        features, taps = self.kernel.shape[0], self.kernel.shape[2]
        gated = functional.pad(functional.glu(self.start(self.norm(x))).T, (taps - 1, 0))
        convolved = functional.conv1d(gated[None], self.kernel, groups=features)[0].T
        out: Tensor = x + self.end(functional.silu(self.inner_norm(bounded(convolved, self.bound))))
        return out


class ConformerLayer(nn.Module):
    """Half a feed-forward block, attention, convolution, the other half, norm."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        linear = ClippedLinear if config.clipped else Linear
        self.bound = config.bound
        self.before = AudioFeedForward(config, linear)
        self.attention_norm = RMSNorm(config.hidden, config.eps)
        self.attention = WindowAttention(config, linear)
        self.attention_out_norm = RMSNorm(config.hidden, config.eps)
        self.convolution = CausalConvolution(config, linear)
        self.after = AudioFeedForward(config, linear)
        self.out_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(T, A) -> (T, A)."""
        x = self.before(x)
        attended = self.attention(self.attention_norm(bounded(x, self.bound)))
        x = x + self.attention_out_norm(bounded(attended, self.bound))
        x = self.after(self.convolution(x))
        out: Tensor = self.out_norm(bounded(x, self.bound))
        return out


class AudioTower(nn.Module):
    """From log-mel frames to the rows that replace the soft tokens in the decoder's input."""

    def __init__(self, config: AudioTowerConfig, decoder_width: int) -> None:
        super().__init__()
        first, second = config.channels
        self.eps = config.eps
        self.first = StridedConvolution(1, first, config.eps)
        self.second = StridedConvolution(first, second, config.eps)
        self.input = Linear(second * MEL_BINS // 4, config.hidden)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.depth))
        self.output = nn.Linear(config.hidden, config.width)
        self.project = Linear(config.width, decoder_width)

    def forward(self, frames: Tensor) -> Tensor:
        """Log-mel frames (F, B), F at least 1 -> (T, H).

        The projector norms first, then projects, as the published weights are run. The JAX reference does it the other
        way round.
        """
        x = self.second(self.first(frames.to(self.output.weight.dtype)[None]))
        x = self.input(x.permute(1, 2, 0).flatten(1))
        for layer in self.layers:
            x = layer(x)
        x = self.output(x)
        out: Tensor = self.project(rms_normalize(x, self.eps).to(x.dtype))
        return out


def bounded(x: Tensor, bound: float) -> Tensor:
    """Clamp to +- bound, or to the largest number of the dtype: in float16 this turns an infinity into 65504."""
    bound = min(bound, torch.finfo(x.dtype).max)
    return x.clamp(-bound, bound)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of waves of length 2 pi to 2 pi * 10^4: positions (W,) -> (W, width)."""
    count = width // 2
    step = math.log(LONGEST_WAVE) / max(count - 1, 1)
    turns = positions[:, None] * torch.exp(-step * torch.arange(count, dtype=positions.dtype))
    return torch.cat([turns.sin(), turns.cos()], dim=-1)
