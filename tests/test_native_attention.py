"""Attention as one kernel over blocks, as a GPU runs it, gives what the tiles of the CPU give."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from harness.native import attention, flex
from harness.native.attention import Plan, attend, attend_next, attend_tiles, plan, whole
from harness.native.flex import BLOCK, attend_blocks, block_mask
from harness.native.masks import Spans, causal, sliding

CPU = torch.device("cpu")
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


def image_window(tokens: int, *, window: int, past: int = 0) -> Spans:
    """A sliding layer over text with two images, one of them longer than the window."""
    types = torch.zeros(tokens, dtype=torch.long)
    types[3 : 3 + window + 5] = types[-20:-4] = 1
    return sliding(types, window, vision_blocks=True, past=past)


PLANS = {
    "images and a window": lambda: plan([image_window(300, window=40)], CPU),
    "a chunk after others": lambda: plan([image_window(200, window=60, past=59)], CPU),
    "images side by side": lambda: whole([9, 144, 90, 200], CPU),
    "causal": lambda: plan([causal(130, past=7)], CPU),
    "one block exactly": lambda: plan([image_window(BLOCK, window=50)], CPU),
}


def operands(spans: Spans, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads and as many keys and values, of two, as the spans reach."""
    generator = torch.Generator().manual_seed(0)
    sizes = (len(spans.first), 4), (int(spans.last.max()) + 1, 2), (int(spans.last.max()) + 1, 2)
    queries, keys, values = (torch.randn(*size, 16, generator=generator, dtype=dtype) for size in sizes)
    return queries, keys, values


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes half a minute, and on a CPU it refuses float64."""
    monkeypatch.setattr(flex, "kernel", lambda: flex_attention)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", PLANS)
def test_blocks_give_what_tiles_give(name: str, dtype: torch.dtype) -> None:
    """Windows, image blocks, packs and chunks: the two ways agree within rounding."""
    cut = PLANS[name]()
    tensors = operands(cut.spans, dtype)
    assert (attend_blocks(*tensors, cut.blocks) - attend_tiles(*tensors, cut)).abs().max() <= LIMIT[dtype]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_window_one_longer_is_seen() -> None:
    """Negative control: blocks of another window than the tiles' differ from them."""
    cut, other = (plan([image_window(300, window=window)], CPU) for window in (40, 41))
    tensors = operands(cut.spans, torch.float64)
    assert (attend_blocks(*tensors, other.blocks) - attend_tiles(*tensors, cut)).abs().max() > 1e-2


@pytest.mark.parametrize("name", PLANS)
def test_the_blocks_are_those_of_the_square(name: str) -> None:
    """Worked out from the ends of spans, the blocks seen in part and as a whole are those that PyTorch finds."""
    spans = PLANS[name]().spans
    ours = block_mask(spans)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= spans.first[query]) & (key <= spans.last[query])

    sizes = len(spans.first), int(spans.last.max()) + 1
    theirs = create_block_mask(visible, None, None, *sizes, device="cpu", BLOCK_SIZE=BLOCK)
    for name_of_part in ("kv_num_blocks", "full_kv_num_blocks", "kv_indices", "full_kv_indices"):
        counts = theirs.kv_num_blocks if "full" not in name_of_part else theirs.full_kv_num_blocks
        assert counts is not None
        mine, other = getattr(ours, name_of_part), getattr(theirs, name_of_part)
        if "indices" in name_of_part:
            mine, other = (torch.where(torch.arange(x.shape[-1]) < counts[..., None], x, -1) for x in (mine, other))
        assert torch.equal(mine, other), name_of_part


def test_the_cpu_takes_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a GPU no block is made."""

    def refuse(*_: object) -> None:
        raise AssertionError("blocks were used")

    monkeypatch.setattr(attention, "attend_blocks", refuse)
    cut: Plan = plan([image_window(300, window=40)], CPU)
    assert len(cut.tiles) > 1
    assert attend(*operands(cut.spans, torch.float32), cut).shape == (300, 64)


@pytest.mark.parametrize("dtype", LIMIT)
def test_the_next_token_sees_all_keys(dtype: torch.dtype) -> None:
    """One query by its own path is one query by the tiles."""
    cut = plan([causal(1, past=40)], CPU)
    tensors = operands(cut.spans, dtype)
    assert (attend_next(*tensors) - attend_tiles(*tensors, cut)).abs().max() <= LIMIT[dtype]


def test_the_compiler_stays_out_of_a_process_that_does_not_compile() -> None:
    """Importing the native engine brings no compiler with it, which is a tenth of its peak memory."""
    code = "import sys, harness.native; print([name for name in sys.modules if name.startswith('torch._inductor')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
