"""What config.json and processor_config.json say, as frozen dataclasses with every layer's shape worked out.

The published layout is read, and what transformers writes since 5.15, which differs in a few fields. A field that is
absent, of the wrong type, or set to something that no published Gemma 4 has is an error that names the field: a guess
here would show up later as a wrong logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config_media import AudioTowerConfig, VideoConfig, WaveformConfig, read_audio, read_pixel_scale, read_video
from .fields import Section, read_section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; `donor` is the layer whose keys and values it reads, None if it makes its own."""

    index: int
    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    value_is_key: bool
    donor: int | None


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one layer kind: only the first `rotated` fraction of the features turns."""

    theta: float
    rotated: float


@dataclass(frozen=True)
class Experts:
    """The mixture of experts: how many there are, how many a token goes to, how wide each is."""

    count: int
    chosen: int
    width: int


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `ple_width` is 0 without per-layer embeddings; `experts` is None in a dense model."""

    hidden: int
    vocabulary: int
    ple_vocabulary: int
    ple_width: int
    window: int
    eps: float
    softcap: float
    vision_blocks: bool
    layers: tuple[LayerShape, ...]
    rope: Mapping[str, Rope]
    experts: Experts | None


@dataclass(frozen=True)
class TowerConfig:
    """The vision tower of E2B, E4B, 26B-A4B and 31B."""

    hidden: int
    mlp_width: int
    depth: int
    heads: int
    head_dim: int
    patch_px: int
    pool: int
    position_rows: int
    theta: float
    eps: float
    clipped: bool
    standardize: bool


@dataclass(frozen=True)
class UnifiedConfig:
    """The vision embedder of the 12B, which has no tower."""

    width: int
    patch_px: int
    position_rows: int
    eps: float


