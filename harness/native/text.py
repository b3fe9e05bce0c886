"""The decoder of all five variants: embedded tokens -> final hidden states -> logits.

Shapes: T tokens; H width; N query heads; K key heads; D head size; L layers; V vocabulary;
W width of a per-layer embedding.

    tokens (T,) -> embed (T, H), soft tokens replaced -> layers (T, H) -> norm (T, H) -> logits (T, V)

Notable, in the order of a layer:
- every block is normed on its way in and on its way out, then added; one number scales the stream at the end
- sliding layers: smaller heads, all features rotated; full layers: larger heads, a quarter of them rotated
- full layers of the larger models have no value projection: the raw key projection is the value
- the last layers of the small models read the keys and values of an earlier layer of their kind
- 26B: a mixture of experts beside the dense MLP; the router reads the residual stream, not the MLP's input
- E2B, E4B: each layer adds a gated embedding of the token that belongs to that layer only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attention import attend, attend_next
from .feed_forward import FeedForward, leave_experts_uncompiled
from .layers import Linear, RMSNorm, Rotation, gelu, product, rms_normalize, rope, rotate, wide_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .attention import Plan
    from .cache import Cache
    from .config import LayerShape, TextConfig
    from .tap import Tap

# Lengths vary. Each shape of layer is compiled for passes of any length and, for decoding, once for each number of
# samples that are read together. The last option asks for half precision to be rounded where it is without a
# compiler, which no test holds yet.
COMPILE: Any = {"dynamic": True, "recompile_limit": 64, "options": {"emulate_precision_casts": True}}


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of one sample stand in a pass.

    Positions (n,), by layer kind which keys they see, and the cache that takes up theirs.
    """

    positions: Tensor
    plans: Mapping[str, Plan]
    cache: Cache


