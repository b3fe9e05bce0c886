"""Published tensor names -> this implementation's names, and loading.

The model files know no published name; this table is the only place where both meet. `#` is a layer number.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from .config import LayerShape, TextConfig

_DECODER_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention_out_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.norm.weight": "pre_feedforward_layernorm.weight",
    "feed_forward.dense.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.dense.up.weight": "mlp.up_proj.weight",
    "feed_forward.dense.down.weight": "mlp.down_proj.weight",
    "feed_forward.dense_out_norm.weight": "post_feedforward_layernorm_1.weight",
    "feed_forward.mixture.router.score.weight": "router.proj.weight",
    "feed_forward.mixture.router.scale": "router.scale",
    "feed_forward.mixture.router.expert_scale": "router.per_expert_scale",
    "feed_forward.mixture.norm.weight": "pre_feedforward_layernorm_2.weight",
    "feed_forward.mixture.gate_up": "experts.gate_up_proj",
    "feed_forward.mixture.down": "experts.down_proj",
    "feed_forward.mixture.out_norm.weight": "post_feedforward_layernorm_2.weight",
    "feed_forward.out_norm.weight": "post_feedforward_layernorm.weight",
    "ple.gate.weight": "per_layer_input_gate.weight",
    "ple.project.weight": "per_layer_projection.weight",
    "ple.norm.weight": "post_per_layer_input_norm.weight",
    "scalar": "layer_scalar",
}
_TOWER_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention_out_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.weight": "pre_feedforward_layernorm.weight",
    "mlp_out_norm.weight": "post_feedforward_layernorm.weight",
}
_TOWER_LINEAR = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_CONFORMER_LAYER = {
    "before.norm.weight": "feed_forward1.pre_layer_norm.weight",
    "before.out_norm.weight": "feed_forward1.post_layer_norm.weight",
    "attention_norm.weight": "norm_pre_attn.weight",
    "attention.distance.weight": "self_attn.relative_k_proj.weight",
    "attention.scale": "self_attn.per_dim_scale",
    "attention_out_norm.weight": "norm_post_attn.weight",
    "convolution.norm.weight": "lconv1d.pre_layer_norm.weight",
    "convolution.kernel": "lconv1d.depthwise_conv1d.weight",
    "convolution.inner_norm.weight": "lconv1d.conv_norm.weight",
    "after.norm.weight": "feed_forward2.pre_layer_norm.weight",
    "after.out_norm.weight": "feed_forward2.post_layer_norm.weight",
    "out_norm.weight": "norm_out.weight",
}
_CONFORMER_LINEAR = {
    "before.up": "feed_forward1.ffw_layer_1",
    "before.down": "feed_forward1.ffw_layer_2",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.post",
    "convolution.start": "lconv1d.linear_start",
    "convolution.end": "lconv1d.linear_end",
    "after.up": "feed_forward2.ffw_layer_1",
    "after.down": "feed_forward2.ffw_layer_2",
}
_LINEAR_PART = {
    "weight": "linear.weight",
    "input_min": "input_min",
    "input_max": "input_max",
    "output_min": "output_min",
    "output_max": "output_max",
}
NAMES = {
    "decoder.embedding": "model.language_model.embed_tokens.weight",
    "decoder.norm.weight": "model.language_model.norm.weight",
    "decoder.token_tables.table": "model.language_model.embed_tokens_per_layer.weight",
    "decoder.token_tables.context.weight": "model.language_model.per_layer_model_projection.weight",
    "decoder.token_tables.context_norm.weight": "model.language_model.per_layer_projection_norm.weight",
    "tower.patch.weight": "model.vision_tower.patch_embedder.input_proj.weight",
    "tower.positions": "model.vision_tower.patch_embedder.position_embedding_table",
    "tower.offset": "model.vision_tower.std_bias",
    "tower.scale": "model.vision_tower.std_scale",
    "tower.project.weight": "model.embed_vision.embedding_projection.weight",
    "unified.patch_norm.weight": "model.vision_embedder.patch_ln1.weight",
    "unified.patch_norm.bias": "model.vision_embedder.patch_ln1.bias",
    "unified.patch.weight": "model.vision_embedder.patch_dense.weight",
    "unified.patch.bias": "model.vision_embedder.patch_dense.bias",
    "unified.embedding_norm.weight": "model.vision_embedder.patch_ln2.weight",
    "unified.embedding_norm.bias": "model.vision_embedder.patch_ln2.bias",
    "unified.positions": "model.vision_embedder.pos_embedding",
    "unified.position_norm.weight": "model.vision_embedder.pos_norm.weight",
    "unified.position_norm.bias": "model.vision_embedder.pos_norm.bias",
    "unified.project.weight": "model.embed_vision.embedding_projection.weight",
    "audio.first.weight": "model.audio_tower.subsample_conv_projection.layer0.conv.weight",
    "audio.first.norm": "model.audio_tower.subsample_conv_projection.layer0.norm.weight",
    "audio.second.weight": "model.audio_tower.subsample_conv_projection.layer1.conv.weight",
    "audio.second.norm": "model.audio_tower.subsample_conv_projection.layer1.norm.weight",
    "audio.input.weight": "model.audio_tower.subsample_conv_projection.input_proj_linear.weight",
    "audio.output.weight": "model.audio_tower.output_proj.weight",
    "audio.output.bias": "model.audio_tower.output_proj.bias",
    "audio.project.weight": "model.embed_audio.embedding_projection.weight",
    **{f"decoder.layers.#.{ours}": f"model.language_model.layers.#.{name}" for ours, name in _DECODER_LAYER.items()},
    **{f"tower.layers.#.{ours}": f"model.vision_tower.encoder.layers.#.{name}" for ours, name in _TOWER_LAYER.items()},
    **{
        f"tower.layers.#.{ours}.{part}": f"model.vision_tower.encoder.layers.#.{name}.{suffix}"
        for ours, name in _TOWER_LINEAR.items()
        for part, suffix in _LINEAR_PART.items()
    },
    **{f"audio.layers.#.{ours}": f"model.audio_tower.layers.#.{name}" for ours, name in _CONFORMER_LAYER.items()},
    **{
        f"audio.layers.#.{ours}.{part}": f"model.audio_tower.layers.#.{name}.{suffix}"
        for ours, name in _CONFORMER_LINEAR.items()
        for part, suffix in _LINEAR_PART.items()
    },
}


@dataclass(frozen=True)
class LoadReport:
    """Published names: `missing` from the files; `unexpected` in them; `unused`, expected there but not read.

    Unused are the key and value weights that the published small models carry in layers which take both from an
    earlier layer.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: tuple[str, ...]


