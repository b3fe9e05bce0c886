"""One adapter per engine. Layer 2: runs inside the engine's own environment, in a worker process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from harness.engines.base import Engine

ADAPTERS = {
    "hf": "harness.engines.hf:HfEngine",
    "vllm": "harness.engines.vllm:VllmEngine",
    "native": "harness.engines.native:NativeEngine",
    "sglang": "harness.engines.sglang:SglangEngine",
    "automodel": "harness.engines.automodel:AutomodelEngine",
}
"""Engine name -> adapter, imported only in the worker that runs it: an adapter imports its engine."""


def create(name: str, options: Mapping[str, str] | None = None) -> Engine:
    """The adapter of that name, or of that `module:attribute`, with its options, its engine imported."""
    module, attribute = ADAPTERS.get(name, name).split(":")
    adapter: Engine = getattr(importlib.import_module(module), attribute)(**(options or {}))
    return adapter
