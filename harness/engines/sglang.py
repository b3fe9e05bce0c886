"""SGLang's Gemma 4 processor, as a subject: what it makes of a prompt and raw images, with no engine started.

Its engine needs a GPU; the processor is all of the front end, runs anywhere, and is where a prompt is counted, expanded
and cut into items. So this subject records prompt ids, counts, pixels and positions, and has no states of a model.

Legend: P patches of an image, padding included.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.hf_transformers_utils import get_config, get_processor

from harness.engines.base import Array, Recording, Rejected, Unsupported, package_versions
from harness.engines.inputs import Sample
from harness.schema import Counts, LoadReport, Request
from harness.spec import SIDE_PX

_PROCESSORS = {
    "Gemma4ForConditionalGeneration": ("gemma4", "Gemma4SGLangProcessor"),
    "Gemma4UnifiedForConditionalGeneration": ("gemma4_unified", "Gemma4UnifiedSGLangProcessor"),
}
"""Architecture -> module and class of its processor."""


class SglangEngine:
    """The processor as SGLang's server calls it: text or ids with images that are not processed yet."""

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("sglang", "transformers", "torch", "torchvision", "tokenizers", "pillow", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Make the processor of a checkpoint. It has no weights, and always runs on the CPU."""
        (architecture,) = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["architectures"]
        name, attribute = _PROCESSORS.get(architecture, ("", ""))
        module = f"sglang.srt.multimodal.processors.{name}"
        if not name or importlib.util.find_spec(module) is None:
            raise Unsupported(f"this release of SGLang has no processor for {architecture}")
        # Otherwise it would resize images on a GPU. The processor itself is not asked for another one by this.
        args = ServerArgs(
            model_path=str(checkpoint), device="cpu", attention_backend="triton", disable_fast_image_processor=True
        )
        _publish(args)
        config = get_config(str(checkpoint), trust_remote_code=False)
        self.processor = getattr(importlib.import_module(module), attribute)(
            config, args, get_processor(str(checkpoint)), "default"
        )
        return LoadReport(unchecked=("SGLang's processor runs without a model",))

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Process the prompt once, or as a probe says that a processor can take."""
        if request.case.audios or request.case.videos:
            raise Unsupported("SGLang reads sound and video from files that decoders of their own open")
        sample = Sample.of(request, arrays)
        kind = request.case.probe.kind if request.probe and request.case.probe else ""
        if kind == "expanded":
            sample = Sample.expanded_of(request, arrays)
        elif kind == "repeat":
            self._process(Sample.before(request, arrays))
        elif kind == "ids":
            return self._process(sample, self.processor._tokenizer.encode(sample.prompt, add_special_tokens=False))
        elif kind:
            raise Unsupported(f"{kind}: no model runs, only SGLang's processor")
        return self._process(sample)

    def _process(self, sample: Sample, ids: list[int] | None = None) -> Recording:
        """What the server does with a prompt: tokenise it alone, or let the processor do so if there are media."""
        recording = Recording()
        prompt = sample.prompt if ids is None else ids
        if not sample.media.images:
            ids = self.processor._tokenizer(sample.prompt)["input_ids"] if ids is None else ids
            recording.add("prompt_ids", torch.tensor(ids))
            return recording
        # As a server has it that was started with --mm-process-config.
        self.processor.image_config = {"max_soft_tokens": sample.max_soft_tokens}
        call = self.processor.process_mm_data_async(
            image_data=sample.media.pictures, input_text=prompt, request_obj=SimpleNamespace(video_data=None)
        )
        with _told() as warnings:
            try:
                output = asyncio.run(call)
            except ValueError as error:
                raise Rejected(f"{type(error).__name__}: {error}") from error
            except RuntimeError as error:
                # The reason is in the log alone.
                raise RuntimeError("\n".join([str(error).strip(), *warnings])) from error
        self._record(recording, output, sample)
        return recording

    def _record(self, recording: Recording, output: Any, sample: Sample) -> None:
        """Ids, then image by image where its rows will go (`predicted`), and the rows that its patches give."""
        recording.add("prompt_ids", torch.tensor(output.input_ids))
        patches = [image for item in output.mm_items for image in zip(item.feature, _positions(item), strict=True)]
        rows = []
        for k, (pixels, positions) in enumerate(patches):
            valid = (positions >= 0).all(dim=-1)
            recording.add(f"pixels.{k}", pixels[valid])
            recording.add(f"positions.{k}", positions[valid])
            # A row covers 48 x 48 px in three colours, whatever the side of a patch: 16 px, or 48 in the 12B.
            rows.append(int(valid.sum()) * pixels.shape[-1] // (3 * SIDE_PX**2))
        placed = [last + 1 - first for item in output.mm_items for first, last in item.offsets]
        budget = sample.max_soft_tokens
        recording.counts = tuple(Counts(p, r, budget) for p, r in zip_longest(placed, rows, fillvalue=0))


def _positions(item: Any) -> Any:
    """(images, P, 2) of an item's patches."""
    return item.model_specific_data["image_position_ids"]


def _publish(args: Any) -> None:
    """Make the arguments known to the process, as a release wants it that reads them from there."""
    if importlib.util.find_spec("sglang.srt.runtime_context") is not None:
        context = importlib.import_module("sglang.srt.runtime_context")
        if hasattr(context, "publish"):
            context.publish(args, role="tokenizer")


@contextmanager
def _told() -> Iterator[list[str]]:
    """What SGLang warns of meanwhile."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener, logger = Listener(logging.WARNING), logging.getLogger("sglang")
    logger.addHandler(listener)
    try:
        yield told
    finally:
        logger.removeHandler(listener)
