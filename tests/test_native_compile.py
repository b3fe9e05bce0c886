"""The compiled native model gives the hidden states of the one that is not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.native import Gemma4
from harness.native.layers import RMSNorm
from harness.zoo import ensure

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
# The compiler adds in another order.
LIMIT = 3e-5


@cache
def load(*, compiled: bool) -> Gemma4:
    """The same checkpoint, compiled or not."""
    return Gemma4.load(ensure("tiny-31b", ZOO), dtype=torch.float32, compile=compiled)


def run(model: Gemma4, words: str) -> Tensor:
    """The hidden states of a prompt with an image, then of three tokens decoded after it (T, H)."""
    image = np.random.default_rng(3).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    prepared, memory = model.prepare(f"<bos>a <|image|> {words}", [image], max_soft_tokens=70), model.new_cache()
    parts = [model.forward(prepared, cache=memory), *(model.decode([token], memory) for token in (5, 6, 7))]
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_hidden_states() -> None:
    """Prompts of two lengths with an image, and tokens decoded after them, within float32 noise of the eager model."""
    for words in ("is seen", "is seen, and then there are more words"):
        eager, compiled = run(load(compiled=False), words), run(load(compiled=True), words)
        error = (eager - compiled).norm(dim=-1) / eager.norm(dim=-1)
        assert error.max() <= LIMIT
        assert not torch.equal(eager, compiled), "nothing was compiled"


@pytest.mark.filterwarnings("ignore")
def test_samples_decoded_together_are_the_same_compiled() -> None:
    """Two samples of unequal length, each three tokens further, as by the eager model."""
    rows = []
    for compiled in (False, True):
        model = load(compiled=compiled)
        caches = [model.new_cache(), model.new_cache()]
        for words, memory in zip(("<bos>a", "<bos>and some more words"), caches, strict=True):
            model.forward(model.prepare(words, max_soft_tokens=70), cache=memory)
        rows.append(torch.cat([model.decode_batch([token, token + 1], caches) for token in (5, 6, 7)]))
    error = (rows[0] - rows[1]).norm(dim=-1) / rows[0].norm(dim=-1)
    assert 0 < error.max() <= LIMIT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 64), (2, 4, 48), (1, 512)])
def test_the_norm_is_its_formula(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Wide inside, rounded once at the end: the bits of the formula, or in float64 and float32 its last digit."""
    generator = torch.Generator().manual_seed(0)
    norm, x = RMSNorm(shape[-1], 1e-6), (30 * torch.randn(shape, generator=generator)).to(dtype)
    norm.weight = torch.nn.Parameter(torch.randn(shape[-1], generator=generator).to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    formula = x.to(wide) * torch.rsqrt(x.to(wide).square().mean(-1, keepdim=True) + 1e-6) * norm.weight.to(wide)
    assert torch.allclose(norm(x), formula.to(dtype), rtol=2 * torch.finfo(wide).eps, atol=0)
