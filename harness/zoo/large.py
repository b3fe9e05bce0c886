"""A checkpoint of E2B's published widths and vocabulary with fewer layers: what memory and time are tried on.

Its towers are as much less deep as its decoder is, so that with 35 layers everything is as published.

Its tokenizer is the tiny one: its ids, those of special tokens among them, are the first 576 of the 262,144 rows.
"""

from __future__ import annotations

from harness.errors import UserError
from harness.zoo.variants import Config, config, pattern

LARGE = "e2b-shape"
DEFAULT_LAYERS = 10
_PERIOD, _PUBLISHED_REPEATS = 5, 7

_TEXT: Config = {
    "hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 8, "num_key_value_heads": 1,
    "head_dim": 256, "global_head_dim": 512, "hidden_size_per_layer_input": 256, "sliding_window": 512,
    "vocab_size": 262_144, "vocab_size_per_layer_input": 262_144,
}  # fmt: skip
_VISION: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 12, "head_dim": 64, "global_head_dim": 64, "position_embedding_size": 10_240,
}  # fmt: skip
_AUDIO: Config = {
    "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "output_proj_dims": 1536,
    "subsampling_conv_channels": [128, 32],
}  # fmt: skip


def large_name(layers: int) -> str:
    """The name of the one with so many decoder layers.

    Raises:
        UserError: no whole number of E2B's patterns: four sliding layers and a full one, the latter half sharing.
    """
    if layers < 2 * _PERIOD or layers % _PERIOD:
        raise UserError(f"--layers {layers}: E2B's layers come in fives, and some must share: take 10, 15, ... 35")
    return f"{LARGE}-{layers}"


def large_config(name: str) -> Config:
    """Its `config.json`: half of the patterns, rounded down, share the keys and values of an earlier one, as in E2B."""
    repeats = int(name.removeprefix(f"{LARGE}-")) // _PERIOD
    made = config("tiny-e2b")
    layers = {
        "layer_types": pattern(_PERIOD - 1, repeats),
        "num_hidden_layers": _PERIOD * repeats,
        "num_kv_shared_layers": _PERIOD * ((repeats + 1) // 2 if repeats > 2 else 1),
    }
    towers = {
        name: tower | {"num_hidden_layers": max(1, tower["num_hidden_layers"] * repeats // _PUBLISHED_REPEATS)}
        for name, tower in (("vision_config", _VISION), ("audio_config", _AUDIO))
    }
    parts = {"text_config": _TEXT | layers, **towers}
    return made | {part: made[part] | sizes for part, sizes in parts.items()}
