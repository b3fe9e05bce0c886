"""The reference rule against transformers' own function for every size up to 3,000 x 3,000 px and every budget.

That is 45 million sizes. The very functions that are used elsewhere are called, one size at a time: a rule written once
more for arrays would have to be tested itself. No size is left out for being another one turned.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from harness import native
from harness.spec import PATCH_PX, POOLING, SIDE_PX, SOFT_TOKEN_BUDGETS, reference_grid

SIDES_PX = range(1, 3001)
# Heights of one piece of work: enough that handing it over costs nothing, few enough that no process waits for another.
HEIGHTS = 50
Rule = Callable[[int, int, int], tuple[int, int]]
Size = tuple[int, int, int]


def spec_size(height_px: int, width_px: int, budget: int) -> tuple[int, int]:
    """The resized (height, width) by the rule that engines are judged by."""
    columns, rows = reference_grid(width_px, height_px, budget)
    return rows * SIDE_PX, columns * SIDE_PX


def sweep(heights: range, *rules: Rule) -> tuple[int, list[list[Size]]]:
    """How many (height, width, budget) were compared, and at which of them each rule is not the reference's."""
    compared, wrong = 0, [list[Size]() for _ in rules]
    for budget in SOFT_TOKEN_BUDGETS:
        constants = (repeat(PATCH_PX), repeat(budget * POOLING**2), repeat(POOLING))
        for high in heights:
            expected = list(map(get_aspect_ratio_preserving_size, repeat(high), SIDES_PX, *constants))
            compared += len(expected)
            for found, rule in zip(wrong, rules, strict=True):
                sizes = list(map(rule, repeat(high), SIDES_PX, repeat(budget)))
                if sizes != expected:
                    pairs = zip(SIDES_PX, sizes, expected, strict=True)
                    found.extend((high, wide, budget) for wide, ours, theirs in pairs if ours != theirs)
    return compared, wrong


def test_every_size_up_to_3000_px_is_that_of_the_reference() -> None:
    """At each of 45 million sizes and budgets the native rule and that of the judge are transformers' own."""
    pieces = [SIDES_PX[start : start + HEIGHTS] for start in range(0, len(SIDES_PX), HEIGHTS)]
    # Spawned, not forked: the test process holds threads of torch.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(sweep, pieces, repeat(native.reference_size), repeat(spec_size)))
    assert sum(compared for compared, _ in results) == 3000 * 3000 * len(SOFT_TOKEN_BUDGETS)
    assert [size for _, wrong in results for sizes in wrong for size in sizes] == []


def test_a_rule_that_is_right_nearly_everywhere_is_found() -> None:
    """Negative control: the documented contract parts from the reference at few sizes, and the sweep names them."""
    compared, (wrong, none) = sweep(range(34, 35), native.contract_size, native.reference_size)
    assert (34, 595, 70) in wrong
    assert (34, 2380, 280) in wrong
    assert len(wrong) < compared / 1000
    assert none == []
