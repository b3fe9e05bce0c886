"""P3: the native model on single-feature checkpoints moves exactly where the mask rule says, and a wrong rule shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.checkpoint import Checkpoint
from harness.comparators import Context, Limits, Side, visibility
from harness.comparators.kl import OutputHead
from harness.native import Gemma4
from harness.schema import Observation
from harness.spec import LayerRule, block_numbers, reached, visible
from harness.zoo import FEATURE_NAMES, NAMES, ensure

ZOO = Path(".harness/zoo")
IMAGE = np.full((60, 90, 3), 120, dtype=np.uint8)
MASKED = [name for name in FEATURE_NAMES if name.startswith(("one-sliding", "one-full", "one-unified"))]


class Negate:
    """Negates one row of what enters the decoder."""

    def __init__(self, position: int | None) -> None:
        self.position = position

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, or a copy with that row negated."""
        if name != "merged_embeddings" or self.position is None:
            return tensor
        changed = tensor.clone()
        changed[self.position] *= -1
        return changed


@cache
def model(name: str) -> tuple[Gemma4, Context]:
    """A checkpoint in the native implementation, and what comparators know of it."""
    checkpoint = Checkpoint.open(ensure(name, ZOO))
    context = Context(checkpoint.media_tokens, OutputHead.of(checkpoint), Limits.of("float32"), checkpoint.layers)
    return Gemma4.load(checkpoint.path, dtype=torch.float32), context


def sides(name: str, position: int) -> tuple[Side, Side]:
    """The plain run and the probe of a prompt with an image in the middle; positions count from the end if negative."""
    native, context = model(name)
    image = context.tokens.image
    prepared = native.prepare([2, *range(100, 112), image, *range(120, 132)], [IMAGE], max_soft_tokens=70)
    place = position % len(prepared.token_ids)
    made = []
    for which in (None, place):
        arrays = {
            "prompt_ids": prepared.token_ids.numpy(),
            "hidden": native.forward(prepared, tap=Negate(which)).numpy(),
            "perturbed": np.array([place]),
        }
        made.append(Side(Observation("case", "native", "ok", probe=which is not None), arrays))
    return made[0], made[1]


@pytest.mark.parametrize("name", [*NAMES, *FEATURE_NAMES])
@pytest.mark.parametrize("position", [1, 12, 14, 30, -14, -3])
def test_what_moves_is_what_the_rule_says(name: str, position: int) -> None:
    """Text before, first and inner soft tokens, text behind: on every tiny model."""
    verdicts = list(visibility.check(*sides(name, position), model(name)[1]))
    assert {verdict.verdict for verdict in verdicts} == {"agree"}, verdicts


def wrong(rule: LayerRule, window: int | None) -> LayerRule:
    """The rule with blocks the other way round, or with another window."""
    if window:
        return replace(rule, window=rule.window and window)
    return replace(rule, blocks=not rule.blocks)


@pytest.mark.parametrize("name", [name for name in MASKED if name != "one-full-blocks"])
@pytest.mark.parametrize("window", [None, 3, 5])
def test_a_wrong_mask_is_seen(name: str, window: int | None) -> None:
    """The same runs judged by a rule with causal images, or a window one off, give a finding at some position."""
    context = model(name)[1]
    judged = replace(context, layers=tuple(wrong(rule, window) for rule in context.layers))
    found = [v for position in (12, 30) for v in visibility.check(*sides(name, position), judged)]
    assert any(verdict.verdict == "differ" for verdict in found)


def test_a_row_that_is_no_number_has_moved() -> None:
    """NaN in a row that may not move is a finding, not nothing."""
    plain, probed = sides("one-sliding-causal", 30)
    hidden = probed.arrays["hidden"].copy()
    hidden[3] = np.nan
    broken = Side(probed.observation, {**probed.arrays, "hidden": hidden})
    stages = {v.stage for v in visibility.check(plain, broken, model("one-sliding-causal")[1]) if v.verdict == "differ"}
    assert stages == {"visibility.too_much"}


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "agree"), (1e-7, "agree"), (1e-3, "differ")])
def test_rounding_of_everybody_hides_no_row_that_should_move(noise: float, verdict: str) -> None:
    """Two rows of an image that only move as those before it do are counted, and those that see the row are not."""
    name = "one-sliding-blocks"
    plain, probed = sides(name, 30)
    rng = np.random.default_rng(0)
    still = probed.arrays["hidden"].copy()
    still[[28, 29]] = plain.arrays["hidden"][[28, 29]]
    for hidden, too_little in ((probed.arrays["hidden"], "agree"), (still, "differ")):
        moved = hidden * (1 + noise * rng.choice([-1, 1], (len(hidden), 1)))
        side = Side(probed.observation, {**probed.arrays, "hidden": moved.astype(np.float32)})
        stages = {v.stage: v for v in visibility.check(plain, side, model(name)[1])}
        assert stages["visibility.too_much"].verdict == verdict
        if verdict == "agree":
            found = stages["visibility.too_little"]
            assert (found.verdict, found.measured) == (too_little, 2 if too_little == "differ" else 0)


def test_the_rule_on_a_page() -> None:
    """Six tokens, an image of three in the middle, a window of two: written out by hand."""
    blocks = np.array([0, 1, 1, 1, 0, 0])
    sliding, full = LayerRule(2, True, False, 0), LayerRule(None, True, False, 1)
    assert [np.flatnonzero(row).tolist() for row in visible(blocks, sliding)] == [
        [0], [0, 1, 2, 3], [1, 2, 3], [2, 3], [3, 4], [4, 5],
    ]  # fmt: skip
    assert visible(blocks, full).sum() == 21
    assert np.flatnonzero(reached(3, blocks, (sliding,))).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(reached(0, blocks, (replace(sliding, silent=True),))).tolist() == [0]


def test_a_shared_layer_reads_its_donor() -> None:
    """Keys of a donor are older than what the layers between have spread."""
    blocks = np.zeros(6, dtype=np.int64)
    own, shared = LayerRule(2, False, False, 0), LayerRule(2, False, False, 0)
    assert np.flatnonzero(reached(0, blocks, (own, shared))).tolist() == [0, 1]
    assert np.flatnonzero(reached(0, blocks, (own, replace(shared, donor=1)))).tolist() == [0, 1, 2]


def test_blocks_are_runs_of_one_medium() -> None:
    """Adjacent frames have marks between them; an image directly behind a frame is a block of its own."""
    _, context = model("one-sliding-blocks")
    tokens = context.tokens
    ids = [2, tokens.boi, tokens.video, tokens.video, tokens.image, tokens.eoi, tokens.image]
    assert block_numbers(ids, tokens).tolist() == [0, 0, 1, 1, 2, 0, 3]


@pytest.mark.parametrize("lost", ["perturbed", "rows"])
def test_a_probe_that_recorded_too_little_is_not_comparable(lost: str) -> None:
    """Which row was negated, or some hidden states: nothing can be said of attention, and nothing breaks."""
    plain, probed = sides("one-sliding-blocks", 12)
    arrays = dict(probed.arrays)
    arrays |= {"hidden": arrays["hidden"][:-1]} if lost == "rows" else {}
    if lost == "perturbed":
        del arrays["perturbed"]
    (verdict,) = visibility.check(plain, replace(probed, arrays=arrays), model("one-sliding-blocks")[1])
    assert (verdict.verdict, bool(verdict.reason)) == ("not comparable", True)
