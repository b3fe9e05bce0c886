"""Soft-token facts: hand-worked, against the reference's own function, and against the native implementation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from harness import native
from harness.spec import (
    PATCH_PX,
    POOLING,
    SIDE_PX,
    SOFT_TOKEN_BUDGETS,
    MediaTokens,
    SoftTokens,
    contract_grid,
    is_exact_ratio,
    placeholder_runs,
    reference_grid,
    soft_tokens,
)
from harness.strategies import sizes

BUDGETS = st.sampled_from(SOFT_TOKEN_BUDGETS)

# (height, width, budget) -> (rows, columns): sizes that were run through transformers 5.19.0 and written down.
CHECKED = {
    (512, 512, 280): (16, 16),
    (64, 64, 280): (16, 16),
    (1, 1, 280): (16, 16),
    (1080, 1920, 280): (12, 22),
    (300, 1200, 280): (8, 33),
    (3, 900, 280): (1, 280),
    (1, 900, 280): (1, 280),
    (10, 10000, 280): (1, 280),
    (64, 64, 70): (8, 8),
    (1080, 1920, 70): (6, 11),
    (3, 900, 70): (1, 70),
}


@pytest.mark.parametrize("size", CHECKED)
def test_sizes_that_were_checked_by_hand(size: tuple[int, int, int]) -> None:
    """Both rules give the grid that was written down, and its product as the count."""
    height_px, width_px, budget = size
    rows, columns = CHECKED[size]
    assert reference_grid(width_px, height_px, budget) == (columns, rows)
    assert contract_grid(width_px, height_px, budget) == (columns, rows)
    assert soft_tokens(width_px, height_px, budget) == SoftTokens(rows * columns, rows * columns)


def test_the_published_failure_is_280_both_ways() -> None:
    """900 x 3 px fills a budget of 280 with one row of 280, whichever way it lies: not 18, not 300."""
    assert soft_tokens(900, 3, 280) == soft_tokens(3, 900, 280) == SoftTokens(280, 280)


def test_a_size_that_loses_tokens_by_hand() -> None:
    """154 x 220 px at budget 70: the exact sides are sqrt(70 * 0.7) = 7 and sqrt(70 / 0.7) = 10 units, so 70 fit.

    In float64 one side lands just under its whole number, and the reference loses a row or column of it.
    """
    assert soft_tokens(154, 220, 70) == SoftTokens(reference=63, contract=70)
    assert soft_tokens(154, 220, 70).rounding_sensitive
    assert is_exact_ratio(154, 220, 70)
    assert not soft_tokens(155, 220, 70).rounding_sensitive


@pytest.mark.parametrize(
    ("size", "words"), [((0, 5, 70), "0 x 5 px"), ((5, -1, 70), "5 x -1 px"), ((5, 5, 100), "100")]
)
def test_impossible_requests_name_the_value(size: tuple[int, int, int], words: str) -> None:
    """A side below 1 px or a budget that does not exist is refused, with what was given."""
    with pytest.raises(ValueError, match=words):
        soft_tokens(*size)


@settings(max_examples=400)
@given(sizes(), BUDGETS)
def test_the_contract_is_never_below_the_reference(size: tuple[int, int], budget: int) -> None:
    """Rounding only loses tokens: reference <= contract <= budget, both at least 1."""
    answer = soft_tokens(*size, budget)
    assert 1 <= answer.reference <= answer.contract <= budget


@settings(max_examples=400)
@given(sizes(), BUDGETS)
def test_turning_an_image_turns_its_grid(size: tuple[int, int], budget: int) -> None:
    """Rows and columns change places with the sides, by either rule."""
    for rule in (reference_grid, contract_grid):
        assert rule(*size, budget) == rule(*size[::-1], budget)[::-1]


@settings(max_examples=400)
@given(sizes(), BUDGETS)
def test_the_contract_is_the_largest_grid_that_fits(size: tuple[int, int], budget: int) -> None:
    """In integers: each side is the largest whole number whose square is at most budget * ratio, unless it vanished."""
    columns, rows = contract_grid(*size, budget)
    if min(size) * budget >= max(size):
        for units, (side, other) in ((columns, size), (rows, size[::-1])):
            assert units**2 * other <= budget * side < (units + 1) ** 2 * other


@settings(max_examples=400)
@given(sizes(), BUDGETS)
def test_only_exact_ratios_are_rounding_sensitive(size: tuple[int, int], budget: int) -> None:
    """Where the two rules part, a scaled side is a whole number of units."""
    if soft_tokens(*size, budget).rounding_sensitive:
        assert is_exact_ratio(*size, budget)


def test_only_exact_ratios_are_rounding_sensitive_up_to_300_px() -> None:
    """The same for every size up to 300 x 300 px at every budget, of which some are sensitive."""
    grid = [(w, h, budget) for budget in SOFT_TOKEN_BUDGETS for w in range(1, 301) for h in range(1, 301)]
    sensitive = [size for size in grid if reference_grid(*size) != contract_grid(*size)]
    assert (154, 220, 70) in sensitive
    assert [size for size in sensitive if not is_exact_ratio(*size)] == []


def _generated(count: int) -> Iterator[tuple[int, int, int]]:
    """Half log-uniform sides up to 20,000 px, half ratios of whole units, exactly or one pixel off."""
    rng = random.Random(4)
    for number in range(count):
        budget = rng.choice(SOFT_TOKEN_BUDGETS)
        columns = rng.randint(1, budget)
        unit_px = rng.randint(1, max(1, 20_000 // budget))
        if number % 2:
            yield round(20_000 ** rng.random()), round(20_000 ** rng.random()), budget
        else:
            yield columns * unit_px, max(1, budget // columns * unit_px + rng.choice((-1, 0, 0, 1))), budget


GENERATED = list(_generated(5_000))


def test_the_reference_rule_is_that_of_transformers() -> None:
    """5,000 generated sizes have the grid that transformers' own function gives."""
    wrong = []
    for width_px, height_px, budget in GENERATED:
        high, wide = get_aspect_ratio_preserving_size(height_px, width_px, PATCH_PX, budget * POOLING**2, POOLING)
        if reference_grid(width_px, height_px, budget) != (wide // SIDE_PX, high // SIDE_PX):
            wrong.append((width_px, height_px, budget))
    assert wrong == []


def test_two_independent_implementations_agree() -> None:
    """The native engine's rules, written by themselves, give the same grids for the same 5,000 sizes."""
    pairs = ((reference_grid, native.reference_size), (contract_grid, native.contract_size))
    for rule, size_of in pairs:
        grids = [size_of(h, w, budget) for w, h, budget in GENERATED]
        assert [rule(*size) for size in GENERATED] == [(wide // SIDE_PX, high // SIDE_PX) for high, wide in grids]


def test_the_generated_sizes_reach_what_they_aim_at() -> None:
    """Among the 5,000 are sizes that lose tokens, and sides that vanish: the two tests above try both."""
    assert sum(soft_tokens(*size).rounding_sensitive for size in GENERATED) >= 5
    assert sum(max(w, h) > budget * min(w, h) for w, h, budget in GENERATED) >= 50


TOKENS = MediaTokens(boi=10, image=11, eoi=12)


@pytest.mark.parametrize(
    ("ids", "runs"),
    [
        ([], []),
        ([5, 10, 12, 5], []),
        ([11], [(0, 1)]),
        ([5, 10, 11, 11, 12, 10, 11, 12], [(2, 2), (6, 1)]),
        ([11, 5, 11, 11], [(0, 1), (2, 2)]),
        ([11, 10, 12, 11], [(0, 1), (3, 1)]),
    ],
)
def test_placeholder_runs_by_hand(ids: list[int], runs: list[tuple[int, int]]) -> None:
    """A run is maximal, and ends at any other token."""
    assert placeholder_runs(ids, TOKENS) == runs


@settings(max_examples=200)
@given(st.lists(st.sampled_from((5, 10, 11, 12)), max_size=40))
def test_runs_cover_exactly_the_placeholders(ids: list[int]) -> None:
    """The runs taken together are the positions of the image token, each once."""
    covered = [position for start, length in placeholder_runs(ids, TOKENS) for position in range(start, start + length)]
    assert covered == [position for position, token in enumerate(ids) if token == TOKENS.image]


def test_a_unit_is_three_patches() -> None:
    """One soft token covers 3 x 3 patches of 16 px, so budgets are whole areas."""
    assert SIDE_PX == 48
    assert math.isqrt(SIDE_PX**2 * 280) == math.isqrt(280 * 9 * PATCH_PX**2)
