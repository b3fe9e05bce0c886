"""vLLM with one seeded fault, as a worker's engine: what its processor made is known by the medium alone.

The class of https://github.com/vllm-project/vllm/pull/40599: an image that was seen at one budget is then taken from
the cache at another.
"""

from __future__ import annotations

from typing import Any

from vllm.multimodal.hasher import MultiModalHasher

from harness.engines.vllm import VllmEngine

_HASH = MultiModalHasher.hash_kwargs.__func__


def _without_options(cls: type, algorithm: Any, /, **kwargs: object) -> str:
    known: str = _HASH(cls, algorithm, **{name: value for name, value in kwargs.items() if "kwargs" not in name})
    return known


class PoisonedVllm(VllmEngine):
    """vLLM whose cache does not look at the processor's options."""

    def __init__(self) -> None:
        """Plant the fault in this process."""
        super().__init__()
        MultiModalHasher.hash_kwargs = classmethod(_without_options)
