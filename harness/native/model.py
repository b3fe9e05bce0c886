"""Gemma 4 for text, images, sound and video, start to end: load, prepare, forward, logits.

Shapes: T tokens after expansion; P patches and S soft tokens of one item; H decoder width; V vocabulary.

    prompt, media -> `prepare` -> ids (T,), patches (P, .) -> `forward` -> (T, H) -> `logits` -> (T, V)

Or in pieces: `forward` in chunks, `decode` after it; `forward_packed` and `decode_batch` for several prompts at once.
All give the hidden states of one pass. Everything that decides a number is in this package; no engine shares it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import plan
from .audio import AudioTower
from .cache import Cache
from .config import ModelConfig, TowerConfig, read_config
from .config_media import AudioTowerConfig
from .inputs import Prepared, prepare_inputs
from .masks import chunks, layer_spans
from .prompt import AUDIO, IMAGE, TEXT, VIDEO, read_tokenizer
from .tap import PackTap, Silence, Tap
from .text import Decoder, Layout
from .unified import UnifiedEmbedder, WaveformEmbedder
from .vision import VisionTower
from .weights import LoadReport, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from tokenizers import Tokenizer

    from .audio_features import AudioFrames
    from .image import ImagePatches
    from .masks import Spans
    from .video import Video, VideoPatches

# Images run together up to so many patches. On a CPU 8,192 were 16 % slower: what a layer hands on left the cache.
PACK_PATCHES = 2048
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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

    def features(self, patches: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Patches of images one after another (P, .), their (x, y), (P, 2), P of each -> decoder rows (S, H)."""
        run = partial(self.tower, lengths=lengths) if hasattr(self, "tower") else self.unified
        rows: Tensor = run(patches, positions)
        return rows


