"""The published `config.json` of every Gemma 4 variant, key for key, with tiny numbers in it.

Key sets and every value that is not a size come from the published files (E4B, 31B and 12B read verbatim; E2B and
26B-A4B by their transcriptions). Sizes are chosen so that two of them are equal only where every published model has
them equal: a transposed tensor or a swapped dimension then cannot pass unnoticed.

Limits that the small sizes have to respect:

* attention head sizes are ones that vLLM's CPU backend has kernels for (32, 64, 96), and the cache page of a sliding
  layer (heads x size) divides or is a multiple of that of a full layer;
* vision head sizes are multiples of 4, because axial RoPE splits a head into two axes of rotated pairs;
* `subsampling_conv_channels[0]` stays 128: Hugging Face computes the number of mel bins left after two strides as
  channels // 4, which is right only where it equals the 128 mel bins of the front end;
* the 12B's audio width stays 640, the 40 ms of 16 kHz samples that make one token.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from harness.zoo.tokenizer import TOKEN_IDS, VOCAB_SIZE

Config = dict[str, Any]

# Longest coordinate of a 1120-token budget: 48 x 53,760 px are 3 x 3,360 patches (published table: 10,240 rows).
POSITION_ROWS = 3360
# Every published budget counts soft tokens of 48 x 48 px; a 1120-token strip needs coordinates up to 1119.
UNIFIED_POSITION_ROWS = 1120

_LEFTOVERS: Config = {
    "_name_or_path": "",
    "architectures": None,
    "chunk_size_feed_forward": 0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "output_attentions": False,
    "output_hidden_states": False,
    "problem_type": None,
    "return_dict": True,
}

_TEXT: Config = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": TOKEN_IDS["<bos>"],
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": TOKEN_IDS["<eos>"],
    "expert_intermediate_size": None,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "initializer_range": 0.02,
    "max_position_embeddings": 262144,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_experts": None,
    "num_kv_shared_layers": 0,
    "pad_token_id": TOKEN_IDS["<pad>"],
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_cache": True,
    "use_double_wide_mlp": False,
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
}
TEXT_SMALL: Config = {
    "attention_k_eq_v": False,
    "max_position_embeddings": 131072,
    "num_global_key_value_heads": None,
    "use_bidirectional_attention": None,
}
TEXT_LARGE: Config = {"attention_k_eq_v": True, "use_bidirectional_attention": "vision"}

_VISION: Config = _LEFTOVERS | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "default_output_length": 280,
    "dtype": "bfloat16",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "model_type": "gemma4_vision",
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": POSITION_ROWS,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
VISION_UNIFIED: Config = _LEFTOVERS | {
    "dtype": None,
    "initializer_range": 0.02,
    "mm_posemb_size": UNIFIED_POSITION_ROWS,
    "model_patch_size": 48,
    "model_type": "gemma4_unified_vision",
    "num_soft_tokens": 280,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "rms_norm_eps": 1e-06,
}
# One tower for both E-series models, as published: its output width is neither model's hidden size here.
_AUDIO: Config = _LEFTOVERS | {
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_invalid_logits_value": -1000000000.0,
    "attention_logit_cap": 50.0,
    "conv_kernel_size": 5,
    "dtype": "bfloat16",
    "gradient_clipping": 10000000000.0,
    "hidden_act": "silu",
    "hidden_size": 84,
    "initializer_range": 0.02,
    "model_type": "gemma4_audio",
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "output_proj_dims": 104,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-06,
    "subsampling_conv_channels": [128, 5],
    "use_clipped_linears": True,
}
AUDIO_UNIFIED: Config = _LEFTOVERS | {
    "audio_embed_dim": 640,
    "audio_samples_per_token": 640,
    "dtype": None,
    "hidden_size": 640,
    "initializer_range": 0.02,
    "model_type": "gemma4_unified_audio",
    "output_proj_dims": 640,
    "rms_norm_eps": 1e-06,
}


def pattern(sliding: int, repeats: int) -> list[str]:
    """Layer types: some sliding layers and a full one, repeated."""
    return (["sliding_attention"] * sliding + ["full_attention"]) * repeats


def text(layer_types: list[str], kind: Config, **sizes: object) -> Config:
    """A text_config of those layers; `kind` is `TEXT_SMALL` or `TEXT_LARGE`."""
    return _TEXT | kind | sizes | {"layer_types": layer_types, "num_hidden_layers": len(layer_types)}


def vision(*, heads: int, head_dim: int, clipped: bool, **sizes: object) -> Config:
    """A vision_config: the E-series clip, the large models standardize."""
    same = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "global_head_dim": head_dim,
    }
    flags = {"use_clipped_linears": clipped, "standardize": not clipped}
    return _VISION | same | flags | {"hidden_size": heads * head_dim} | sizes


def tower_model(text: Config, vision: Config, audio: Config | None) -> Config:
    """The config.json of a model with a vision tower."""
    ids = TOKEN_IDS
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": audio,
        "audio_token_id": ids["<|audio|>"],
        "boa_token_id": ids["<|audio>"],
        "boi_token_id": ids["<|image>"],
        "dtype": "bfloat16",
        "eoa_token_id": ids["<audio|>"],
        "eoa_token_index": ids["<audio|>"],
        "eoi_token_id": ids["<image|>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "image_token_id": ids["<|image|>"],
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "video_token_id": ids["<|video|>"],
        "vision_config": vision,
        "vision_soft_tokens_per_image": 280,
    }


def unified_model(text: Config, vision: Config, audio: Config) -> Config:
    """The config.json of a model that reads patches and waves without a tower."""
    absent_from_text = ("dtype", "expert_intermediate_size")
    text = {key: value for key, value in text.items() if key not in absent_from_text} | {
        "model_type": "gemma4_unified_text"
    }
    top = tower_model(text, vision, audio) | {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "transformers_version": "5.10.0.dev0",
    }
    return {key: value for key, value in top.items() if key not in ("eoa_token_id", "vision_soft_tokens_per_image")}


_E2B = text(
    pattern(4, 2), TEXT_SMALL, hidden_size=112, intermediate_size=144, use_double_wide_mlp=True,
    num_kv_shared_layers=5, num_attention_heads=3, num_key_value_heads=1, head_dim=32, global_head_dim=64,
    hidden_size_per_layer_input=24, sliding_window=20,
)  # fmt: skip
_E4B = text(
    pattern(5, 2), TEXT_SMALL, hidden_size=144, intermediate_size=176, num_kv_shared_layers=6,
    num_attention_heads=10, num_key_value_heads=2, head_dim=32, global_head_dim=96,
    hidden_size_per_layer_input=40, sliding_window=28,
)  # fmt: skip
_26B = text(
    pattern(5, 1), TEXT_LARGE, hidden_size=96, intermediate_size=208, enable_moe_block=True,
    num_experts=10, top_k_experts=3, moe_intermediate_size=80, sliding_window=36,
    num_attention_heads=8, num_key_value_heads=4, num_global_key_value_heads=1, head_dim=32, global_head_dim=64,
)  # fmt: skip
_31B = text(
    pattern(5, 2), TEXT_LARGE, hidden_size=80, intermediate_size=208, sliding_window=44,
    num_attention_heads=16, num_key_value_heads=8, num_global_key_value_heads=2, head_dim=32, global_head_dim=64,
)  # fmt: skip
_12B = text(
    pattern(5, 1), TEXT_LARGE, hidden_size=128, intermediate_size=176, sliding_window=52,
    num_attention_heads=16, num_key_value_heads=8, num_global_key_value_heads=1, head_dim=32, global_head_dim=64,
)  # fmt: skip
del _26B["expert_intermediate_size"]  # absent from the transcribed file, as in the 12B's

CONFIGS: dict[str, Config] = {
    "tiny-e2b": tower_model(
        _E2B, vision(heads=5, head_dim=12, clipped=True, intermediate_size=152, num_hidden_layers=3), _AUDIO
    ),
    "tiny-e4b": tower_model(
        _E4B, vision(heads=3, head_dim=20, clipped=True, intermediate_size=136, num_hidden_layers=3), _AUDIO
    ),
    "tiny-26b-a4b": tower_model(
        _26B, vision(heads=2, head_dim=28, clipped=False, intermediate_size=168, num_hidden_layers=2), None
    ),
    "tiny-31b": tower_model(
        _31B, vision(heads=2, head_dim=36, clipped=False, intermediate_size=184, num_hidden_layers=2), None
    ),
    "tiny-12b": unified_model(_12B, VISION_UNIFIED | {"mm_embed_dim": 40, "output_proj_dims": 40}, AUDIO_UNIFIED),
}


def config(name: str) -> Config:
    """The `config.json` of a tiny checkpoint, as a fresh copy that the caller may change."""
    if name not in CONFIGS:
        raise ValueError(f"unknown tiny checkpoint {name!r}: use one of {', '.join(CONFIGS)}")
    return deepcopy(CONFIGS[name])
