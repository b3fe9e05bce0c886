"""Transformers and the native implementation side by side: both loaded, given one sample, and their distance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.gemma4_unified import modeling_gemma4_unified as unified

from harness.native import Gemma4, Prepared, Recorder, Video
from harness.zoo import ensure

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
VARIANTS = ("tiny-e2b", "tiny-e4b", "tiny-26b-a4b", "tiny-31b", "tiny-12b")
TOWERS = ("tiny-e2b", "tiny-e4b")  # those that hear through a tower of their own
HEARING = (*TOWERS, "tiny-12b")
# A layer of a tiny model takes microseconds: two threads only wait for one another, and where other processes hold
# the cores too they take 20 times as long.
torch.set_num_threads(1)

HF_MODEL: Any = AutoModelForImageTextToText
HF_PROCESSOR: Any = AutoProcessor


@dataclass(frozen=True)
class Sample:
    """One prompt and its media, as both implementations are given them."""

    prompt: str
    images: tuple[np.ndarray, ...] = ()
    audios: tuple[np.ndarray, ...] = ()
    videos: tuple[Video, ...] = ()
    max_soft_tokens: int = 70


@dataclass(frozen=True)
class Run:
    """What one implementation made of a sample: final states (T, H), logits (T, V), soft rows of all media (S, H)."""

    hidden: Tensor
    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Rivals:
    """A checkpoint in both implementations, float32."""

    name: str
    ours: Gemma4
    theirs: Any
    processor: Any


def load_native(name: str, dtype: torch.dtype = torch.float32) -> Gemma4:
    """A tiny checkpoint in the native implementation."""
    return Gemma4.load(ensure(name, ZOO), dtype=dtype)


@lru_cache
def load_processor(name: str) -> Any:
    """The reference's processor."""
    return HF_PROCESSOR.from_pretrained(ensure(name, ZOO))


def load_hf(name: str, attention: str = "sdpa") -> Any:
    """The reference's model. Its audio is right with sdpa only, as test_native_audio.py shows."""
    return HF_MODEL.from_pretrained(ensure(name, ZOO), dtype=torch.float32, attn_implementation=attention).eval()


@lru_cache(maxsize=1)
def load_rivals(name: str) -> Rivals:
    """Both, float32; for tests, which run one model after another."""
    return Rivals(name, load_native(name), load_hf(name), load_processor(name))


def prepare(model: Gemma4, sample: Sample) -> Prepared:
    """The native input of a sample."""
    return model.prepare(
        sample.prompt, sample.images, sample.audios, sample.videos, max_soft_tokens=sample.max_soft_tokens
    )


def run_native(model: Gemma4, prepared: Prepared) -> Run:
    """What the native implementation makes of it."""
    tap = Recorder()
    hidden = model.forward(prepared, tap=tap)
    counts = {"mm_features": prepared.images, "video_features": prepared.videos, "audio_features": prepared.audios}
    rows = [tap.tensors[f"{stage}.{number}"] for stage, items in counts.items() for number in range(len(items))]
    return Run(hidden, model.logits(hidden), torch.cat([hidden[:0], *rows]))


def metadata(video: Video) -> dict[str, Any]:
    """What the reference is told about a video whose frames are chosen already."""
    assert video.indices is not None
    return {"total_num_frames": max(video.indices) + 1, "fps": video.fps, "frames_indices": list(video.indices)}


def hf_inputs(processor: Any, sample: Sample, **more: Any) -> dict[str, Any]:
    """The reference's input of a sample, as shipped; `more` are arguments for its processor."""
    given: dict[str, Any] = {}
    if sample.images:
        given |= {"images": [Image.fromarray(image) for image in sample.images]}
        given |= {"max_soft_tokens": sample.max_soft_tokens}
    if sample.audios:
        given |= {"audio": list(sample.audios)}
    if sample.videos:
        # It reads frames of three rows as channels first unless told; told so, it would read images wrongly.
        given |= {} if sample.images else {"input_data_format": "channels_last"}
        given |= {"videos": [np.stack(video.frames) for video in sample.videos]}
        given |= {"video_metadata": [metadata(video) for video in sample.videos], "do_sample_frames": False}
    inputs = dict(processor(text=sample.prompt, return_tensors="pt", **(given | more)))
    inputs.pop("num_soft_tokens_per_image", None)
    return inputs