class Gemma4:
    """A checkpoint, ready to run. `report` says which tensors of the files were not read."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, network: Network, report: LoadReport) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.network = network
        self.report = report

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype,
        device: str = "cpu",
        compile: bool = False,  # noqa: A002 - as PyTorch names it
    ) -> Gemma4:
        """Read a checkpoint in the published layout.

        Args:
            path: the directory with config.json, processor_config.json, tokenizer.json and the weights.
            dtype: of the weights and matrix products, one of `DTYPES`.
            device: where to compute.
            compile: the decoder's layers, on their first use, which then takes half a minute or more.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype} is not supported; use one of {', '.join(map(str, DTYPES))}")
        directory = Path(path)
        config = read_config(directory)
        with torch.device("meta"):
            network = Network(config)
        report = load(directory, network, config.text, dtype, device)
        if compile:
            network.decoder.compile()
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
    def forward(
        self,
        prepared: Prepared,
        *,
        tap: Tap | None = None,
        cache: Cache | None = None,
        chunk_tokens: int | None = None,
    ) -> Tensor:
        """Final hidden states (T, H), normed: what `logits` takes.

        Args:
            prepared: a prompt, or what follows the tokens in `cache`.
            tap: is shown the stages on the way and may replace them.
            cache: from `new_cache`; takes up the tokens, so that `decode` can go on from there.
            chunk_tokens: run at most so many tokens at once, or one image where it is longer and sees itself
                in both directions.
        """
        if tap is not None and chunk_tokens is not None:
            raise ValueError("a tap is shown whole stages, chunks have none; give either tap or chunk_tokens")
        tap = Silence() if tap is None else tap
        cache = self.new_cache() if cache is None else cache
        token_ids, embedded = self.embed(prepared, tap)
        parts = []
        for rows, layout in self.layouts(prepared.media_types, cache, chunk_tokens or len(token_ids)):
            parts.append(self.network.decoder(token_ids[rows], embedded[rows], [layout], tap))
        return tap.record("hidden", torch.cat(parts))

    @torch.no_grad()
    def decode(self, token_ids: Sequence[int], cache: Cache) -> Tensor:
        """Read text tokens (n,) after those in `cache`: final hidden states (n, H)."""
        if len(token_ids) == 1:
            return self.decode_batch(token_ids, [cache])
        ids = torch.tensor(token_ids)
        return self.forward(Prepared(ids, torch.zeros_like(ids), ()), cache=cache)

    @torch.no_grad()
    def decode_batch(self, token_ids: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Read one text token of each of B samples after those in its cache: final hidden states (B, H).

        The caches may be of any lengths: a product runs over the tokens of all samples, attention over each alone.
        """
        if not len(token_ids) == len(caches) == len({id(cache) for cache in caches}) > 0:
            raise ValueError(f"{len(token_ids)} tokens and {len(caches)} caches; give each token a cache of its own")
        decoder = self.network.decoder
        return decoder.step(torch.tensor(token_ids, device=decoder.embedding.device), caches)

    @torch.no_grad()
    def forward_packed(
        self, samples: Sequence[Prepared], *, tap: Tap | None = None, caches: Sequence[Cache] | None = None
    ) -> list[Tensor]:
        """Prompts of any lengths in one pass, packed after one another without padding: (T, H) of each.

        Args:
            samples: none of them sees another; without any there are no hidden states.
            tap: is shown the stages of each sample, with `sample.N.` before their names.
            caches: one of each sample, as in `forward`, for `decode_batch` to go on from.
        """
        if not samples:
            return []
        caches = [self.new_cache() for _ in samples] if caches is None else caches
        inner = Silence() if tap is None else PackTap(tap, samples)
        layouts = [
            layout
            for sample, cache in zip(samples, caches, strict=True)
            for _, layout in self.layouts(sample.media_types, cache, len(sample.token_ids))
        ]
        token_ids, embedded = self.embed(pack(samples), inner)
        hidden = inner.record("hidden", self.network.decoder(token_ids, embedded, layouts, inner))
        return list(torch.split(hidden, [len(sample.token_ids) for sample in samples]))

    def new_cache(self) -> Cache:
        """An empty cache, for one sample."""
        return Cache(self.config.text, self.network.decoder.embedding)

    def embed(self, prepared: Prepared, tap: Tap) -> tuple[Tensor, Tensor]:
        """Token ids (T,) with padding in place of soft tokens, and the decoder's input (T, H)."""
        decoder = self.network.decoder
        media_types = prepared.media_types.to(decoder.embedding.device)
        soft = media_types != TEXT
        # Soft tokens have no meaning of their own in the embedding tables: they count as padding there.
        token_ids = prepared.token_ids.to(soft.device).masked_fill(soft, self.config.tokens.pad)
        embedded = decoder.embed(token_ids)
        for medium, rows in self.media_rows(prepared, tap):
            embedded[media_types == medium] = torch.cat([embedded[:0], *rows])
        return token_ids, tap.record("merged_embeddings", embedded)

    def spans(self, media_types: Tensor, past: int = 0) -> dict[str, Spans]:
        """What each token of a sample sees, by layer kind."""
        text = self.config.text
        return layer_spans(media_types, text.window, vision_blocks=text.vision_blocks, past=past)

    def layouts(self, media_types: Tensor, cache: Cache, chunk_tokens: int) -> Iterator[tuple[slice, Layout]]:
        """Each chunk of a sample: which of its tokens, and where they stand. Made when the last one is done."""
        device, past = self.network.decoder.embedding.device, cache.length
        spans = self.spans(media_types, past)
        for rows in chunks(media_types, chunk_tokens, vision_blocks=self.config.text.vision_blocks):
            plans = {kind: plan([span.rows(rows).shift(-cache.first(kind))], device) for kind, span in spans.items()}
            positions = torch.arange(past + rows.start, past + rows.stop, device=device)
            yield rows, Layout(positions, plans, cache)

    def features(self, images: Sequence[ImagePatches], tap: Tap) -> list[Tensor]:
        """The rows that stand in for each image's soft tokens: one (S, H) per image, in packs of a few images."""
        device = self.network.decoder.embedding.device
        inputs = [
            (tap.record(f"pixels.{i}", image.patches), tap.record(f"positions.{i}", image.positions))
            for i, image in enumerate(images)
        ]
        rows = list[Tensor]()
        for some in packs([len(patches) for patches, _ in inputs], PACK_PATCHES):
            patches, positions = (torch.cat(parts).to(device) for parts in zip(*inputs[some], strict=True))
            lengths = [len(patches) for patches, _ in inputs[some]]
            features = self.network.features(patches, positions, lengths)
            rows += torch.split(features, [image.soft_tokens for image in images[some]])
        return [tap.record(f"mm_features.{number}", feature) for number, feature in enumerate(rows)]

    def media_rows(self, prepared: Prepared, tap: Tap) -> Iterator[tuple[int, list[Tensor]]]:
        """For each medium, the rows (S, H) that stand in for the soft tokens of each of its items."""
        yield IMAGE, self.features(prepared.images, tap)
        yield VIDEO, [self.video_rows(number, video, tap) for number, video in enumerate(prepared.videos)]
        yield AUDIO, [self.audio_rows(number, audio, tap) for number, audio in enumerate(prepared.audios)]

    def video_rows(self, number: int, video: VideoPatches, tap: Tap) -> Tensor:
        """The rows of all frames of a video: (S, H). A frame is an image of its own."""
        return tap.record(f"video_features.{number}", torch.cat(self.features(video.frames, Silence())))

    def audio_rows(self, number: int, audio: AudioFrames, tap: Tap) -> Tensor:
        """The rows of one recording: (S, H). One too short for a soft token has none and is not run."""
        device, width = self.network.decoder.embedding.device, self.config.text.hidden
        rows = torch.empty(0, width, device=device, dtype=self.network.decoder.embedding.dtype)
        if audio.soft_tokens and self.network.audio is not None:
            rows = self.network.audio(audio.frames.to(device))
        return tap.record(f"audio_features.{number}", rows)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """(T, H) from `forward` -> (T, V), with the soft cap. Pass a few rows at a time when V is large."""
        return self.network.decoder.logits(hidden)


def pack(samples: Sequence[Prepared]) -> Prepared:
    """Several prompts as one, one after another."""
    return Prepared(
        torch.cat([sample.token_ids for sample in samples]),
        torch.cat([sample.media_types for sample in samples]),
        tuple(image for sample in samples for image in sample.images),
        tuple(audio for sample in samples for audio in sample.audios),
        tuple(video for sample in samples for video in sample.videos),
    )


def packs(lengths: Sequence[int], limit: int) -> Iterator[slice]:
    """Cut a row of lengths into runs that add up to at most `limit`, or hold one that alone is longer."""
    start = total = 0
    for index, length in enumerate(lengths):
        if index > start and total + length > limit:
            yield slice(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))
