"""Divergences of a full vocabulary from hidden states: beside their two products alone, and beside what others do.

    uv run python benchmarks/kl.py [--quick] [--threads N] [--json FILE]

Vocabulary 262,144, hidden size 1,536, soft cap 30, 4,096 tokens (256 with --quick), random float32; on the CPU, and on
a GPU where there is one. Ratios are of times measured in this run: `ours` and the two products take turns. Others get
fewer tokens, where memory or patience forbids more, and are then compared token by token; the table says how many.
With one thread the times are those of the processor, which others cannot slow by much, else of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.comparators.divergence import PairStatistics, statistics
from harness.comparators.head import VOCABULARY_CHUNK, OutputHead

CAP = 30.0
APART = 4e-5
"""Between the two sides' states: a KL of 2e-9 nats, which float32 alone could not show."""

MATERIALISED_TOKENS = 512
"""Of `kl_div` on whole logits: four float32 matrices of 0.5 GiB each."""

OBJECT_SECONDS = 60.0
EXACT_TOKENS = 8
TURNS = 3
WARM_TOKENS = 128


@dataclass(frozen=True)
class Sizes:
    """Of one measurement."""

    vocabulary: int = 262_144
    hidden: int = 1_536
    tokens: int = 4_096


@dataclass(frozen=True)
class Row:
    """Seconds of so many tokens, and how many times as long a token takes as in `ours`."""

    name: str
    tokens: int
    seconds: float
    times_ours: float

    def line(self) -> str:
        """The row in words."""
        return f"{self.name:58} {self.tokens:6,} tokens {self.seconds:9.3f} s   x{self.times_ours:,.2f} of ours a token"


@dataclass(frozen=True)
class Inputs:
    """Both sides' states and the head, on one device."""

    left: Tensor
    right: Tensor
    head: OutputHead

    @classmethod
    def drawn(cls, sizes: Sizes, device: str) -> Inputs:
        """Random ones, the same on every machine."""
        generator = torch.Generator().manual_seed(0)
        left = torch.randn(sizes.tokens, sizes.hidden, generator=generator)
        right = left + APART * torch.randn(sizes.tokens, sizes.hidden, generator=generator)
        weight = torch.randn(sizes.vocabulary, sizes.hidden, generator=generator).mul_(2 / sizes.hidden**0.5)
        return cls(left.to(device), right.to(device), OutputHead(weight.to(device), CAP))

    def ours(self) -> PairStatistics:
        """Everything that the harness takes of a pair: KL both ways, JS, entropies, likeliest tokens."""
        return statistics([self.left, self.right], self.head, VOCABULARY_CHUNK).pairs[0, 1]

    def products(self) -> None:
        """The two products alone, no result kept, in chunks of the length that is fastest on a CPU."""
        for weight in torch.split(self.head.weight, 2 * VOCABULARY_CHUNK):
            for side in (self.left, self.right):
                torch.mm(side, weight.T)

    def materialised(self, tokens: int) -> Tensor:
        """torch's own `kl_div` on logits of the whole vocabulary; KL alone, in float32."""
        sides = (functional.log_softmax(self.logits(side[:tokens]), dim=1) for side in (self.left, self.right))
        left, right = sides
        return functional.kl_div(right, left, reduction="none", log_target=True).sum(1)

    def logits(self, states: Tensor) -> Tensor:
        """All of them, capped."""
        return (states @ self.head.weight.T).div_(CAP).tanh_().mul_(CAP)

    def exact(self, tokens: int) -> Tensor:
        """KL in float64 throughout, as ln E_left[exp(E_left[d] - d)], in which nothing cancels."""
        sides = []
        for states in (self.left[:tokens].double(), self.right[:tokens].double()):
            parts = [CAP * torch.tanh(states @ part.double().T / CAP) for part in torch.split(self.head.weight, 16_384)]
            sides.append(torch.cat(parts, dim=1).log_softmax(1))
        p, gap = sides[0].exp(), sides[0] - sides[1]
        return torch.log1p((p * torch.expm1((p * gap).sum(1, keepdim=True) - gap)).sum(1))


