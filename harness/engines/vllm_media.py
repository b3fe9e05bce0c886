"""A request's media as vLLM takes them, and its prompt side's own arithmetic. Layer 2; imports no engine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from harness.engines.base import Array
from harness.engines.inputs import Media
from harness.schema import AudioSpec, ImageSpec, Medium, VideoSpec

VIDEO_BUDGET = 70
"""Soft tokens of a video frame, whatever the budget of images is."""


def multi_modal_data(media: Media) -> dict[str, list[Any]]:
    """The media by name, as `multi_modal_data` has them; names without media are left out."""
    data: dict[str, list[Any]] = {
        "image": list(media.pictures),
        "audio": [(samples, spec.rate_hz) for spec, samples in media.audios],
        "video": [(frames, metadata(spec)) for spec, frames in media.videos],
    }
    return {name: items for name, items in data.items() if items}


def metadata(spec: VideoSpec) -> dict[str, Any]:
    """What vLLM's own video loader says about frames: which they are in the whole video, and its rate if known."""
    indices = list(spec.indices if spec.indices is not None else range(spec.frames))
    known: dict[str, Any] = {
        "total_num_frames": max(spec.frames, *indices) + 1 if spec.indices else spec.frames,
        "frames_indices": indices,
        "do_sample_frames": False,
    }
    return known if spec.fps is None else {**known, "fps": spec.fps}


def prompt(text: str | list[int], media: Media, budget: int, tag: str = "") -> dict[str, Any]:
    """A prompt of text or token ids. Media are known to every cache by `tag`, or else by what is in them."""
    made: dict[str, Any] = {"prompt" if isinstance(text, str) else "prompt_token_ids": text}
    data = multi_modal_data(media)
    if not data:
        return made
    made |= {"multi_modal_data": data, "mm_processor_kwargs": {"max_soft_tokens": budget}}
    if tag:
        made["multi_modal_uuids"] = {name: [f"{tag}-{name}-{k}" for k in range(len(data[name]))] for name in data}
    return made


def counted(media: Media) -> dict[Medium, int]:
    """How many there are of each medium."""
    return {"image": len(media.images), "audio": len(media.audios), "video": len(media.videos)}


class PromptSide:
    """The engine's counting functions; `info` is its processing info of the model."""

    def __init__(self, info: Any, max_model_len: int) -> None:
        """Ask once for what the engine declares before it sees any medium."""
        self.info = info
        self.declared: dict[str, int] = info.get_mm_max_tokens_per_item(max_model_len, {})

    def predicted(self, media: Media, budget: int) -> dict[Medium, list[int]]:
        """Soft tokens of each image, recording and video; what has none is never encoded."""
        return {
            "image": [self._image(spec, budget) for spec, _ in media.images],
            "audio": [self._audio(spec, samples) for spec, samples in media.audios],
            "video": [self._video(frames) for _, frames in media.videos],
        }

    def _image(self, spec: ImageSpec, budget: int) -> int:
        if not hasattr(self.info, "_compute_num_soft_tokens"):
            # The Transformers backend asks transformers' processor, by the engine's options whatever the prompt's are.
            options = self.info.ctx.get_merged_mm_kwargs({})
            size = [(spec.height_px, spec.width_px)]
            counts = self.info.get_hf_processor()._get_num_multimodal_tokens(image_sizes=size, **options)
            return int(counts["num_image_tokens"][0])
        return int(self.info._compute_num_soft_tokens(spec.width_px, spec.height_px, budget))

    def _audio(self, spec: AudioSpec, samples: Array) -> int:
        processor = self.info.get_hf_processor()
        rate_hz = processor.feature_extractor.sampling_rate
        count = len(samples)
        if spec.rate_hz != rate_hz:
            count = self.info.parse_mm_data({"audio": [(samples, spec.rate_hz)]})["audio"].get_audio_length(0)
        if not hasattr(self.info, "_compute_audio_num_tokens"):  # Up to 0.22 it asked the processor of transformers.
            return int(processor._compute_audio_num_tokens(np.zeros(count, np.float32), rate_hz))
        return int(self.info._compute_audio_num_tokens(count, rate_hz, processor.audio_seq_length))

    def _video(self, frames: Array) -> int:
        count, height_px, width_px = frames.shape[:3]
        return int(count * self.info._compute_num_soft_tokens(width_px, height_px, VIDEO_BUDGET))

    def state(self, budget: int) -> Array:
        """A digest of how the tokenizer and the processor for a budget are set, defaults of their classes included."""
        processor = self.info.get_hf_processor(max_soft_tokens=budget)
        tokenizer = processor.tokenizer
        kwargs = getattr(processor, "valid_processor_kwargs", None) or {}
        known = {
            "processor": {name: _plain(getattr(processor, name)) for name in processor.get_attributes()},
            "own": _plain(processor),
            "defaults": getattr(kwargs, "_defaults", {}),
            "tokenizer": [len(tokenizer), tokenizer.special_tokens_map, tokenizer.padding_side],
            "backend": [tokenizer._tokenizer.padding, tokenizer._tokenizer.truncation],
        }
        text = json.dumps(known, sort_keys=True, default=str)
        return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype=np.uint64)


def _plain(component: Any) -> dict[str, Any]:
    """A component's own settings, and those of its class, that are plain values."""
    settings = {**vars(type(component)), **vars(component)}
    return {name: value for name, value in settings.items() if isinstance(value, (bool, int, float, str, list, tuple))}
