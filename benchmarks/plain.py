"""What the harness is measured against: the same cases through HF and vLLM by plain calls, and both without their taps.

    uv run python -m benchmarks.plain MODEL CASES SEED

Prints JSON. One process, one engine after the other, KL from vLLM's `prompt_logprobs=-1` objects, as a script would do
it that knows no hidden states. Prompts are those that the adapters make; cases with sound or video are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import stats

from harness.checkpoint import Checkpoint
from harness.engines.base import Rejected
from harness.engines.hf import HfEngine
from harness.engines.inputs import Media, Sample
from harness.engines.vllm import VllmEngine
from harness.fleet import Options
from harness.media import arrays as media_arrays
from harness.render import texts
from harness.schema import Case, Request
from harness.session import Plan, generated, locate

HOOK_TURNS = 60


def requests(model: str, count: int, seed: int) -> list[tuple[Request, dict[str, Any]]]:
    """The plain runs of a run's cases without sound and video, with their media."""
    plan = Plan(models=(model,), cases=count, seed=seed, properties=("P6",))
    checkpoint = Checkpoint.open(locate(model))

    def request(case: Case) -> Request:
        template = checkpoint.chat_template if case.form == "chat" else ""
        words = texts(case, template, waves=checkpoint.takes_waves)
        return Request(case, words["prompt"], media_path="", arrays_path="")

    cases = [replace(case, dtype="", probe=None) for case in generated(plan) if not (case.audios or case.videos)]
    return [(request(case), media_arrays(case.parts)) for case in cases]


def plain_kl(hf: HfEngine, vllm: VllmEngine, request: Request, arrays: dict[str, Any]) -> float:
    """The largest KL of a prompt's positions, from the logits of one and the objects of the other."""
    inputs = hf._prepared([Sample.of(request, arrays)])
    with torch.inference_mode():
        left = torch.log_softmax(hf.forward(hf.model, inputs, use_cache=False)[0].double(), dim=-1).numpy()
    prompt = vllm.prompt(request, Media.of(request.case.parts, arrays))
    vllm.tap.clear()
    (output,) = vllm.score(prompt, prompt_logprobs=-1)
    right = np.full((len(output.prompt_token_ids) - 1, left.shape[1]), -np.inf)
    for row, entry in zip(right, output.prompt_logprobs[1:], strict=True):
        for token, logprob in entry.items():
            row[token] = logprob.logprob
    if len(right) + 1 != len(left):
        return float("nan")  # Another prompt: a finding of the harness, nothing to compare here.
    with np.errstate(invalid="ignore"):
        return float(np.sum(np.exp(left[:-1]) * (left[:-1] - right), axis=1).max(initial=0.0))


def in_turns(without: Callable[[], None], within: Callable[[], None], work: Callable[[], object]) -> dict[str, float]:
    """Processor seconds without and with a tap, in turns, and the part that it adds: medians, with a 95 % interval."""
    spent: dict[str, list[float]] = {"without_s": [], "with_s": []}
    ways = [("without_s", without), ("with_s", within)]
    for turn in range(HOOK_TURNS + 1):
        for name, prepare in ways[:: 1 if turn % 2 else -1]:
            prepare()
            start = time.process_time()
            work()
            if turn:
                spent[name].append(time.process_time() - start)
    ratios = [b / a - 1 for a, b in zip(spent["without_s"], spent["with_s"], strict=True)]
    within_95 = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    added = {"added": median(ratios), "added_low": float(within_95.low), "added_high": float(within_95.high)}
    return {name: median(values) for name, values in spent.items()} | added


def hooks(hf: HfEngine, vllm: VllmEngine, request: Request, arrays: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the taps add to one forward pass of HF, and to one request of vLLM."""
    inputs, text_model = hf._prepared([Sample.of(request, arrays)]), hf.model.model.language_model
    kept = dict(text_model._forward_hooks)

    def hooked() -> None:
        hf.seen.clear()
        text_model._forward_hooks.update(kept)

    def bare(model: Any) -> None:
        """The model as vLLM has it: the tap's functions stand on the instance, over those of its class."""
        for name in ("embed_multimodal", "embed_input_ids", "compute_logits"):
            vars(model).pop(name, None)
        model._forward_hooks.clear()

    def tapped() -> None:
        vllm.llm.apply_model(bare)
        vllm.tap.clear()
        vllm.llm.apply_model(vllm.tap.attach)

    def forward() -> None:
        with torch.inference_mode():
            hf.forward(hf.model, inputs, use_cache=False)

    media = Media.of(request.case.parts, arrays)
    return {
        "hf": in_turns(text_model._forward_hooks.clear, hooked, forward),
        "vllm": in_turns(
            lambda: vllm.llm.apply_model(bare) and None, tapped, lambda: vllm.score(vllm.prompt(request, media))
        ),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    model, count, seed = arguments[0], int(arguments[1]), int(arguments[2])
    drawn = requests(model, count, seed)
    hf, vllm = HfEngine(), VllmEngine()
    for engine in (hf, vllm):
        engine.load(locate(model), dtype=Options.dtype, device=Options.device)
    vllm.llm.llm_engine.model_config.max_logprobs = -1
    walls, tokens, ran = [], [], []
    for request, arrays in drawn:
        start = time.perf_counter()
        try:
            plain_kl(hf, vllm, request, arrays)
        except (Rejected, RuntimeError, ValueError):
            continue  # What an engine cannot do is the harness's to tell.
        walls.append(time.perf_counter() - start)
        tokens.append(len(vllm.tap.hidden))
        ran.append((request, arrays))
    longest = ran[int(np.argmax(tokens))]
    result = {
        "drawn": len(drawn),
        "cases": len(walls),
        "tokens": sum(tokens),
        "wall_s": sum(walls),
        "cases_per_minute": 60 * len(walls) / sum(walls),
        "hooks": hooks(hf, vllm, *longest),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