def published_name(name: str) -> str:
    """The name in the files of one of our tensors."""
    number = re.search(r"(?<=\.layers\.)\d+(?=\.)", name)
    if number is None:
        return NAMES[name]
    return NAMES[name.replace(f".{number[0]}.", ".#.", 1)].replace("#", number[0], 1)


def spare_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the key and value weights that no layer reads."""
    return {
        f"model.language_model.layers.{layer.index}.self_attn.{name}": shape
        for layer in config.layers
        if layer.donor is not None
        for name, shape in _own_keys(layer, config.hidden).items()
    }


def _own_keys(layer: LayerShape, hidden: int) -> dict[str, tuple[int, ...]]:
    linear = (layer.kv_heads * layer.head_dim, hidden)
    values = {} if layer.value_is_key else {"v_proj.weight": linear}
    return {"k_proj.weight": linear, "k_norm.weight": (layer.head_dim,)} | values


def compare_names(wanted: Iterable[str], found: Iterable[str], config: TextConfig) -> LoadReport:
    """Sort published names into what is missing, what is unexpected and what is known but not used."""
    wanted, found = set(wanted), set(found)
    unused = (found - wanted) & spare_shapes(config).keys()
    return LoadReport(
        missing=tuple(sorted(wanted - found)),
        unexpected=tuple(sorted(found - wanted - unused)),
        unused=tuple(sorted(unused)),
    )


def tensor_files(directory: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds which tensor."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: directory / file for name, file in weight_map.items()}
    if not single.is_file():
        raise FileNotFoundError(f"{directory}: holds neither {index.name} nor {single.name}; is it a checkpoint?")
    with safe_open(single, framework="pt") as shard:
        return dict.fromkeys(shard.keys(), single)


def load(directory: Path, network: nn.Module, config: TextConfig, dtype: torch.dtype, device: str) -> LoadReport:
    """Give `network`, built without storage, its weights. Tensors of `dtype` stay in the mapped file."""
    files = tensor_files(directory)
    wanted = {name: published_name(name) for name in network.state_dict()}
    report = compare_names(wanted.values(), files, config)
    if report.missing:
        raise ValueError(
            f"{directory}: {len(report.missing)} tensors are missing, the first is {report.missing[0]}; "
            "the download is incomplete or config.json belongs to another variant"
        )
    state = network.state_dict()
    shapes = {published: state[name].shape for name, published in wanted.items()}
    shards = {file: safe_open(file, framework="pt") for file in {files[name] for name in shapes}}
    tensors = {name: _read(shards[files[name]], files[name], shapes[name], name).to(device, dtype) for name in shapes}
    network.load_state_dict({name: tensors[published] for name, published in wanted.items()}, assign=True)
    network.requires_grad_(requires_grad=False)
    return report


def _read(shard: Any, file: Path, shape: torch.Size, name: str) -> Tensor:
    tensor: Tensor = shard.get_tensor(name)
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: {tuple(tensor.shape)} in {file.name}, config.json says {tuple(shape)}; "
            "the files belong to different variants"
        )
    return tensor
