"""Reading a stage of the model out, or putting another tensor in its place, without editing the model.

Shapes: P patches and S soft tokens of image I; T tokens; H decoder width.

    pixels.I (P, .)  positions.I (P, 2)  mm_features.I (S, H)  merged_embeddings, layer.K, hidden: all (T, H)

In a pack of prompts each stage is shown by sample: `sample.1.layer.0`, or `sample.1.mm_features.0` for the first image
of the second prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .inputs import Prepared


class Tap(Protocol):
    """Is shown each stage by name and says what the model goes on with."""

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """Take a stage and return it, or what is to stand in its place. The tensor must not be changed."""


class Silence:
    """Lets everything pass."""

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class Recorder:
    """Keeps everything it is shown, after `inner` has had its say."""

    def __init__(self, inner: Tap | None = None) -> None:
        self.inner = inner or Silence()
        self.tensors: dict[str, Tensor] = {}

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """Keep a tensor under its name."""
        self.tensors[name] = tensor = self.inner.record(name, tensor)
        return tensor


class Transplant:
    """Puts given tensors in the place of stages, in the dtype and on the device of the model.

    `unused` names those that no stage has asked for: a name that fits none would otherwise go unnoticed.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.unused = set(tensors)

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """The given tensor of this name where there is one."""
        if name not in self.tensors:
            return tensor
        given = self.tensors[name]
        if given.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} here, a {tuple(given.shape)} cannot take its place")
        self.unused.discard(name)
        return given.to(tensor)


class PackTap:
    """Shows `inner` the stages of a pack sample by sample, each as `sample.N.` and the name it has in a pass alone."""

    def __init__(self, inner: Tap, samples: Sequence[Prepared]) -> None:
        self.inner = inner
        self.lengths = [len(sample.token_ids) for sample in samples]
        images = _owners([len(sample.images) for sample in samples])
        self.owners = dict.fromkeys(("pixels", "positions", "mm_features"), images) | {
            "video_features": _owners([len(sample.videos) for sample in samples]),
            "audio_features": _owners([len(sample.audios) for sample in samples]),
        }

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """Show a stage of one item under the name of its sample, and a stage of all tokens in parts, one per sample."""
        stage, _, number = name.partition(".")
        if stage in self.owners:
            sample, index = self.owners[stage][int(number)]
            return self.inner.record(f"sample.{sample}.{stage}.{index}", tensor)
        parts = torch.split(tensor, self.lengths)
        return torch.cat([self.inner.record(f"sample.{n}.{name}", part) for n, part in enumerate(parts)])


def _owners(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Of each item of a pack, which sample it belongs to and its number there."""
    return [(sample, index) for sample, count in enumerate(counts) for index in range(count)]