def seconds(work: Callable[[], Any]) -> float:
    """Of one call, on a GPU until it has finished."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    _finish()
    start = clock()
    work()
    _finish()
    return clock() - start


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def vllm_objects(vocabulary: int, limit_s: float) -> tuple[int, float]:
    """Positions and processor seconds of vLLM's own code making `prompt_logprobs=-1` of two engines.

    Made of what its worker sends. What the worker computes first (log-softmax, sorting out ranks) is not counted, nor
    what a reader does with the objects; without a tokenizer, as with `detokenize=False`.
    """
    from vllm.logprobs import create_prompt_logprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    ids = torch.arange(vocabulary, dtype=torch.int32)[None]
    sent = LogprobsTensors(ids, torch.randn(1, vocabulary), torch.ones(1, dtype=torch.int32))
    done, spent = 0, 0.0
    while spent < limit_s:
        start = time.process_time()
        for _engine in range(2):
            processor = LogprobsProcessor(
                tokenizer=None,
                logprobs=None,
                prompt_logprobs=create_prompt_logprobs(False),
                cumulative_logprob=None,
                num_logprobs=None,
                num_prompt_logprobs=vocabulary,
            )
            processor._update_prompt_logprobs(sent)
        spent += time.process_time() - start
        done += 1
    return done, spent


def peak_bytes(inputs: Inputs, sizes: Sizes) -> int:
    """Memory that `ours` needs beyond its inputs: by the allocator of a GPU, else by the system's high-water mark."""
    if inputs.left.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        inputs.ours()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # The mark starts again from what is in use.
    before = _memory("VmRSS")
    inputs.ours()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in status if line.startswith(name)).split()[1])


def measure(sizes: Sizes, device: str, object_s: float) -> Iterator[tuple[str, Any]]:
    """Name and value of everything that is measured on one device, as soon as it is."""
    inputs = Inputs.drawn(sizes, device)
    few = slice(WARM_TOKENS)
    Inputs(inputs.left[few], inputs.right[few], inputs.head).ours()  # Libraries keep what they take at a first call.
    yield "peak_extra_bytes", peak_bytes(inputs, sizes)
    yield "logits_bytes", 2 * 4 * sizes.tokens * sizes.vocabulary
    turns = [(seconds(inputs.products), seconds(inputs.ours), seconds(inputs.products)) for _ in range(TURNS)]
    yield "ratio_to_products_turns", [2 * ours / (before + after) for before, ours, after in turns]
    products = float(np.median([s for before, _, after in turns for s in (before, after)]))
    ours = float(np.median([turn[1] for turn in turns]))
    yield "ratio_to_products", ours / products
    rows = [Row("ours: KL both ways, JS, entropies, top 5", sizes.tokens, ours, 1.0)]
    rows.append(Row("the two products alone", sizes.tokens, products, products / ours))
    tokens = min(MATERIALISED_TOKENS, sizes.tokens)
    whole = seconds(lambda: inputs.materialised(tokens))
    rows.append(Row("kl_div on materialised logits: KL alone", tokens, whole, (whole / tokens) / (ours / sizes.tokens)))
    done, object_wall = vllm_objects(sizes.vocabulary, object_s)
    times = (object_wall / done) / (ours / sizes.tokens)
    rows.append(Row("vLLM's prompt_logprobs objects, both engines", done, object_wall, times))
    yield "rows", [asdict(row) for row in rows]
    for row in rows:
        print(row.line(), flush=True)
    yield from errors(inputs)


def errors(inputs: Inputs) -> Iterator[tuple[str, Any]]:
    """Largest relative errors of KL beside float64, of ours and of float32 logits."""
    tokens = min(EXACT_TOKENS, len(inputs.left))
    exact, few = inputs.exact(tokens), Inputs(inputs.left[:tokens], inputs.right[:tokens], inputs.head)
    yield "kl_nats", float(exact.mean())
    yield "relative_error_ours", float((few.ours().left_right / exact - 1).abs().max())
    yield "relative_error_kl_div", float((few.materialised(tokens) / exact - 1).abs().max())


def main() -> None:
    """Print everything as soon as it is measured, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 tokens, and two seconds of vLLM's objects")
    parser.add_argument("--vocabulary", type=int, default=Sizes.vocabulary)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    sizes = Sizes(chosen.vocabulary, tokens=chosen.tokens or (256 if chosen.quick else Sizes.tokens))
    result: dict[str, Any] = {"sizes": asdict(sizes), "torch": torch.__version__, "threads": torch.get_num_threads()}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(f"{device}: {sizes}, {torch.get_num_threads()} threads, load {os.getloadavg()}", flush=True)
        found: dict[str, Any] = {}
        for name, value in measure(sizes, device, 2.0 if chosen.quick else OBJECT_SECONDS):
            found[name] = value
            if name != "rows":
                print(f"  {name} {value:,.6g}" if isinstance(value, (int, float)) else f"  {name} {value}", flush=True)
        result[device] = found
    result["load"] = os.getloadavg()
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
