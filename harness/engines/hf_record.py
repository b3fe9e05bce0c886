"""What went into and came out of the encoders of a Hugging Face model, item by item. It imports no engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.engines.base import Array, Recording
from harness.engines.inputs import Media, Sample
from harness.schema import Counts


@dataclass(frozen=True)
class Encoders:
    """A batch on its way in and out: what the processor returned and, by medium, the rows of each item.

    A medium whose encoder did not run has no rows: then its items count none. Up to 5.10 the rows of all items of a
    medium are one tensor.
    """

    processor: Any
    inputs: Mapping[str, Any]
    rows: Mapping[str, Sequence[Tensor] | Tensor]
    predict_image: Callable[[Array, int], int]

    def record(self, recording: Recording, samples: Sequence[Sample], ours: int) -> None:
        """Add inputs, features and counts of the media of sample number `ours`."""
        sample, before = samples[ours], [other.media for other in samples[:ours]]
        recording.counts = (
            *self._images(recording, sample, sum(len(media.images) for media in before)),
            *self._audios(recording, sample.media, sum(len(media.audios) for media in before)),
            *self._videos(recording, sample.media, sum(len(media.videos) for media in before)),
        )

    def _images(self, recording: Recording, sample: Sample, first: int) -> list[Counts]:
        counts, budget = [], sample.max_soft_tokens
        positions = self.inputs.get("image_position_ids", ())
        for k, (_, image) in enumerate(sample.media.images):
            valid = _valid(positions[first + k])
            recording.add(f"positions.{k}", positions[first + k][valid])
            recording.add(f"pixels.{k}", self.inputs["pixel_values"][first + k][valid])
            rows = self._rows(recording, "image", first + k, f"mm_features.{k}", positions)
            counts.append(Counts(self.predict_image(image, budget), rows, budget))
        return counts

    def _audios(self, recording: Recording, media: Media, first: int) -> list[Counts]:
        counts = []
        for k, (_, samples) in enumerate(media.audios):
            valid = self.inputs["input_features_mask"][first + k].bool()
            recording.add(f"audio_input.{k}", self.inputs["input_features"][first + k][valid])
            rows = self._rows(recording, "audio", first + k, f"audio_features.{k}")
            predicted = self._predicted_audio(first + k, samples)
            counts.append(Counts(predicted, rows, self.processor.audio_seq_length, "audio"))
        return counts

    def _videos(self, recording: Recording, media: Media, first: int) -> list[Counts]:
        if not media.videos:
            return []
        counts, positions = [], self._by_video("video_position_ids")
        for k, (_, frames) in enumerate(media.videos):
            count, valid = len(positions[first + k]), _valid(positions[first + k])
            recording.add(f"video_positions.{k}", positions[first + k][valid])
            recording.add(f"video_pixels.{k}", self._by_video("pixel_values_videos")[first + k][valid])
            rows = self._rows(recording, "video", first + k, f"video_features.{k}", positions)
            declared = count * self.processor.video_processor.max_soft_tokens
            counts.append(Counts(self._predicted_video(count, frames), rows, declared, "video"))
        return counts

    def _predicted_audio(self, index: int, samples: Array) -> int:
        """By the processor's function; in 5.10 that is broken, and its expansion of the prompt counts."""
        if not hasattr(self.processor, "_compute_audio_num_tokens"):
            return int(self.processor.replace_audio_token(self.inputs, index).count(self.processor.audio_token))
        return int(self._predicted(audio_lengths=[len(samples)]).num_audio_tokens[0])

    def _by_video(self, name: str) -> Sequence[Tensor]:
        """(frames, ...) of each video: since 5.19 all frames are one tensor, before they are stacked by video."""
        if "num_frames_per_video" not in self.inputs:
            return list(self.inputs[name])
        videos: Sequence[Tensor] = self.inputs[name].split(self.inputs["num_frames_per_video"].tolist())
        return videos

    def _predicted_video(self, count: int, frames: Array) -> int:
        """By the processor's function for videos; in a release without one by that for images, frame by frame."""
        if "video_sizes" not in inspect.signature(self.processor._get_num_multimodal_tokens).parameters:
            return count * self.predict_image(frames[0], self.processor.video_processor.max_soft_tokens)
        return int(self._predicted(video_sizes=[(count, *frames.shape[1:3])]).num_video_tokens[0])

    def _predicted(self, **sizes: Any) -> Any:
        """The processor's own counting function. Without a budget it leaves the defaults of its class as they are."""
        return self.processor._get_num_multimodal_tokens(**sizes)

    def _rows(self, recording: Recording, medium: str, index: int, stage: str, positions: Sequence[Tensor] = ()) -> int:
        if medium not in self.rows:
            return 0
        rows = _by_item(self.rows[medium], positions)[index]
        recording.add(stage, rows)
        return len(rows)


def _valid(positions: Tensor) -> Tensor:
    """Which patches are no padding."""
    return (positions >= 0).all(dim=-1)


def _by_item(rows: Sequence[Tensor] | Tensor, positions: Sequence[Tensor]) -> Sequence[Tensor]:
    """The rows of each item. Those that come in one tensor are shared out by the patches that each item has."""
    if not isinstance(rows, Tensor):
        return rows
    patches = torch.stack([_valid(where).sum() for where in positions])
    ends = patches.cumsum(0) * len(rows) // patches.sum()
    return rows.tensor_split(ends[:-1].cpu())
