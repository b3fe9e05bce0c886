"""Decoding in both implementations: some samples, each a token further at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.made_up import Sizes, hf_inputs, prepare
from benchmarks.turns import Row, Turn, again, products, seconds, take_turn
from harness.native import Gemma4, Prepared

BLOCK = 8
"""Tokens that one implementation reads before it is the other's turn."""


class NativeReader:
    """Samples that have read a context; `read` reads on, each time the likeliest token."""

    def __init__(self, model: Gemma4, context: Prepared, samples: int) -> None:
        self.model = model
        self.caches = [model.new_cache() for _ in range(samples)]
        hidden = model.forward_packed([context] * samples, caches=self.caches)
        self.logits = model.logits(torch.stack([rows[-1] for rows in hidden]))

    def read(self, tokens: int) -> None:
        """So many tokens further."""
        for _ in range(tokens):
            hidden = self.model.decode_batch(self.logits.argmax(-1).tolist(), self.caches)
            self.logits = self.model.logits(hidden)


class HFReader:
    """The same in the reference."""

    def __init__(self, model: Any, context: Prepared, samples: int) -> None:
        self.model = model
        self.out = model(**hf_inputs(context, 0, samples), use_cache=True, logits_to_keep=1)

    def read(self, tokens: int) -> None:
        """So many tokens further."""
        for _ in range(tokens):
            step = self.out.logits[:, -1].argmax(-1)[:, None]
            self.out = self.model(input_ids=step, past_key_values=self.out.past_key_values, use_cache=True)


def turns(
    models: tuple[Gemma4, Any], context: Prepared, tokens: int, samples: int, calls: list[Any], repeats: int
) -> Iterator[Turn]:
    """Each turn is the same stretch of text, in which both take turns every few tokens."""
    for _ in range(repeats + 1):
        native, hf = NativeReader(models[0], context, samples), HFReader(models[1], context, samples)
        total = dict.fromkeys(("native_s", "hf_s", "bare_s"), 0.0)
        for number, start in enumerate(range(0, tokens, BLOCK)):
            block = min(BLOCK, tokens - start)
            works = {
                "native_s": partial(native.read, block),
                "hf_s": partial(hf.read, block),
                "bare_s": partial(again, calls, block),
            }
            for name, spent in take_turn(works, backwards=number % 2 == 1).items():
                total[name] += spent
        yield Turn(**total)


def decode_rows(models: dict[str, Gemma4], theirs: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """One sample, then several at once, by the eager and the compiled model.

    The bare products are those of the eager model's first token, times the number of tokens.
    """
    eager = models["eager"]
    context, tokens = prepare(eager, 0, sizes.context_tokens, 70), sizes.decode_tokens
    for samples in (1, sizes.decode_samples):
        reader = NativeReader(eager, context, samples)
        calls = products(partial(reader.read, 1))
        for name, model in models.items():
            title = f"decode, {tokens} tokens, {samples} at once, {name}"
            yield Row.of(title, turns((model, theirs), context, tokens, samples, calls, repeats))


@dataclass(frozen=True)
class Floor:
    """What one token cannot do without: its weights, read once."""

    weights_bytes: int
    read_s: float
    library_s: float

    def line(self) -> str:
        """The floor in words."""
        size, speed = self.weights_bytes / 1e6, self.weights_bytes / 1e9 / self.read_s
        return (
            f"weights of a token: {size:.1f} MB; read once {self.read_s * 1e3:.2f} ms ({speed:.1f} GB/s); "
            f"multiplied by the library {self.library_s * 1e3:.2f} ms"
        )


def floor(model: Gemma4, repeats: int) -> Floor:
    """Seconds to add up every matrix that a token is multiplied with, and to multiply it with a vector; the best."""
    weights: list[Tensor] = [matrix for matrix in model.network.decoder.parameters() if matrix.ndim == 2]
    vectors = [torch.ones(matrix.shape[1], dtype=matrix.dtype) for matrix in weights]
    works = {
        "read_s": lambda: [matrix.sum() for matrix in weights],
        "library_s": lambda: [torch.mv(*pair) for pair in zip(weights, vectors, strict=True)],
    }
    best = {name: min(seconds(work) for _ in range(5 * repeats)) for name, work in works.items()}
    return Floor(sum(matrix.nbytes for matrix in weights), **best)
