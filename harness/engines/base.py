"""What a worker asks of an engine: `load` a checkpoint, `run` a request, say its `versions`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import UserError
from harness.schema import Counts, LoadReport, Request

Array = npt.NDArray[Any]


class Rejected(Exception):
    """The engine refused the input with a clear error before computing anything."""


class Unsupported(Exception):
    """This subject has no such thing: a probe that it cannot take, a medium that it is not started with."""


@dataclass
class Recording:
    """What an engine recorded of one request: counts per medium, and arrays by stage name."""

    counts: tuple[Counts, ...] = ()
    arrays: dict[str, Array] = field(default_factory=dict)

    def add(self, stage: str, value: Any) -> None:
        """Keep a tensor or array; reduced floating types become float32, which holds them exactly."""
        if hasattr(value, "detach"):
            value = value.detach()
            value = (value.float() if value.is_floating_point() else value).cpu().numpy()
        self.arrays[stage] = np.ascontiguousarray(value)


def give_back_memory() -> None:
    """Hand freed memory back to the system: glibc keeps it, 40 MB for each start of vLLM, over hundreds of them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Engine(Protocol):
    """One engine in its own process. Exceptions other than `Rejected` and `Unsupported` mean that it broke."""

    def versions(self) -> dict[str, str]:
        """Package versions that a result depends on."""
        ...

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load a checkpoint directory, replacing the one loaded before.

        With `audit` the report also compares every tensor of the model with the checkpoint by content.
        """
        ...

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score one prompt, in a single pass or as the case's probe says, and record every stage.

        `arrays` are those of the request's media file.

        Raises:
            Rejected: the engine's own front end refused the input.
            Unsupported: the engine cannot take this probe or this medium at all.
        """
        ...


class Writer(Protocol):
    """An engine that can go on with a prompt."""

    def go_on(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Write a continuation of the prompt as `continuation`, or score the prompt with the one that is given.

        Greedily, or sampled from the whole distribution at temperature 1 where the case has a seed. Scored in one pass,
        or token by token; either way with `prompt_ids` and `hidden` of prompt and continuation.
        """
        ...


def chosen(option: str, value: str, known: Sequence[str]) -> str:
    """The value of an option of an adapter, if it is one of those known.

    Raises:
        UserError: it is not.
    """
    if value not in known:
        raise UserError(f"option {option} is {value!r}; known values: {', '.join(known)}")
    return value


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of packages, those that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
