"""What went into and came out of the encoders of a Hugging Face model, item by item. It imports no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.engines.base import Array, Recording
from harness.engines.inputs import Media, Sample
from harness.schema import Counts


@dataclass(frozen=True)
class Encoders:
    """A batch on its way in and out: what the processor returned and, by medium, the rows of each item.

    A medium whose encoder did not run has no rows: then its items count none.
    """

    processor: Any
    inputs: Mapping[str, Any]
    rows: Mapping[str, Sequence[Tensor]]
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
        for k, (_, image) in enumerate(sample.media.images):
            positions = self.inputs["image_position_ids"][first + k]
            valid = (positions >= 0).all(dim=-1)
            recording.add(f"positions.{k}", positions[valid])
            recording.add(f"pixels.{k}", self.inputs["pixel_values"][first + k][valid])
            rows = self._rows(recording, "image", first + k, f"mm_features.{k}")
            counts.append(Counts(self.predict_image(image, budget), rows, budget))
        return counts

    def _audios(self, recording: Recording, media: Media, first: int) -> list[Counts]:
        counts = []
        for k, (_, samples) in enumerate(media.audios):
            valid = self.inputs["input_features_mask"][first + k].bool()
            recording.add(f"audio_input.{k}", self.inputs["input_features"][first + k][valid])
            rows = self._rows(recording, "audio", first + k, f"audio_features.{k}")
            predicted = self._predicted(audio_lengths=[len(samples)]).num_audio_tokens[0]
            counts.append(Counts(predicted, rows, self.processor.audio_seq_length, "audio"))
        return counts

    def _videos(self, recording: Recording, media: Media, first: int) -> list[Counts]:
        counts = []
        for k, (_, frames) in enumerate(media.videos):
            shown = self.inputs["num_frames_per_video"].tolist()
            start, count = sum(shown[: first + k]), shown[first + k]
            positions = self.inputs["video_position_ids"][start : start + count]
            valid = (positions >= 0).all(dim=-1)
            recording.add(f"video_positions.{k}", positions[valid])
            recording.add(f"video_pixels.{k}", self.inputs["pixel_values_videos"][start : start + count][valid])
            rows = self._rows(recording, "video", first + k, f"video_features.{k}")
            predicted = self._predicted(video_sizes=[(count, *frames.shape[1:3])]).num_video_tokens[0]
            declared = count * self.processor.video_processor.max_soft_tokens
            counts.append(Counts(predicted, rows, declared, "video"))
        return counts

    def _predicted(self, **sizes: Any) -> Any:
        """The processor's own counting function. Without a budget it leaves the defaults of its class as they are."""
        return self.processor._get_num_multimodal_tokens(**sizes)

    def _rows(self, recording: Recording, medium: str, index: int, stage: str) -> int:
        if medium not in self.rows:
            return 0
        recording.add(stage, self.rows[medium][index])
        return len(self.rows[medium][index])