class Attention(nn.Module):
    """Grouped attention; a layer with a donor has no key or value weights of its own."""

    def __init__(self, config: TextConfig, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        self.eps = config.eps
        self.q = Linear(config.hidden, shape.heads * shape.head_dim)
        self.q_norm = RMSNorm(shape.head_dim, config.eps)
        self.o = Linear(shape.heads * shape.head_dim, config.hidden)
        if shape.donor is None:
            self.k = Linear(config.hidden, shape.kv_heads * shape.head_dim)
            self.k_norm = RMSNorm(shape.head_dim, config.eps)
        if shape.donor is None and not shape.value_is_key:
            self.v = Linear(config.hidden, shape.kv_heads * shape.head_dim)

    def queries(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Normed, then rotated: (T, H) -> (T, N, D)."""
        return rotate(self.q_norm(self.q(x).unflatten(-1, (self.shape.heads, self.shape.head_dim))), rotation)

    def keys_values(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
        """Keys, normed then rotated, and values, normed without weight: (T, H) -> 2 of (T, K, D), none with a donor."""
        if self.shape.donor is not None:
            return ()
        heads = (self.shape.kv_heads, self.shape.head_dim)
        raw_keys = self.k(x).unflatten(-1, heads)
        raw_values = raw_keys if self.shape.value_is_key else self.v(x).unflatten(-1, heads)
        return rotate(self.k_norm(raw_keys), rotation), rms_normalize(raw_values, self.eps).to(x.dtype)

    def look(self, queries: Tensor, keys_values: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
        """What the tokens of each sample see, new keys and values taken up first: (T, N, D) -> (T, N * D)."""
        shape, start, seen = self.shape, 0, []
        for layout in layouts:
            rows = slice(start, start := start + len(layout.positions))
            kept = layout.cache.layers[shape.index if shape.donor is None else shape.donor]
            if shape.donor is None:
                kept.extend(*(new[rows] for new in keys_values))
            seen.append(attend(queries[rows], *kept.read(), layout.plans[shape.kind]))
        return torch.cat(seen)

    def look_back(self, queries: Tensor, new: Sequence[Tensor], kept: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The same for the next token of each of B samples, which sees all that its sample keeps.

        Queries (B, N, D); new keys and values, 2 of (B, K, D) or none, to be written to the last row of those
        kept, B times 2 of (S, K, D) -> (B, N * D).
        """
        for row, pair in enumerate(kept):
            for rows, news in zip(pair, new, strict=False):
                rows[-1] = news[row]
        return torch.cat([attend_next(query, *pair) for query, pair in zip(torch.split(queries, 1), kept, strict=True)])


class LayerEmbedding(nn.Module):
    """Adds what the token means to this layer alone, gated by the stream itself."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Linear(config.hidden, config.ple_width)
        self.project = Linear(config.ple_width, config.hidden)
        self.norm = RMSNorm(config.hidden, config.eps)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Stream (T, H), embedding (T, W) -> (T, H). The stream is not normed on its way in."""
        out: Tensor = self.norm(self.project(gelu(self.gate(x)) * embedding))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    scalar: Tensor

    def __init__(self, config: TextConfig, shape: LayerShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.eps)
        self.attention = Attention(config, shape)
        self.attention_out_norm = RMSNorm(config.hidden, config.eps)
        self.feed_forward = FeedForward(config, shape)
        self.ple = LayerEmbedding(config) if config.ple_width else None
        self.register_buffer("scalar", torch.empty(1))

    def forward(
        self, x: Tensor, embedding: Tensor | None, rotations: Mapping[str, Rotation], layouts: Sequence[Layout]
    ) -> Tensor:
        """(T, H), (T, W) or None -> (T, H). Only the middle looks at other tokens; the rest can be compiled."""
        queries, *keys_values = self.before(x, rotations[self.attention.shape.kind])
        return self.after(x, self.attention.look(queries, keys_values, layouts), embedding)

    def step(
        self, x: Tensor, embedding: Tensor | None, rotation: Rotation, kept: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The next token of each of B samples: (B, H), (B, W) or None -> (B, H). All of it can be compiled as one."""
        queries, *new = self.before(x, rotation)
        return self.after(x, self.attention.look_back(queries, new, kept), embedding)

    def before(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
        """What attention needs: (T, H) -> (T, N, D) and up to 2 of (T, K, D)."""
        normed = self.attention_norm(x)
        return self.attention.queries(normed, rotation), *self.attention.keys_values(normed, rotation)

    def after(self, x: Tensor, seen: Tensor, embedding: Tensor | None) -> Tensor:
        """What is made of it: (T, H), (T, N * D), (T, W) or None -> (T, H)."""
        x = x + self.attention_out_norm(self.attention.o(seen))
        x = x + self.feed_forward(x)
        if self.ple is not None:
            x = x + self.ple(x, embedding)
        return x * self.scalar


class TokenTables(nn.Module):
    """The per-layer embeddings of E2B and E4B: one table for all layers, and a projection of the input."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.shape = (len(config.layers), config.ple_width)
        packed = len(config.layers) * config.ple_width
        self.table = nn.Parameter(torch.empty(config.ple_vocabulary, packed))
        self.context = Linear(config.hidden, packed)
        self.context_norm = RMSNorm(config.ple_width, config.eps)

    def forward(self, token_ids: Tensor, embedded: Tensor) -> Tensor:
        """Token ids (T,), soft tokens as padding, and the decoder's input (T, H) -> (T, L, W)."""
        packed = (embedded.shape[0], *self.shape)
        token = (self.table[token_ids] * rounded(self.shape[1] ** 0.5, self.table)).reshape(packed)
        context = (self.context(embedded) * embedded.shape[-1] ** -0.5).reshape(packed)
        out: Tensor = (self.context_norm(context) + token) * 2**-0.5
        return out


class Decoder(nn.Module):
    """Tokens in, distributions over the next token out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocabulary, config.hidden))
        self.token_tables = TokenTables(config) if config.ple_width else None
        self.layers = nn.ModuleList(Layer(config, shape) for shape in config.layers)
        self.norm = RMSNorm(config.hidden, config.eps)

    def embed(self, token_ids: Tensor) -> Tensor:
        """(T,) -> (T, H), times sqrt(H)."""
        return self.embedding[token_ids] * rounded(self.config.hidden**0.5, self.embedding)

    def compile(self) -> None:
        """Compile a step of a layer and, for a pass, what lies between two attentions; once for layers of one shape."""
        leave_experts_uncompiled()
        for layer in self.layers:
            for name in ("before", "after", "step"):
                setattr(layer, name, torch.compile(getattr(layer, name), **COMPILE))

    def forward(self, token_ids: Tensor, embedded: Tensor, layouts: Sequence[Layout], tap: Tap) -> Tensor:
        """Run all layers and the final norm.

        Args:
            token_ids: (T,), with padding in place of soft tokens; used by per-layer embeddings only.
            embedded: (T, H), with soft tokens in place.
            layouts: of each sample in the pack, where its tokens stand and what they see.
            tap: is shown the stream after each layer.
        """
        rotations = self.rotations(torch.cat([layout.positions for layout in layouts]))
        tables = self.token_tables(token_ids, embedded) if self.token_tables is not None else None
        hidden = embedded
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, None if tables is None else tables[:, index], rotations, layouts)
            hidden = tap.record(f"layer.{index}", hidden)
        for layout in layouts:
            layout.cache.advance(len(layout.positions))
        out: Tensor = self.norm(hidden)
        return out

    def step(self, token_ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        """Read the next token of each of B samples: (B,) -> (B, H)."""
        embedded = self.embed(token_ids)
        rotations = self.rotations(torch.tensor([cache.length for cache in caches], device=embedded.device))
        tables = self.token_tables(token_ids, embedded) if self.token_tables is not None else None
        for cache in caches:
            cache.reserve()
        hidden = embedded
        for layer, shape in zip(self.layers, self.config.layers, strict=True):
            kept = [cache.layers[shape.index if shape.donor is None else shape.donor].read() for cache in caches]
            table = None if tables is None else tables[:, shape.index]
            step: Any = layer.step
            hidden = step(hidden, table, rotations[shape.kind], kept)
        for cache in caches:
            cache.advance(1)
        out: Tensor = self.norm(hidden)
        return out

    def rotations(self, positions: Tensor) -> dict[str, Rotation]:
        """Rotation by position of each layer kind: (T,) -> 2 of (T, 1, D)."""
        wide_positions = positions.to(wide_dtype(self.embedding.dtype))
        head_dims = {shape.kind: shape.head_dim for shape in self.config.layers}
        ropes = self.config.rope
        return {
            kind: rope(wide_positions, ropes[kind].theta, dim, ropes[kind].rotated) for kind, dim in head_dims.items()
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states (T, H) -> (T, V), kept within the soft cap by tanh."""
        return self.config.softcap * torch.tanh(product(hidden, self.embedding) / self.config.softcap)


def rounded(factor: float, like: Tensor) -> Tensor:
    """A factor rounded to the dtype of a table: in bfloat16 sqrt(3072) is 55.5, not 55.43."""
    return torch.tensor(factor, dtype=like.dtype, device=like.device)
