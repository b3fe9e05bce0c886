"""The feed-forward block of a decoder layer: a dense MLP and, in the 26B, a mixture of experts beside it.

Shapes: T tokens; H width; E experts; C of them chosen for a token.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .layers import GatedMLP, Linear, RMSNorm, gelu, product, rms_normalize, wide

if TYPE_CHECKING:
    from .config import Experts, LayerShape, TextConfig


# What the MLP makes between its products is four times as wide as a token. Beyond some tens of megabytes each of it is
# memory that the system has to clear first, which made a token of a long prompt a quarter dearer.
TILE_TOKENS = 1024


class Router(nn.Module):
    """Which experts a token goes to, and with what weight."""

    def __init__(self, config: TextConfig, experts: Experts) -> None:
        super().__init__()
        self.eps = config.eps
        self.chosen = experts.chosen
        self.score = Linear(config.hidden, experts.count)
        self.scale = nn.Parameter(torch.empty(config.hidden))
        self.expert_scale = nn.Parameter(torch.empty(experts.count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residual stream (T, H) -> weights (T, C), wide, and expert numbers (T, C)."""
        scaled = rms_normalize(x, self.eps).to(x.dtype) * self.scale * x.shape[-1] ** -0.5
        shares, numbers = wide(self.score(scaled)).softmax(-1).topk(self.chosen)
        # The scale of an expert comes after the shares are made to sum to 1, so the weights need not.
        return shares / shares.sum(-1, keepdim=True) * wide(self.expert_scale)[numbers], numbers


class Mixture(nn.Module):
    """The weighted sum of the chosen experts, each a gated MLP. The sum is wide."""

    def __init__(self, config: TextConfig, experts: Experts) -> None:
        super().__init__()
        self.router = Router(config, experts)
        self.norm = RMSNorm(config.hidden, config.eps)
        self.gate_up = nn.Parameter(torch.empty(experts.count, 2 * experts.width, config.hidden))
        self.down = nn.Parameter(torch.empty(experts.count, config.hidden, experts.width))
        self.out_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream (T, H) -> (T, H)."""
        weights, numbers = self.router(x)
        normed = self.norm(x)
        # Sorted by expert, the tokens of one are a slice: each expert's weights are read once for all its tokens, and
        # what it reads and writes stays in the processor's cache.
        order = numbers.flatten().argsort(stable=True)
        counts = numbers.flatten().bincount(minlength=len(self.down)).tolist()
        tokens, shares = order // numbers.shape[1], weights.flatten()[order, None]
        groups = zip(torch.split(tokens, counts), torch.split(shares, counts), strict=True)
        total = torch.zeros_like(normed, dtype=weights.dtype)
        for number, (rows, share) in enumerate(groups):
            if len(rows):
                # On a CPU index_select takes a third of the time of normed[rows].
                total.index_add_(0, rows, share * self.expert(number, normed.index_select(0, rows)))
        out: Tensor = self.out_norm(total.to(x.dtype))
        return out

    def expert(self, number: int, x: Tensor) -> Tensor:
        """One expert: (rows, H) -> (rows, H)."""
        gate, up = product(x, self.gate_up[number]).chunk(2, dim=-1)
        return product(gelu(gate) * up, self.down[number])


@cache
def leave_experts_uncompiled() -> None:
    """How many tokens an expert gets is data, and each other count would be compiled anew.

    Not a decorator: naming the compiler imports it, 150 MiB that nobody needs who compiles nothing.
    """
    Mixture.forward = torch.compiler.disable(Mixture.forward)  # type: ignore[method-assign, no-untyped-call]


class FeedForward(nn.Module):
    """The dense MLP and, in the 26B, the experts beside it; each branch is normed before they are added."""

    def __init__(self, config: TextConfig, shape: LayerShape) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden, config.eps)
        self.dense = GatedMLP(config.hidden, shape.mlp_width)
        self.mixture = Mixture(config, config.experts) if config.experts else None
        self.dense_out_norm = RMSNorm(config.hidden, config.eps) if config.experts else None
        self.out_norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream (T, H) -> (T, H)."""
        out = self._dense(self.norm(x))
        if self.mixture is not None and self.dense_out_norm is not None:
            out = self.dense_out_norm(out) + self.mixture(x)
        normed: Tensor = self.out_norm(out)
        return normed

    def _dense(self, x: Tensor) -> Tensor:
        """The dense MLP, some tokens at a time: (T, H) -> (T, H)."""
        if len(x) <= TILE_TOKENS or torch.compiler.is_compiling():
            whole: Tensor = self.dense(x)
            return whole
        return torch.cat([self.dense(rows) for rows in torch.split(x, TILE_TOKENS)])
