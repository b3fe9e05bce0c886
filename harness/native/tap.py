"""Reading a stage of the model out, or putting another tensor in its place, without editing the model.

Shapes: P patches and S soft tokens of image I; T tokens; H decoder width.

    pixels.I (P, .)  positions.I (P, 2)  mm_features.I (S, H)  merged_embeddings, layer.K, hidden: all (T, H)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


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