@dataclass(frozen=True)
class TokenIds:
    """Ids of the tokens that this implementation treats by name."""

    pad: int
    image_begin: int
    image: int
    image_end: int
    video: int
    audio_begin: int
    audio: int
    audio_end: int


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the files of a checkpoint say about its shape."""

    text: TextConfig
    vision: TowerConfig | UnifiedConfig
    audio: AudioTowerConfig | WaveformConfig | None
    video: VideoConfig
    tokens: TokenIds
    pixel_scale: float


def read_config(directory: Path) -> ModelConfig:
    """Read config.json and processor_config.json of a checkpoint."""
    top = read_section(directory / "config.json")
    top.only("model_type", "gemma4", "gemma4_unified")
    top.only("tie_word_embeddings", True)
    unified = top.values["model_type"] == "gemma4_unified"
    vision = top.section("vision_config")
    processor = read_section(directory / "processor_config.json")
    return ModelConfig(
        text=_text(top.section("text_config")),
        vision=_unified(vision) if unified else _tower(vision),
        audio=read_audio(top, processor),
        video=read_video(processor),
        tokens=_tokens(top),
        pixel_scale=read_pixel_scale(processor),
    )


def _tokens(top: Section) -> TokenIds:
    return TokenIds(
        pad=top.section("text_config").integer("pad_token_id"),
        image_begin=top.integer("boi_token_id"),
        image=top.integer("image_token_id"),
        image_end=top.integer("eoi_token_id"),
        video=top.integer("video_token_id"),
        audio_begin=top.integer("boa_token_id"),
        audio=top.integer("audio_token_id"),
        # Published under two names; the 12B has this one alone.
        audio_end=top.integer("eoa_token_index"),
    )


def _text(text: Section) -> TextConfig:
    text.only("hidden_activation", "gelu_pytorch_tanh")
    text.only("attention_bias", False)
    text.only("use_bidirectional_attention", None, "vision")
    rope = text.section("rope_parameters")
    return TextConfig(
        hidden=text.integer("hidden_size"),
        vocabulary=text.integer("vocab_size"),
        ple_vocabulary=text.integer("vocab_size_per_layer_input"),
        ple_width=text.integer("hidden_size_per_layer_input"),
        window=text.integer("sliding_window"),
        eps=text.number("rms_norm_eps"),
        softcap=text.number("final_logit_softcapping"),
        vision_blocks=text.values.get("use_bidirectional_attention") == "vision",
        layers=_layers(text),
        rope={
            SLIDING: _rope(rope.section(SLIDING), "default"),
            FULL: _rope(rope.section(FULL), "proportional"),
        },
        experts=_experts(text) if text.flag("enable_moe_block") else None,
    )


def _layers(text: Section) -> tuple[LayerShape, ...]:
    kinds = text.values.get("layer_types")
    depth = text.integer("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != depth or not set(kinds) <= {SLIDING, FULL} or kinds[-1] != FULL:
        raise text.fail("layer_types", f"{depth} of {SLIDING!r} or {FULL!r}, the last one {FULL!r}")
    first_shared = depth - text.integer("num_kv_shared_layers")
    donors = {kind: index for index, kind in enumerate(kinds[:first_shared])}
    if not set(kinds[first_shared:]) <= set(donors):
        raise text.fail("num_kv_shared_layers", "a layer of the same type before the first shared one")
    return tuple(
        _layer(text, index, kind, donors[kind] if index >= first_shared else None) for index, kind in enumerate(kinds)
    )


def _layer(text: Section, index: int, kind: str, donor: int | None) -> LayerShape:
    full = kind == FULL
    value_is_key = full and text.flag("attention_k_eq_v")
    doubled = donor is not None and text.flag("use_double_wide_mlp")
    if "per_layer_config" in text.values:
        own = _overridden(text, index)
        head_dim, kv_heads = own.integer("head_dim"), own.integer("num_key_value_heads")
    else:
        global_kv_heads = text.optional_integer("num_global_key_value_heads") if value_is_key else None
        head_dim = text.integer("global_head_dim" if full else "head_dim")
        kv_heads = global_kv_heads or text.integer("num_key_value_heads")
    return LayerShape(
        index=index,
        kind=kind,
        heads=text.integer("num_attention_heads"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=text.integer("intermediate_size") * (2 if doubled else 1),
        value_is_key=value_is_key,
        donor=donor,
    )


def _overridden(text: Section, index: int) -> Section:
    """The text section with what `per_layer_config` says of one layer, where transformers puts all that differs."""
    sections = text.section("per_layer_config")
    own = next((sections.section(key) for key in sections.values if key.isdigit() and int(key) == index), None)
    if own is None:
        return text
    if unknown := own.values.keys() - {"head_dim", "num_key_value_heads"}:
        raise own.fail(min(unknown), "head_dim and num_key_value_heads alone")
    return Section(own.path, {**text.values, **own.values})


def _rope(rope: Section, kind: str) -> Rope:
    rope.only("rope_type", kind)
    return Rope(rope.number("rope_theta"), rope.number("partial_rotary_factor") if kind == "proportional" else 1.0)


def _experts(text: Section) -> Experts:
    return Experts(text.integer("num_experts"), text.integer("top_k_experts"), text.integer("moe_intermediate_size"))


def _tower(vision: Section) -> TowerConfig:
    vision.only("hidden_activation", "gelu_pytorch_tanh")
    vision.only("attention_bias", False)
    vision.only("num_key_value_heads", vision.integer("num_attention_heads"))
    vision.only("pooling_kernel_size", 3)
    vision.only("patch_size", 16)
    return TowerConfig(
        hidden=vision.integer("hidden_size"),
        mlp_width=vision.integer("intermediate_size"),
        depth=vision.integer("num_hidden_layers"),
        heads=vision.integer("num_attention_heads"),
        head_dim=vision.integer("head_dim"),
        patch_px=vision.integer("patch_size"),
        pool=vision.integer("pooling_kernel_size"),
        position_rows=vision.integer("position_embedding_size"),
        theta=vision.section("rope_parameters").number("rope_theta"),
        eps=vision.number("rms_norm_eps"),
        clipped=vision.flag("use_clipped_linears"),
        standardize=vision.flag("standardize"),
    )


def _unified(vision: Section) -> UnifiedConfig:
    patch_px = vision.integer("patch_size") * vision.integer("pooling_kernel_size")
    if "model_patch_size" in vision.values:  # Not written by transformers, which works it out.
        vision.only("model_patch_size", patch_px)
    if patch_px != 48:
        raise vision.fail("patch_size", "16, with a pooling_kernel_size of 3")
    return UnifiedConfig(
        width=vision.integer("mm_embed_dim"),
        patch_px=patch_px,
        position_rows=vision.integer("mm_posemb_size"),
        eps=vision.number("rms_norm_eps"),
    )
