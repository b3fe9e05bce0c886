"""vLLM's cache of processed media, put in place for a while. Layer 2; the engine itself is imported when asked for.

A plain run has none, so that it is computed afresh. By default vLLM keeps what its processor made of an image, known by
the image and the processor's options; both ends of that cache are its own classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from harness.engines.base import Unsupported

CAPACITY_GB = 0.25


@contextmanager
def processor_cache(llm: Any, core: Any) -> Iterator[Any]:
    """An empty cache between the processor and the engine core; yields the processor's end of it.

    Raises:
        Unsupported: a release that keeps it elsewhere.
    """
    try:
        from vllm.multimodal.cache import engine_receiver_cache_from_config, processor_cache_from_config
    except ImportError as error:
        raise Unsupported(f"this release has no processor cache that could be put in place: {error}") from error
    renderer = getattr(llm, "renderer", None)
    if not hasattr(renderer, "_mm_processor_cache") or not hasattr(core, "mm_receiver_cache"):
        raise Unsupported("this release has no processor cache in its renderer")
    config = llm.llm_engine.vllm_config
    with mock.patch.object(config.model_config.multimodal_config, "mm_processor_cache_gb", CAPACITY_GB):
        sender, receiver = processor_cache_from_config(config), engine_receiver_cache_from_config(config)
        with (
            mock.patch.object(renderer, "_mm_processor_cache", sender),
            mock.patch.object(core, "mm_receiver_cache", receiver),
        ):
            yield sender
