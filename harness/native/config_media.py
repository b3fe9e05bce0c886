"""What the files of a checkpoint say about sound and video, as frozen dataclasses.

The audio front end is fixed: every published file has the same numbers, so other numbers are refused rather than
followed. What differs between checkpoints is the width and the depth of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .fields import Section

_MEL_FRONT_END = {
    "feature_size": 128,
    "sampling_rate": 16000,
    "frame_length": 320,
    "hop_length": 160,
    "fft_length": 512,
    "fft_overdrive": False,
    "min_frequency": 0.0,
    "max_frequency": 8000.0,
    "mel_floor": 0.001,
    "dither": 0.0,
    "input_scale_factor": 1.0,
    "preemphasis": 0.0,
    "per_bin_mean": None,
    "per_bin_stddev": None,
}


@dataclass(frozen=True)
class AudioTowerConfig:
    """The audio tower of E2B and E4B. `window` counts keys, the query's own included; `bound` clamps the stream."""

    hidden: int
    depth: int
    heads: int
    window: int
    softcap: float
    kernel: int
    channels: tuple[int, int]
    residual: float
    bound: float
    width: int
    eps: float
    clipped: bool


@dataclass(frozen=True)
class WaveformConfig:
    """The audio embedder of the 12B, which has no tower: `samples` of the wave make one soft token."""

    samples: int
    eps: float


@dataclass(frozen=True)
class VideoConfig:
    """How many frames are taken from a video, and the budget of soft tokens of each."""

    frames: int
    max_soft_tokens: int


def read_audio(top: Section, processor: Section) -> AudioTowerConfig | WaveformConfig | None:
    """The audio part of a checkpoint, None where config.json has null for it."""
    if top.values.get("audio_config") is None:
        return None
    audio, front_end = top.section("audio_config"), processor.section("feature_extractor")
    front_end.only("sampling_rate", 16000)
    if top.values["model_type"] == "gemma4_unified":
        return _waveform(audio, front_end)
    for name, value in _MEL_FRONT_END.items():
        front_end.only(name, value)
    return _audio_tower(audio)


def read_video(processor: Section) -> VideoConfig:
    """Frames and budget of a video; its frames are scaled like images, so anything else is refused."""
    video = processor.section("video_processor")
    for name in ("do_resize", "do_rescale"):
        video.only(name, True)
    video.only("image_mean", [0, 0, 0])
    video.only("image_std", [1, 1, 1])
    video.only("resample", 3)
    return VideoConfig(video.integer("num_frames"), video.integer("max_soft_tokens"))


def read_pixel_scale(processor: Section) -> float:
    """What a byte of an image is multiplied by."""
    image = processor.section("image_processor")
    for name in ("do_resize", "do_rescale"):
        image.only(name, True)
    image.only("do_normalize", False)
    image.only("resample", 3)
    return image.number("rescale_factor")


def _waveform(audio: Section, front_end: Section) -> WaveformConfig:
    samples = audio.integer("audio_embed_dim")
    front_end.only("audio_samples_per_token", samples)
    if "audio_samples_per_token" in audio.values:  # Not written by transformers, which has one name for both.
        audio.only("audio_samples_per_token", samples)
    return WaveformConfig(samples, audio.number("rms_norm_eps"))


def _audio_tower(audio: Section) -> AudioTowerConfig:
    audio.only("hidden_act", "silu")
    audio.only("attention_context_right", 0)
    channels = audio.values.get("subsampling_conv_channels")
    if not isinstance(channels, list) or len(channels) != 2 or not all(type(number) is int for number in channels):
        raise audio.fail("subsampling_conv_channels", "two integers")
    return AudioTowerConfig(
        hidden=audio.integer("hidden_size"),
        depth=audio.integer("num_hidden_layers"),
        heads=audio.integer("num_attention_heads"),
        # Named 13 in the files. Hugging Face subtracts 1 and then asks for a distance *below* 12, so a query sees 12
        # keys, distances 0 ... 11. The JAX reference sees distance 12 as well. The published weights are run with 12.
        window=audio.integer("attention_context_left") - 1,
        softcap=audio.number("attention_logit_cap"),
        kernel=audio.integer("conv_kernel_size"),
        channels=(channels[0], channels[1]),
        residual=audio.number("residual_weight"),
        bound=audio.number("gradient_clipping"),
        width=audio.integer("output_proj_dims"),
        eps=audio.number("rms_norm_eps"),
        clipped=audio.flag("use_clipped_linears"),
    )
