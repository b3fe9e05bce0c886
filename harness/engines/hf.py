"""Hugging Face transformers, as a subject: its processor and its model, one forward pass.

Legend: T tokens, H text hidden size, N images, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from harness.engines.audit import audit_tensors
from harness.engines.base import Array, Recording, Rejected, Unsupported, package_versions
from harness.engines.inputs import Media
from harness.render import is_expanded
from harness.schema import Counts, LoadReport, Request


class HfEngine:
    """The eager PyTorch model with SDPA attention."""

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("transformers", "torch", "torchvision", "tokenizers", "pillow", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load processor and weights; what did not match a tensor is in the report."""
        self.processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
        self.model, info = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
        self.model = self.model.to(device).eval()
        self.image_token_id = self.model.config.image_token_id
        self._tap()
        audited = audit_tensors(self.model.state_dict(), checkpoint) if audit else LoadReport()
        return replace(
            audited,
            missing=tuple(sorted(info["missing_keys"])),
            unexpected=tuple(sorted(info["unexpected_keys"])),
            reinitialised=(*audited.reinitialised, *sorted(map(str, info["mismatched_keys"]))),
        )

    def _tap(self) -> None:
        """Record the projector rows of each image and the final normed hidden states as they pass by."""
        inner = self.model.model
        image_features = inner.get_image_features
        self.seen: dict[str, Any] = {}

        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            output = image_features(*args, **kwargs)
            self.seen["mm_features"] = output.pooler_output
            return output

        def keep_hidden(_module: Any, _inputs: Any, output: Any) -> None:
            self.seen["hidden"] = output.last_hidden_state[0]

        inner.get_image_features = get_image_features
        inner.language_model.register_forward_hook(keep_hidden)

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt in one pass; `logprobs` come from the model's own logits."""
        if request.probe or request.case.audios or request.case.videos:
            raise Unsupported("only images, only plainly")
        media = Media.of(request.case.parts, arrays)
        try:
            inputs = self._prepare(request, media).to(self.model.device)
        except (ValueError, TypeError) as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error
        self.seen.clear()
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits[0].float()
        return self._record(request, media, inputs, logits)

    def _prepare(self, request: Request, media: Media) -> Any:
        """Model inputs. A prompt that is expanded already goes in as token ids beside pixels.

        The processor takes bare placeholders only: it counts the placeholders of an expanded prompt as images.
        Whoever holds an expanded prompt gives its ids to the model, and so does this adapter. For a prompt that is
        partly expanded no such way exists; the processor refuses it.
        """
        pictures = media.pictures
        budget = {"max_soft_tokens": request.case.max_soft_tokens}
        if not pictures:
            return self.processor(text=request.prompt, return_tensors="pt")
        if not is_expanded(request.case):
            return self.processor(text=request.prompt, images=pictures, images_kwargs=budget, return_tensors="pt")
        inputs = self.processor.tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token_id).long()
        pixels = self.processor.image_processor(pictures, **budget, return_tensors="pt")
        pixels.pop("num_soft_tokens_per_image")
        inputs.update(pixels)
        return inputs

    def _record(self, request: Request, media: Media, inputs: Any, logits: torch.Tensor) -> Recording:
        ids = inputs["input_ids"][0]
        recording = Recording()
        recording.add("prompt_ids", ids)
        recording.add("hidden", self.seen["hidden"])
        logprobs = torch.log_softmax(logits[:-1], dim=-1)
        recording.add("logprobs", logprobs.gather(1, ids[1:, None])[:, 0])
        features = self.seen.get("mm_features", ())
        for index, rows in enumerate(features):
            valid = (inputs["image_position_ids"][index] >= 0).all(dim=-1)
            recording.add(f"positions.{index}", inputs["image_position_ids"][index][valid])
            recording.add(f"pixels.{index}", inputs["pixel_values"][index][valid])
            recording.add(f"mm_features.{index}", rows)
        recording.counts = tuple(
            Counts(self._predicted(image, request.case.max_soft_tokens), len(rows), request.case.max_soft_tokens)
            for (_, image), rows in zip(media.images, features, strict=True)
        )
        return recording

    def _predicted(self, image: Array, budget: int) -> int:
        """The processor's own arithmetic, called by itself.

        Not `_get_num_multimodal_tokens`: in 5.19 that writes the budget into class-level defaults.
        """
        patch_px, pooling = (getattr(self.processor.image_processor, n) for n in ("patch_size", "pooling_kernel_size"))
        height_px, width_px = image.shape[:2]
        target = get_aspect_ratio_preserving_size(height_px, width_px, patch_px, budget * pooling**2, pooling)
        return int(target[0] * target[1] // (patch_px * pooling) ** 2)
