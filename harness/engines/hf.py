"""Hugging Face transformers, as a subject: its processor and its model, one forward pass or as a probe says.

Legend: T tokens, H text hidden size, P patches.
"""

from __future__ import annotations

import gc
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from harness.engines.audit import audit_tensors
from harness.engines.base import (
    Array,
    Recording,
    Rejected,
    Unsupported,
    chosen,
    give_back_memory,
    package_versions,
)
from harness.engines.hf_inputs import by_chat, by_ids, by_text
from harness.engines.hf_paths import (
    Forward,
    continued,
    depth,
    generated,
    negated,
    padded,
    plain,
    token_by_token,
    video_encoded_first,
    written,
)
from harness.engines.hf_record import Encoders
from harness.engines.inputs import Sample, step, with_changed_tensor
from harness.render import messages, tools
from harness.schema import LoadReport, ProbeKind, Request

Inputs = dict[str, Any]
Score = Callable[[Any, Inputs], Tensor | None]


class HfEngine:
    """The PyTorch model, called with all that its processor returns."""

    forward: ClassVar[Forward] = staticmethod(video_encoded_first)
    deep = False
    model: Any

    def __init__(self, attention: str = "sdpa", image_processor: str = "torchvision") -> None:
        """`attention` is the model's implementation of it, `image_processor` the library that resizes images."""
        self.attention = chosen("attention", attention, ("sdpa", "eager"))
        self.image_processor = chosen("image_processor", image_processor, ("torchvision", "pil"))

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("transformers", "torch", "torchvision", "tokenizers", "pillow", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load processor and weights; what did not match a tensor is in the report.

        The model that was there goes first: there is room for one.
        """
        self.model = None
        self.seen: dict[str, Any] = {}
        gc.collect()
        give_back_memory()
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
        if self.image_processor != "torchvision":
            self.processor.image_processor = _resizing_by(self.image_processor, checkpoint)
        self.model, info = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=getattr(torch, dtype),
            attn_implementation=self.attention,
            local_files_only=True,
            output_loading_info=True,
        )
        self.model = self.model.to(device).eval()
        self._tap()
        audited = audit_tensors(self.model.state_dict(), checkpoint) if audit else LoadReport()
        return replace(
            audited,
            missing=tuple(sorted(info["missing_keys"])),
            unexpected=tuple(sorted(info["unexpected_keys"])),
            reinitialised=(*audited.reinitialised, *sorted(map(str, info["mismatched_keys"]))),
        )

    def _tap(self) -> None:
        """Record the rows of each medium and the final normed hidden states as they pass by."""
        inner = self.model.model

        def keep_features(name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(encode)  # `generate` reads the arguments' names off it.
            def encoding(*args: Any, **kwargs: Any) -> Any:
                output = encode(*args, **kwargs)
                rows = output.pooler_output
                if name == "audio":
                    rows = [row[mask] for row, mask in zip(rows, output.attention_mask, strict=True)]
                self.seen[name] = rows
                return output

            return encoding

        for name in ("image", "audio", "video"):
            attribute = f"get_{name}_features"
            setattr(inner, attribute, keep_features(name, getattr(inner, attribute)))

        def keep_hidden(_module: Any, _inputs: Any, output: Any) -> None:
            self.seen.setdefault("hidden", []).append(output.last_hidden_state)

        inner.language_model.register_forward_hook(keep_hidden)

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt in one pass, or as the probe says; `logprobs` come from the model's own logits."""
        self.deep = request.deep
        if not request.probe or request.case.probe is None:
            return self._score([Sample.of(request, arrays)])
        kind = request.case.probe.kind
        if kind not in _WAYS:
            raise Unsupported("transformers has no cache that outlives a call")
        return _WAYS[kind](self, request, arrays, request.case.probe.at)

    def _score(self, samples: Sequence[Sample], ours: int = 0, score: Score | None = None) -> Recording:
        """Prepare a batch, score it in one pass or as `score` does, and record sample number `ours`."""
        return self._scored(samples, self._prepared(samples), ours, score)

    def _prepared(self, samples: Sequence[Sample]) -> Inputs:
        if len({sample.expanded for sample in samples}) > 1:
            raise Unsupported("one prompt is expanded and the other is not: one call takes texts or ids")
        return self._checked(partial(by_ids if samples[0].expanded else by_text, self.processor, samples))

    def _checked(self, prepare: Callable[[], Any]) -> Inputs:
        """Model inputs; what the processor refuses is a refusal."""
        try:
            return dict(prepare().to(self.model.device))
        except (ValueError, TypeError) as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error

    def _scored(
        self, samples: Sequence[Sample], inputs: Inputs, ours: int = 0, score: Score | None = None
    ) -> Recording:
        self.seen.clear()
        deep: dict[str, list[Tensor]] = {}
        with torch.inference_mode(), depth(self.model, deep) if self.deep else nullcontext():
            logits = score(self.model, inputs) if score else self.forward(self.model, inputs, use_cache=False)
        valid = inputs["attention_mask"][ours].bool()
        ids = inputs["input_ids"][ours][valid]
        recording = Recording()
        recording.add("prompt_ids", ids)
        recording.add("hidden", torch.cat(self.seen["hidden"], dim=1)[ours][valid])
        for name, pieces in deep.items():
            recording.add(name, torch.cat(pieces, dim=1)[ours][valid])
        if logits is not None:
            logprobs = torch.log_softmax(logits[ours][valid][:-1].float(), dim=-1)
            recording.add("logprobs", logprobs.gather(1, ids[1:, None])[:, 0])
        Encoders(self.processor, inputs, self.seen, self._predicted).record(recording, samples, ours)
        recording.add("processor_state", self._processor_state())
        return recording

    def _visibility(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        sample = Sample.of(request, arrays)
        inputs = self._prepared([sample])
        row = at % inputs["input_ids"].shape[1]
        with negated(self.model, row):
            recording = self._scored([sample], inputs)
        recording.add("perturbed", np.array([row], np.int64))
        return recording

    def _batch(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._score([Sample.of(request, arrays), Sample.companion_of(request, arrays)])

    def _batch_last(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._score([Sample.companion_of(request, arrays), Sample.of(request, arrays)], ours=1)

    def _padding(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        sample = Sample.of(request, arrays)
        inputs = padded(self._prepared([sample]), at, self.processor.tokenizer.pad_token_id)
        return self._scored([sample], inputs)

    def _chunked(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        return self._score([Sample.of(request, arrays)], score=partial(generated, prefill_chunk_size=step(at)))

    def _static_cache(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._score([Sample.of(request, arrays)], score=partial(generated, cache_implementation="static"))

    def _forward(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        """All that the processor made, in one call of the model: what training does."""
        return self._score([Sample.of(request, arrays)], score=partial(plain, use_cache=False))

    def _decode(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        cache = DynamicCache(config=self.model.config)
        score = partial(token_by_token, self.forward, at=at, cache=cache)
        return self._score([Sample.of(request, arrays)], score=score)

    def go_on(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Write a continuation with `generate`, or score one."""
        sample = Sample.of(request, arrays)
        inputs = self._prepared([sample])
        if request.generate:
            assert request.case.continuation is not None
            recording = Recording()
            recording.add("continuation", written(self.model, inputs, request.generate, request.case.continuation.seed))
            return recording
        score = None
        if request.singly:
            cache = DynamicCache(config=self.model.config)
            score = partial(token_by_token, self.forward, at=len(request.continuation) - 1, cache=cache)
        return self._scored([sample], continued(inputs, request.continuation), score=score)

    def _repeat(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        self._score([Sample.before(request, arrays)])
        return self._score([Sample.of(request, arrays)])

    def _chat(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        if request.case.form != "chat":
            raise Unsupported(f"a case of form {request.case.form} is no chat")
        sample = Sample.of(request, arrays)
        inputs = self._checked(partial(by_chat, self.processor, messages(request.case), tools(request.case), sample))
        return self._scored([sample], inputs)

    def _ids(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        sample = Sample.of(request, arrays)
        if sample.media != type(sample.media)():
            raise Unsupported("the processor takes text only, so ids have no media")
        return self._score([replace(sample, expanded=True)])

    def _expanded(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._score([Sample.expanded_of(request, arrays)])

    def _tensor(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        true, dtype, device = self.checkpoint, self.dtype, self.device
        with tempfile.TemporaryDirectory() as directory:
            path = with_changed_tensor(true, at, Path(directory))
            try:
                self.load(path, dtype=dtype, device=device)
                return self.run(replace(request, probe=False), arrays)
            finally:
                self.load(true, dtype=dtype, device=device)

    def _predicted(self, image: Array, budget: int) -> int:
        """The processor's own arithmetic, called by itself.

        Not `_get_num_multimodal_tokens`: in 5.19 that writes the budget into class-level defaults.
        """
        patch_px, pooling = (getattr(self.processor.image_processor, n) for n in ("patch_size", "pooling_kernel_size"))
        height_px, width_px = image.shape[:2]
        target = get_aspect_ratio_preserving_size(height_px, width_px, patch_px, budget * pooling**2, pooling)
        return int(target[0] * target[1] // (patch_px * pooling) ** 2)

    def _processor_state(self) -> Array:
        """A digest of all that a call could leave behind: tokenizer, processor, defaults of their classes."""
        processor, tokenizer = self.processor, self.processor.tokenizer
        fast = tokenizer.backend_tokenizer
        state = [
            processor.to_dict(),
            [tokenizer.init_kwargs, tokenizer.special_tokens_map, len(tokenizer), tokenizer.padding_side],
            [fast.padding, fast.truncation, sorted(tokenizer.added_tokens_decoder)],
            processor.valid_processor_kwargs._defaults,
            *({k: v for k, v in vars(type(part)).items() if _is_plain(v)} for part in _parts(processor)),
        ]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).digest()
        return np.frombuffer(digest[:8], np.uint64)


def _resizing_by(library: str, checkpoint: Path) -> Any:
    """The checkpoint's image processor on another library.

    Raises:
        Unsupported: transformers has none, and would take its usual one in silence.
    """
    found = AutoImageProcessor.from_pretrained(checkpoint, backend=library, local_files_only=True)
    if not type(found).__name__.lower().endswith(library):
        raise Unsupported(f"transformers has no image processor on {library} for it, only {type(found).__name__}")
    return found


def _parts(processor: Any) -> list[Any]:
    return [getattr(processor, name) for name in ("image_processor", "video_processor", "feature_extractor")]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, list, dict, tuple))


_WAYS: dict[ProbeKind, Callable[[HfEngine, Request, Mapping[str, Array], int], Recording]] = {
    "visibility": HfEngine._visibility,
    "batch": HfEngine._batch,
    "batch_last": HfEngine._batch_last,
    "padding": HfEngine._padding,
    "chunked": HfEngine._chunked,
    "decode": HfEngine._decode,
    "static_cache": HfEngine._static_cache,
    "forward": HfEngine._forward,
    "repeat": HfEngine._repeat,
    "chat": HfEngine._chat,
    "ids": HfEngine._ids,
    "expanded": HfEngine._expanded,
    "tensor": HfEngine._tensor,
}
