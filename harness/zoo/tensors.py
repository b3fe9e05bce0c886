"""Names and shapes of every tensor of a published checkpoint, from its `config.json` alone.

Shape letters: V vocabulary, H text hidden, I text intermediate, L layers, P per-layer input width, E experts, M expert
intermediate, D head size of one layer; Hv, Iv vision; Ha audio. Weights of linear layers are (out, in). Names follow
the tensor lists of the published E2B and 31B files, read whole; with published sizes these tables give their tensor and
parameter counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

Config = dict[str, Any]

MEL_BINS_AFTER_TWO_STRIDES = 128 // 4
CLIP_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class Tensor(NamedTuple):
    """One entry of the safetensors file; `shape` is empty for a scalar."""

    name: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of values, 1 for a scalar."""
        return math.prod(self.shape)


def tensors(config: Config) -> list[Tensor]:
    """Every tensor of the checkpoint that `config` describes, in file order (sorted by name)."""
    text, vision, audio = config["text_config"], config["vision_config"], config["audio_config"]
    unified = config["model_type"] == "gemma4_unified"
    parts = [_text(text), _unified_vision(vision) if unified else _vision_tower(vision)]
    if audio is not None and not unified:
        parts.append(_audio_tower(audio))
    found = [Tensor(f"model.{tensor.name}", tensor.shape) for part in parts for tensor in part]
    return sorted(found + list(_projectors(text, vision, audio)))


def _text(text: Config) -> Iterator[Tensor]:
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    yield Tensor("language_model.embed_tokens.weight", (text["vocab_size"], hidden))
    yield Tensor("language_model.norm.weight", (hidden,))
    if width := text["hidden_size_per_layer_input"]:
        yield Tensor(
            "language_model.embed_tokens_per_layer.weight", (text["vocab_size_per_layer_input"], layers * width)
        )
        yield Tensor("language_model.per_layer_model_projection.weight", (layers * width, hidden))
        yield Tensor("language_model.per_layer_projection_norm.weight", (width,))
    for index in range(layers):
        for tensor in _text_layer(text, index):
            yield Tensor(f"language_model.layers.{index}.{tensor.name}", tensor.shape)


def _text_layer(text: Config, index: int) -> Iterator[Tensor]:
    hidden = text["hidden_size"]
    yield from _sandwich_norms(hidden)
    yield Tensor("layer_scalar", (1,))
    yield from _text_attention(text, full=text["layer_types"][index] == "full_attention")
    yield from _gated_mlp(hidden, text["intermediate_size"] * _mlp_widening(text, index), ".weight")
    if text["enable_moe_block"]:
        yield from _experts(text)
    if width := text["hidden_size_per_layer_input"]:
        yield Tensor("per_layer_input_gate.weight", (width, hidden))
        yield Tensor("per_layer_projection.weight", (hidden, width))
        yield Tensor("post_per_layer_input_norm.weight", (hidden,))


def _mlp_widening(text: Config, index: int) -> int:
    shared = index >= text["num_hidden_layers"] - text["num_kv_shared_layers"]
    return 2 if text["use_double_wide_mlp"] and shared else 1


def _text_attention(text: Config, *, full: bool) -> Iterator[Tensor]:
    # Layers that reuse an earlier layer's keys and values carry their own all the same: published files have them in
    # every layer.
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text["global_head_dim"] if full else text["head_dim"]
    keys_are_values = full and text["attention_k_eq_v"]
    kv_heads = text["num_global_key_value_heads"] if keys_are_values else text["num_key_value_heads"]
    yield Tensor("self_attn.q_proj.weight", (heads * head_dim, hidden))
    yield Tensor("self_attn.k_proj.weight", (kv_heads * head_dim, hidden))
    if not keys_are_values:
        yield Tensor("self_attn.v_proj.weight", (kv_heads * head_dim, hidden))
    yield Tensor("self_attn.o_proj.weight", (hidden, heads * head_dim))
    yield Tensor("self_attn.q_norm.weight", (head_dim,))
    yield Tensor("self_attn.k_norm.weight", (head_dim,))


def _experts(text: Config) -> Iterator[Tensor]:
    hidden, experts, width = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    yield Tensor("router.proj.weight", (experts, hidden))
    yield Tensor("router.scale", (hidden,))
    yield Tensor("router.per_expert_scale", (experts,))
    yield Tensor("experts.gate_up_proj", (experts, 2 * width, hidden))
    yield Tensor("experts.down_proj", (experts, hidden, width))
    for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        yield Tensor(f"{norm}.weight", (hidden,))


def _sandwich_norms(hidden: int) -> Iterator[Tensor]:
    for norm in (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ):
        yield Tensor(f"{norm}.weight", (hidden,))


def _gated_mlp(hidden: int, intermediate: int, suffix: str) -> Iterator[Tensor]:
    yield Tensor(f"mlp.gate_proj{suffix}", (intermediate, hidden))
    yield Tensor(f"mlp.up_proj{suffix}", (intermediate, hidden))
    yield Tensor(f"mlp.down_proj{suffix}", (hidden, intermediate))


def _with_clip_bounds(linears: Iterator[Tensor], *, clipped: bool) -> Iterator[Tensor]:
    """The inner weight is called `X.linear.weight` with and without clipping; only the four scalars depend on it."""
    for linear in linears:
        yield linear
        if clipped and linear.name.endswith(".linear.weight"):
            stem = linear.name.removesuffix(".linear.weight")
            yield from (Tensor(f"{stem}.{bound}", ()) for bound in CLIP_BOUNDS)


