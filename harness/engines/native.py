"""The native implementation, as a subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness.engines.base import Array, Recording, Rejected, package_versions
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

    def run(self, request: Request, images: list[Array]) -> Recording:
        """Score the prompt in one pass."""
        try:
            pictures = [np.asarray(Image.fromarray(image).convert("RGB")) for image in images]
            prepared = self.model.prepare(request.prompt, pictures, max_soft_tokens=request.max_soft_tokens)
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
        features = [tap.tensors[f"mm_features.{index}"] for index in range(len(images))]
        for index, (image, rows) in enumerate(zip(prepared.images, features, strict=True)):
            recording.add(f"pixels.{index}", image.patches)
            recording.add(f"positions.{index}", image.positions)
            recording.add(f"mm_features.{index}", rows)
        recording.counts = tuple(
            Counts(image.soft_tokens, len(rows), request.max_soft_tokens)
            for image, rows in zip(prepared.images, features, strict=True)
        )
        return recording
