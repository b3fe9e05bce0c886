"""The vision tower on image grids of every width: hf, vllm and native make the same rows (vLLM #43440).

A budget of 70 soft tokens has grids of 1 to 70 columns. Two hazards of a pooler are looked for: a width that decides
which cell a patch falls into, and padding that lands on the first soft token.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest

from harness.campaign import Campaign
from harness.comparators import Limits
from harness.comparators.features import relative_row_errors
from harness.engines.base import Array
from harness.environments import resolve
from harness.fleet import Options, fleet
from harness.schema import Case, Finding, ImageSpec, Part, SoftTokenBudget
from harness.session import locate
from harness.spec import reference_grid, soft_tokens

BUDGET: SoftTokenBudget = 70
IMAGES_PER_CASE = 7
LIMIT = Limits.of("float32").feature_relative
Grid = tuple[int, int]


@cache
def smallest_images() -> dict[Grid, tuple[int, int]]:
    """(columns, rows) of soft tokens -> the (width, height) of the smallest image that has them.

    Sizes at which rounding decides are left out: there engines count differently, which is another finding.
    """
    sizes = sorted(product(range(1, 150), repeat=2), key=lambda size: (size[0] * size[1], size))
    found: dict[Grid, tuple[int, int]] = {}
    for width_px, height_px in sizes:
        if not soft_tokens(width_px, height_px, BUDGET).rounding_sensitive:
            found.setdefault(reference_grid(width_px, height_px, BUDGET), (width_px, height_px))
    return found


def cases(model: str) -> list[Case]:
    sizes = list(smallest_images().values())
    parts = [Part(image=ImageSpec(*size, seed=number)) for number, size in enumerate(sizes)]
    chunks = [tuple(parts[start : start + IMAGES_PER_CASE]) for start in range(0, len(parts), IMAGES_PER_CASE)]
    return [Case(model, (Part(text="Look: "), *chunk, Part(text=" what?")), BUDGET) for chunk in chunks]


def test_grids_of_every_width_and_height_occur() -> None:
    """Each of 1 to 70 columns, and each of 1 to 70 rows; no grid has more tokens than the budget."""
    grids = smallest_images()
    assert {columns for columns, _ in grids} == {rows for _, rows in grids} == set(range(1, BUDGET + 1))
    assert max(columns * rows for columns, rows in grids) <= BUDGET


@pytest.mark.engines
@pytest.mark.releases
@pytest.mark.parametrize("model", ["tiny-e2b", "tiny-31b"])
def test_features_of_every_grid_agree(model: str, tmp_path: Path) -> None:
    """Pixels, positions and feature rows of every grid are the same in the three engines, within the float32 limit."""
    options = Options(properties=("P7",), timeout_s=600)
    compared, found = 0, list[Finding]()
    with fleet(resolve(["hf", "vllm", "native"]), options, tmp_path) as workers:
        for result in Campaign(workers, locate).run(cases(model)):
            assert [o.outcome for o in result.observations] == ["ok"] * 3, [o.message for o in result.observations]
            for image in range(len(result.case.images)):
                rows = [side.arrays[f"mm_features.{image}"] for side in result.sides]
                shape = result.case.images[image]
                columns, height = reference_grid(shape.width_px, shape.height_px, BUDGET)
                assert {len(array) for array in rows} == {columns * height}
                for fault in (transposed, first_padded):
                    faulty = fault(rows[2], columns)
                    harmless = fault is transposed and 1 in (columns, height)
                    assert (worst(rows[0], faulty) > LIMIT) is not harmless, (fault.__name__, columns, height)
                compared += 1
            found += result.findings
    assert compared == len(smallest_images())
    assert [finding.signature for finding in found] == []


def worst(left: Array, right: Array) -> float:
    return float(relative_row_errors(left, right).max())


def transposed(rows: Array, columns: int) -> Array:
    """What a pooler makes that reads the grid by its height where its width belongs."""
    return rows.reshape(-1, columns, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)


def first_padded(rows: Array, columns: int) -> Array:
    """What a pooler makes that counts a padding patch in the first cell: an average over ten where nine are."""
    del columns
    spoilt = rows.copy()
    spoilt[0] *= 0.9
    return spoilt
