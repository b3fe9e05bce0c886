"""The native implementation, as a subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from harness.engines.base import Array, Recording, Rejected, Unsupported, package_versions
from harness.engines.inputs import Media
from harness.native import Gemma4, Recorder
from harness.schema import Counts, LoadReport, Request


class NativeEngine:
    """Our own Gemma 4: shares no code with what it judges."""

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("gemma4-conformance", "torch", "tokenizers", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load a checkpoint; a missing tensor raises."""
        self.model = Gemma4.load(checkpoint, dtype=getattr(torch, dtype), device=device)
        report = self.model.report
        return LoadReport(missing=report.missing, unexpected=report.unexpected, unused=report.unused)

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt in one pass."""
        if request.probe or request.case.audios or request.case.videos:
            raise Unsupported("only images, only plainly")
        media = Media.of(request.case.parts, arrays)
        try:
            pictures = [np.asarray(image.convert("RGB")) for image in media.pictures]
            prepared = self.model.prepare(request.prompt, pictures, max_soft_tokens=request.case.max_soft_tokens)
        except ValueError as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error
        tap = Recorder()
        with torch.inference_mode():
            hidden = self.model.forward(prepared, tap=tap)
            logprobs = torch.log_softmax(self.model.logits(hidden[:-1]).float(), dim=-1)
        recording = Recording()
        recording.add("prompt_ids", prepared.token_ids)
        recording.add("hidden", hidden)
        targets = prepared.token_ids[1:, None].to(logprobs.device)
        recording.add("logprobs", logprobs.gather(1, targets)[:, 0])
        features = [tap.tensors[f"mm_features.{index}"] for index in range(len(pictures))]
        for index, (image, rows) in enumerate(zip(prepared.images, features, strict=True)):
            recording.add(f"pixels.{index}", image.patches)
            recording.add(f"positions.{index}", image.positions)
            recording.add(f"mm_features.{index}", rows)
        recording.counts = tuple(
            Counts(image.soft_tokens, len(rows), request.case.max_soft_tokens)
            for image, rows in zip(prepared.images, features, strict=True)
        )
        return recording
