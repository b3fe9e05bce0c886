"""Checkpoints with one thing in them: a property that fails on one of these has named its cause.

Two decoder layers, a window of 4 tokens, so that any image is longer than the window and any text crosses it. A layer
whose output projection is all zeros (`SILENT`) passes the residual stream on: what is seen then is the other layer
alone. Gemma 4 always ends in a full layer, so a sliding layer can only be seen like this.
"""

from __future__ import annotations

from copy import deepcopy

from harness.zoo.variants import (
    AUDIO_UNIFIED,
    TEXT_LARGE,
    TEXT_SMALL,
    VISION_UNIFIED,
    Config,
    config,
    pattern,
    text,
    tower_model,
    unified_model,
    vision,
)

_SIZES: Config = {
    "hidden_size": 88, "intermediate_size": 120, "sliding_window": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64,
}  # fmt: skip
_CAUSAL = {"attention_k_eq_v": False, "num_global_key_value_heads": None, "use_bidirectional_attention": None}
_BLOCKS = _CAUSAL | {"use_bidirectional_attention": "vision"}


def _tower(kind: Config, layers: int = 1, **sizes: object) -> Config:
    seen = vision(heads=2, head_dim=20, clipped=False, intermediate_size=104, num_hidden_layers=1)
    return tower_model(text(pattern(1, layers), kind, **(_SIZES | sizes)), seen, None)


def _without_audio(name: str) -> Config:
    return config(name) | {"audio_config": None}


FEATURES: dict[str, Config] = {
    "one-sliding-blocks": _tower(_BLOCKS),
    "one-sliding-causal": _tower(_CAUSAL),
    "one-full-blocks": _tower(_BLOCKS),
    "one-unified-sliding": unified_model(
        text(pattern(1, 1), TEXT_LARGE, **_SIZES, num_global_key_value_heads=1),
        VISION_UNIFIED | {"mm_embed_dim": 28, "output_proj_dims": 28},
        AUDIO_UNIFIED,
    ),
    "one-ple": _tower(TEXT_SMALL, hidden_size_per_layer_input=20),
    "one-shared-kv": _tower(TEXT_SMALL, layers=2, num_kv_shared_layers=2),
    "one-k-eq-v": _tower(_CAUSAL | {"attention_k_eq_v": True}, num_global_key_value_heads=1),
    "one-moe": _tower(
        _CAUSAL, hidden_size=96, enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=80,
    ),
    "one-head-size": _tower(_CAUSAL, global_head_dim=32),
    "one-large-bias": _tower(_CAUSAL),
    "no-audio-e2b": _without_audio("tiny-e2b"),
}  # fmt: skip
"""The models by name; each says in it what it has that the others lack."""

SILENT = {
    "one-sliding-blocks": "layers.1.self_attn.o_proj",
    "one-sliding-causal": "layers.1.self_attn.o_proj",
    "one-unified-sliding": "layers.1.self_attn.o_proj",
    "one-full-blocks": "layers.0.self_attn.o_proj",
}
"""Model -> the tensor that is all zeros."""

PLANTED = {"one-large-bias": ("std_bias", 53_760.0)}
"""Model -> a tensor and its first value: the largest published `std_bias`, which times a scale overflows float16."""


def feature_config(name: str) -> Config:
    """The `config.json` of a model of `FEATURES`, as a fresh copy."""
    return deepcopy(FEATURES[name])