@contextmanager
def exact_mel(processor: Any) -> Iterator[None]:
    """The reference's own log-mel code, given wave and window in float64 and so run in float64."""
    extractor = processor.feature_extractor
    if not hasattr(extractor, "_extract_spectrogram"):
        yield
        return
    shipped = extractor._extract_spectrogram
    with (
        patch.object(extractor, "_extract_spectrogram", lambda wave, mask: shipped(wave.astype(np.float64), mask)),
        patch.object(extractor, "window", np.hanning(321)[:-1]),
    ):
        yield


@torch.no_grad()
def hf_features(theirs: Any, inputs: dict[str, Any]) -> Tensor:
    """The reference's rows of all images, then videos, then recordings, without those of padding."""
    rows: list[Tensor] = []
    if "pixel_values" in inputs:
        given = (inputs["pixel_values"], inputs["image_position_ids"])
        rows += theirs.model.get_image_features(*given).pooler_output
    if "pixel_values_videos" in inputs:
        frames = (inputs["pixel_values_videos"], inputs["video_position_ids"], inputs["num_frames_per_video"])
        rows += theirs.model.get_video_features(*frames).pooler_output
    if "input_features" in inputs:
        output = theirs.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
        rows.append(output.pooler_output[output.attention_mask])
    return torch.cat(rows) if rows else torch.empty(0, theirs.config.get_text_config().hidden_size)


def intended_masks(rivals: Rivals, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with the masks of a helper that the reference has for the 12B but does not use."""
    masks = unified.create_masks_for_vision_model(
        config=rivals.theirs.config.get_text_config(),
        inputs_embeds=rivals.theirs.get_input_embeddings()(inputs["input_ids"]),
        attention_mask=inputs["attention_mask"],
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=unified.get_block_sequence_ids_for_mask(inputs["mm_token_type_ids"], torch.device("cpu")),
    )
    return {**inputs, "attention_mask": masks}


@contextmanager
def told_frames(theirs: Any, inputs: dict[str, Any]) -> Iterator[None]:
    """The reference's forward, which forgets `num_frames_per_video` on its way, reminded of it."""
    get, frames = theirs.model.get_video_features, inputs.get("num_frames_per_video")
    with patch.object(
        theirs.model, "get_video_features", lambda *args, **kwargs: get(*args, num_frames_per_video=frames, **kwargs)
    ):
        yield


@torch.no_grad()
def hf_logits(rivals: Rivals, inputs: dict[str, Any]) -> Tensor:
    """Reference logits (T, V), by its forward as shipped."""
    logits: Tensor = rivals.theirs(**inputs).logits[0]
    return logits


def run_hf(rivals: Rivals, inputs: dict[str, Any]) -> Run:
    """What the reference makes of it on the paths of it that work: the 12B's intended masks, video told its frames."""
    seen: list[Tensor] = []
    hook = rivals.theirs.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    features = hf_features(rivals.theirs, inputs)
    masked = intended_masks(rivals, inputs) if rivals.name == "tiny-12b" else inputs
    with told_frames(rivals.theirs, inputs):
        logits = hf_logits(rivals, masked)
    hook.remove()
    return Run(seen[0], logits, features)


def kl_nats(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL(reference || candidate) in nats per position, summed in float64: 2 of (T, V) -> (T,)."""
    ours, theirs = reference.double().log_softmax(-1), candidate.double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """Norm of the difference over the norm of the reference; 0 where both are zero or empty, as rows of silence are."""
    difference = (reference.double() - candidate.double()).norm()
    return float(difference / reference.double().norm().clamp(min=1e-30))
