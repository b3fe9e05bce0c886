"""The native implementation at the published sizes, without weights: names, shapes and totals of all tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.native.config import ModelConfig, read_config
from harness.native.model import Network
from harness.native.weights import compare_names, published_name, spare_shapes
from harness.zoo.files import processor_config
from harness.zoo.tensors import tensors
from harness.zoo.variants import config as tiny_config

Config = dict[str, Any]


def _pattern(sliding: int, repeats: int) -> list[str]:
    return (["sliding_attention"] * sliding + ["full_attention"]) * repeats


# Published numbers, by section of config.json; every field that is not a size is that of the tiny checkpoint.
_TEXT: Config = {"vocab_size": 262_144, "vocab_size_per_layer_input": 262_144, "head_dim": 256, "global_head_dim": 512}
_SMALL_TOWER: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 12, "head_dim": 64, "global_head_dim": 64, "position_embedding_size": 10_240,
}  # fmt: skip
_LARGE_TOWER: Config = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 72, "global_head_dim": 72, "position_embedding_size": 10_240,
}  # fmt: skip
_AUDIO: Config = {
    "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "conv_kernel_size": 5,
    "subsampling_conv_channels": [128, 32], "output_proj_dims": 1536,
}  # fmt: skip
PUBLISHED: dict[str, Config] = {
    "tiny-e2b": {
        "text_config": _TEXT | {
            "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "layer_types": _pattern(4, 7),
            "num_attention_heads": 8, "num_key_value_heads": 1, "num_kv_shared_layers": 20,
            "hidden_size_per_layer_input": 256, "sliding_window": 512,
        },
        "vision_config": _SMALL_TOWER,
        "audio_config": _AUDIO,
    },
    "tiny-e4b": {
        "text_config": _TEXT | {
            "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 42, "layer_types": _pattern(5, 7),
            "num_attention_heads": 8, "num_key_value_heads": 2, "num_kv_shared_layers": 18,
            "hidden_size_per_layer_input": 256, "sliding_window": 512,
        },
        "vision_config": _SMALL_TOWER,
        "audio_config": _AUDIO,
    },
    "tiny-26b-a4b": {
        "text_config": _TEXT | {
            "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "layer_types": _pattern(5, 5),
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
            "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704, "sliding_window": 1024,
        },
        "vision_config": _LARGE_TOWER,
    },
    "tiny-31b": {
        "text_config": _TEXT | {
            "hidden_size": 5376, "intermediate_size": 21_504, "num_hidden_layers": 60, "layer_types": _pattern(5, 10),
            "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
            "sliding_window": 1024,
        },
        "vision_config": _LARGE_TOWER,
    },
    "tiny-12b": {
        "text_config": _TEXT | {
            "hidden_size": 3840, "intermediate_size": 15_360, "num_hidden_layers": 48, "layer_types": _pattern(5, 8),
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1,
            "sliding_window": 1024,
        },
        "vision_config": {"mm_embed_dim": 3840, "output_proj_dims": 3840, "mm_posemb_size": 1120},
    },
}  # fmt: skip
COUNTS = {"tiny-e2b": 2011, "tiny-e4b": 2130, "tiny-26b-a4b": 1013, "tiny-31b": 1188, "tiny-12b": 677}
# Read from the published tensor lists; those of the other three were not.
PARAMETERS = {"tiny-e2b": 5_123_178_979, "tiny-31b": 31_273_088_876}


def published(name: str) -> Config:
    """The published config.json: the fields of the tiny one, with the published numbers."""
    config = tiny_config(name)
    for section, numbers in PUBLISHED[name].items():
        assert numbers.keys() <= config[section].keys()
        config[section] |= numbers
    return config


def read(directory: Path, name: str, config: Config) -> ModelConfig:
    """What the native implementation makes of a config.json."""
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "processor_config.json").write_text(json.dumps(processor_config(name)), encoding="utf-8")
    return read_config(directory)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of every tensor that is read, from a network without storage."""
    with torch.device("meta"):
        network = Network(config)
    return {published_name(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_are_those_that_are_published(tmp_path: Path, name: str) -> None:
    """Names, shapes and number of all tensors equal the published ones, those that nobody reads included."""
    config = read(tmp_path, name, published(name))
    ours = expected_shapes(config) | spare_shapes(config.text)
    assert ours == {tensor.name: tensor.shape for tensor in tensors(published(name))}
    assert len(ours) == COUNTS[name]
    assert name not in PARAMETERS or sum(map(math.prod, ours.values())) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_shared_keys_are_left_unread(tmp_path: Path, name: str) -> None:
    """Of the published tensors none is missing or unexpected; three for each layer that shares are unread."""
    config = read(tmp_path, name, published(name))
    report = compare_names(expected_shapes(config), [tensor.name for tensor in tensors(published(name))], config.text)
    assert report.missing == report.unexpected == ()
    assert len(report.unused) == {"tiny-e2b": 3 * 20, "tiny-e4b": 3 * 18}.get(name, 0)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text_config", "num_kv_shared_layers", 18),
        ("text_config", "use_double_wide_mlp", False),
        ("vision_config", "use_clipped_linears", False),
        ("audio_config", "conv_kernel_size", 3),
        ("audio_config", "subsampling_conv_channels", [128, 64]),
    ],
)
def test_another_number_gives_other_tensors(tmp_path: Path, section: str, field: str, value: object) -> None:
    """Negative control: one field of E2B changed, and what is expected is no longer what is published."""
    changed = published("tiny-e2b")
    changed[section][field] = value
    config = read(tmp_path, "tiny-e2b", changed)
    assert expected_shapes(config) != expected_shapes(read(tmp_path, "tiny-e2b", published("tiny-e2b")))


@pytest.mark.parametrize("name", PUBLISHED)
def test_media_are_read_as_published(tmp_path: Path, name: str) -> None:
    """Sound is heard by 12 keys or 640 samples or not at all, and a video is 32 frames of 70 soft tokens."""
    config = read(tmp_path, name, published(name))
    heard = {"tiny-e2b": 12, "tiny-e4b": 12, "tiny-12b": 640}.get(name)
    assert getattr(config.audio, "window", getattr(config.audio, "samples", None)) == heard
    assert (config.video.frames, config.video.max_soft_tokens) == (32, 70)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("feature_extractor", "hop_length", 80),
        ("feature_extractor", "per_bin_mean", [0.0] * 128),
        ("video_processor", "image_mean", [0.5, 0.5, 0.5]),
    ],
)
def test_another_front_end_is_refused(tmp_path: Path, part: str, field: str, value: object) -> None:
    """A front end that no published checkpoint has is an error with the field and what was found."""
    processor = processor_config("tiny-e2b")
    processor[part] = processor[part] | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(published("tiny-e2b")), encoding="utf-8")
    (tmp_path / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"processor_config\.json\.{part}\.{field}: expected .* found"):
        read_config(tmp_path)
