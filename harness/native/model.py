"""Gemma 4 for text, images, sound and video, start to end: load, prepare, forward, logits.

Shapes: T tokens after expansion; P patches and S soft tokens of one item; H decoder width; V vocabulary.

    prompt, media -> `prepare` -> ids (T,), patches (P, .) -> `forward` -> (T, H) -> `logits` -> (T, V)

One sample at a time. Everything that decides a number is in this package; no engine shares it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from .audio import AudioTower
from .config import ModelConfig, TowerConfig, read_config
from .config_media import AudioTowerConfig
from .inputs import Prepared, prepare_inputs
from .masks import layer_masks
from .prompt import AUDIO, IMAGE, TEXT, VIDEO, read_tokenizer
from .text import Decoder
from .unified import UnifiedEmbedder, WaveformEmbedder
from .vision import VisionTower
from .weights import LoadReport, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from tokenizers import Tokenizer

    from .audio_features import AudioFrames
    from .image import ImagePatches
    from .video import Video, VideoPatches

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Tap(Protocol):
    """Is shown intermediate tensors by name.

    `mm_features.I` (S, H) for image I, `video_features.I` for all frames of video I, `audio_features.I`,
    `merged_embeddings`, `layer.K` after layer K, `hidden`: all (T, H).
    """

    def record(self, name: str, tensor: Tensor) -> None:
        """Take note of a tensor; it must not be changed."""


class Recorder:
    """A tap that keeps everything it is shown."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def record(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor under its name."""
        self.tensors[name] = tensor


class _Silence:
    def record(self, name: str, tensor: Tensor) -> None:
        """Ignore a tensor."""


class Network(nn.Module):
    """The weights: a decoder, a vision tower or the unified embedder, and what hears, where there is any."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config.text)
        if isinstance(config.vision, TowerConfig):
            self.tower = VisionTower(config.vision, config.text.hidden)
        else:
            self.unified = UnifiedEmbedder(config.vision, config.text.hidden)
        self.audio: AudioTower | WaveformEmbedder | None = None
        if isinstance(config.audio, AudioTowerConfig):
            self.audio = AudioTower(config.audio, config.text.hidden)
        elif config.audio is not None:
            self.audio = WaveformEmbedder(config.audio, config.text.hidden)

    @property
    def vision(self) -> VisionTower | UnifiedEmbedder:
        """Whichever of the two turns patches into decoder rows."""
        return self.tower if hasattr(self, "tower") else self.unified


class Gemma4:
    """A checkpoint, ready to run. `report` says which tensors of the files were not read."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, network: Network, report: LoadReport) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.network = network
        self.report = report

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, device: str = "cpu") -> Gemma4:
        """Read a checkpoint in the published layout.

        Args:
            path: the directory with config.json, processor_config.json, tokenizer.json and the weights.
            dtype: of the weights and matrix products, one of `DTYPES`.
            device: where to compute.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype} is not supported; use one of {', '.join(map(str, DTYPES))}")
        directory = Path(path)
        config = read_config(directory)
        with torch.device("meta"):
            network = Network(config)
        report = load(directory, network, config.text, dtype, device)
        return cls(config, read_tokenizer(directory), network, report)

    def prepare(
        self,
        prompt: str | Sequence[int],
        images: Sequence[np.ndarray] = (),
        audios: Sequence[np.ndarray] = (),
        videos: Sequence[Video] = (),
        *,
        max_soft_tokens: int,
    ) -> Prepared:
        """Tokenise, expand placeholders, cut media.

        Args:
            prompt: text or token ids, with one placeholder per item, bare or expanded.
            images: (height, width, 3) uint8 RGB, in the order of the prompt.
            audios: (samples,) float, mono at 16 kHz, in the order of the prompt.
            videos: in the order of the prompt.
            max_soft_tokens: the budget of each image; the frames of a video have one of their own.
        """
        return prepare_inputs(self.config, self.tokenizer, prompt, images, audios, videos, max_soft_tokens)

    @torch.no_grad()
    def forward(self, prepared: Prepared, *, tap: Tap | None = None) -> Tensor:
        """Final hidden states (T, H), normed: what `logits` takes. `tap` is shown the stages on the way."""
        tap = _Silence() if tap is None else tap
        decoder, text = self.network.decoder, self.config.text
        device = decoder.embedding.device
        media_types = prepared.media_types.to(device)
        soft = media_types != TEXT
        # Soft tokens have no meaning of their own in the embedding tables: they count as padding there.
        token_ids = prepared.token_ids.to(device).masked_fill(soft, self.config.tokens.pad)
        embedded = decoder.embed(token_ids)
        for medium, rows in self.media_rows(prepared, tap):
            embedded[media_types == medium] = torch.cat([embedded[:0], *rows])
        tap.record("merged_embeddings", embedded)
        masks = layer_masks(media_types, text.window, vision_blocks=text.vision_blocks)
        hidden: Tensor = decoder(token_ids, embedded, masks, tap)
        tap.record("hidden", hidden)
        return hidden

    def features(self, images: Sequence[ImagePatches], tap: Tap) -> list[Tensor]:
        """The rows that stand in for each image's soft tokens: one (S, H) per image, each image run alone."""
        device = self.network.decoder.embedding.device
        rows = [self.network.vision(image.patches.to(device), image.positions.to(device)) for image in images]
        for number, feature in enumerate(rows):
            tap.record(f"mm_features.{number}", feature)
        return rows

    def media_rows(self, prepared: Prepared, tap: Tap) -> Iterator[tuple[int, list[Tensor]]]:
        """For each medium, the rows (S, H) that stand in for the soft tokens of each of its items."""
        yield IMAGE, self.features(prepared.images, tap)
        yield VIDEO, [self.video_rows(number, video, tap) for number, video in enumerate(prepared.videos)]
        yield AUDIO, [self.audio_rows(number, audio, tap) for number, audio in enumerate(prepared.audios)]

    def video_rows(self, number: int, video: VideoPatches, tap: Tap) -> Tensor:
        """The rows of all frames of a video, each frame run alone: (S, H)."""
        rows = torch.cat(self.features(video.frames, _Silence()))
        tap.record(f"video_features.{number}", rows)
        return rows

    def audio_rows(self, number: int, audio: AudioFrames, tap: Tap) -> Tensor:
        """The rows of one recording: (S, H). One too short for a soft token has none and is not run."""
        device, width = self.network.decoder.embedding.device, self.config.text.hidden
        rows = torch.empty(0, width, device=device)
        if audio.soft_tokens and self.network.audio is not None:
            rows = self.network.audio(audio.frames.to(device))
        tap.record(f"audio_features.{number}", rows)
        return rows

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """(T, H) from `forward` -> (T, V), with the soft cap. Pass a few rows at a time when V is large."""
        return self.network.decoder.logits(hidden)
