"""Gemma 4 for text and images, start to end: load, prepare, forward, logits.

Shapes: T tokens after expansion; P patches and S soft tokens of one image; H decoder width; V vocabulary.

    prompt, images -> `prepare` -> ids (T,), patches (P, .) -> `forward` -> (T, H) -> `logits` -> (T, V)

One sample at a time. Everything that decides a number is in this package; no engine shares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from .config import ModelConfig, TowerConfig, read_config
from .image import ImagePatches, prepare_image
from .masks import layer_masks
from .prompt import IMAGE, expand, read_tokenizer, tokenize
from .text import Decoder
from .unified import UnifiedEmbedder
from .vision import VisionTower
from .weights import LoadReport, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from tokenizers import Tokenizer

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Tap(Protocol):
    """Is shown intermediate tensors by name.

    `mm_features.I` (S, H) for image I, `merged_embeddings`, `layer.K` after layer K, `hidden`: all (T, H).
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


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prompt for the model: ids (T,), media types (T,) with 1 on soft tokens, each image's patches."""

    token_ids: Tensor
    media_types: Tensor
    images: tuple[ImagePatches, ...]


class Network(nn.Module):
    """The weights: a decoder, and either a vision tower or the unified embedder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config.text)
        if isinstance(config.vision, TowerConfig):
            self.tower = VisionTower(config.vision, config.text.hidden)
        else:
            self.unified = UnifiedEmbedder(config.vision, config.text.hidden)

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

    def prepare(self, prompt: str | Sequence[int], images: Sequence[np.ndarray], *, max_soft_tokens: int) -> Prepared:
        """Tokenise, expand placeholders, resize and cut images.

        Args:
            prompt: text or token ids, with one placeholder per image, bare or expanded.
            images: (height, width, 3) uint8 RGB, in the order of the prompt.
            max_soft_tokens: the budget of each image.
        """
        side_px, scale = self.config.vision.patch_px, self.config.pixel_scale
        ids = tokenize(self.tokenizer, prompt, self.config.text.vocabulary)
        if not ids:
            raise ValueError(f"the prompt has no tokens: {prompt!r}; start it with <bos>")
        cut = tuple(prepare_image(image, max_soft_tokens, side_px=side_px, pixel_scale=scale) for image in images)
        expansion = expand(ids, [image.soft_tokens for image in cut], self.config.tokens)
        return Prepared(torch.tensor(expansion.token_ids), torch.tensor(expansion.media_types), cut)

    @torch.no_grad()
    def forward(self, prepared: Prepared, *, tap: Tap | None = None) -> Tensor:
        """Final hidden states (T, H), normed: what `logits` takes. `tap` is shown the stages on the way."""
        tap = _Silence() if tap is None else tap
        decoder, text = self.network.decoder, self.config.text
        device = decoder.embedding.device
        media_types = prepared.media_types.to(device)
        soft = media_types == IMAGE
        # Soft tokens have no meaning of their own in the embedding tables: they count as padding there.
        token_ids = prepared.token_ids.to(device).masked_fill(soft, self.config.tokens.pad)
        embedded = decoder.embed(token_ids)
        embedded[soft] = torch.cat([embedded[:0], *self.features(prepared.images, tap)])
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

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """(T, H) from `forward` -> (T, V), with the soft cap. Pass a few rows at a time when V is large."""
        return self.network.decoder.logits(hidden)