def _vision_tower(vision: Config) -> Iterator[Tensor]:
    hidden, patch_values = vision["hidden_size"], 3 * vision["patch_size"] ** 2
    yield Tensor("vision_tower.patch_embedder.input_proj.weight", (hidden, patch_values))
    yield Tensor("vision_tower.patch_embedder.position_embedding_table", (2, vision["position_embedding_size"], hidden))
    if vision["standardize"]:
        yield Tensor("vision_tower.std_bias", (hidden,))
        yield Tensor("vision_tower.std_scale", (hidden,))
    for index in range(vision["num_hidden_layers"]):
        for tensor in _with_clip_bounds(_vision_layer(vision), clipped=vision["use_clipped_linears"]):
            yield Tensor(f"vision_tower.encoder.layers.{index}.{tensor.name}", tensor.shape)


def _vision_layer(vision: Config) -> Iterator[Tensor]:
    hidden, head_dim = vision["hidden_size"], vision["head_dim"]
    queries, keys = vision["num_attention_heads"] * head_dim, vision["num_key_value_heads"] * head_dim
    yield from _sandwich_norms(hidden)
    for name, out in (("q", queries), ("k", keys), ("v", keys)):
        yield Tensor(f"self_attn.{name}_proj.linear.weight", (out, hidden))
    yield Tensor("self_attn.o_proj.linear.weight", (hidden, queries))
    yield Tensor("self_attn.q_norm.weight", (head_dim,))
    yield Tensor("self_attn.k_norm.weight", (head_dim,))
    yield from _gated_mlp(hidden, vision["intermediate_size"], ".linear.weight")


def _audio_tower(audio: Config) -> Iterator[Tensor]:
    hidden, (first, second) = audio["hidden_size"], audio["subsampling_conv_channels"]
    yield Tensor("audio_tower.subsample_conv_projection.layer0.conv.weight", (first, 1, 3, 3))
    yield Tensor("audio_tower.subsample_conv_projection.layer0.norm.weight", (first,))
    yield Tensor("audio_tower.subsample_conv_projection.layer1.conv.weight", (second, first, 3, 3))
    yield Tensor("audio_tower.subsample_conv_projection.layer1.norm.weight", (second,))
    subsampled = second * MEL_BINS_AFTER_TWO_STRIDES
    yield Tensor("audio_tower.subsample_conv_projection.input_proj_linear.weight", (hidden, subsampled))
    yield Tensor("audio_tower.output_proj.weight", (audio["output_proj_dims"], hidden))
    yield Tensor("audio_tower.output_proj.bias", (audio["output_proj_dims"],))
    for index in range(audio["num_hidden_layers"]):
        for tensor in _with_clip_bounds(_conformer_layer(audio), clipped=audio["use_clipped_linears"]):
            yield Tensor(f"audio_tower.layers.{index}.{tensor.name}", tensor.shape)


def _conformer_layer(audio: Config) -> Iterator[Tensor]:
    hidden = audio["hidden_size"]
    for block in ("feed_forward1", "feed_forward2"):
        yield Tensor(f"{block}.pre_layer_norm.weight", (hidden,))
        yield Tensor(f"{block}.post_layer_norm.weight", (hidden,))
        yield Tensor(f"{block}.ffw_layer_1.linear.weight", (4 * hidden, hidden))
        yield Tensor(f"{block}.ffw_layer_2.linear.weight", (hidden, 4 * hidden))
    for part in ("q_proj", "k_proj", "v_proj", "post"):
        yield Tensor(f"self_attn.{part}.linear.weight", (hidden, hidden))
    yield Tensor("self_attn.relative_k_proj.weight", (hidden, hidden))
    yield Tensor("self_attn.per_dim_scale", (hidden // audio["num_attention_heads"],))
    yield Tensor("lconv1d.linear_start.linear.weight", (2 * hidden, hidden))
    yield Tensor("lconv1d.linear_end.linear.weight", (hidden, hidden))
    yield Tensor("lconv1d.depthwise_conv1d.weight", (hidden, 1, audio["conv_kernel_size"]))
    for norm in ("lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out"):
        yield Tensor(f"{norm}.weight", (hidden,))


def _unified_vision(vision: Config) -> Iterator[Tensor]:
    width, patch_values = vision["mm_embed_dim"], 3 * vision["model_patch_size"] ** 2
    for norm, size in (("patch_ln1", patch_values), ("patch_ln2", width), ("pos_norm", width)):
        yield Tensor(f"vision_embedder.{norm}.weight", (size,))
        yield Tensor(f"vision_embedder.{norm}.bias", (size,))
    yield Tensor("vision_embedder.patch_dense.weight", (width, patch_values))
    yield Tensor("vision_embedder.patch_dense.bias", (width,))
    yield Tensor("vision_embedder.pos_embedding", (vision["mm_posemb_size"], 2, width))


def _projectors(text: Config, vision: Config, audio: Config | None) -> Iterator[Tensor]:
    from_vision = vision["output_proj_dims"] if "output_proj_dims" in vision else vision["hidden_size"]
    yield Tensor("model.embed_vision.embedding_projection.weight", (text["hidden_size"], from_vision))
    if audio is not None:
        yield Tensor("model.embed_audio.embedding_projection.weight", (text["hidden_size"], audio["output_proj_dims"]))
