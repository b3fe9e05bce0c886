"""Gemma 4 facts that engines are judged by, each with its source. Layer 1: imports no engine.

Counts have two right answers. The *reference rule* is what Hugging Face ships: float64, in its order of
operations. The *exact contract* is what its docstring promises: the largest size that keeps the aspect ratio,
fits the budget and has sides that are multiples of 48 px - here in integers. They part on a few sizes in
100,000, near exact ratios, where a float lands just under a whole number. Such a size is rounding-sensitive.

Source: `get_aspect_ratio_preserving_size` of transformers 5.19.0 and its docstring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
PATCH_PX = 16
POOLING = 3
SIDE_PX = PATCH_PX * POOLING
"""One soft token covers 48 x 48 px of the resized image."""

BOS, BOI, EOI, IMAGE = "<bos>", "<|image>", "<image|>", "<|image|>"
AUDIO, VIDEO = "<|audio|>", "<|video|>"
TURN_START, TURN_END = "<|turn>", "<turn|>"


def reference_grid(width_px: int, height_px: int, max_soft_tokens: int) -> tuple[int, int]:
    """(columns, rows) of soft tokens by the reference rule."""
    target_px = max_soft_tokens * SIDE_PX**2
    factor = math.sqrt(target_px / (height_px * width_px))
    columns = math.floor(factor * width_px / SIDE_PX)
    rows = math.floor(factor * height_px / SIDE_PX)
    return _lift_degenerate(columns, rows, width_px, height_px, max_soft_tokens)


def contract_grid(width_px: int, height_px: int, max_soft_tokens: int) -> tuple[int, int]:
    """(columns, rows) of soft tokens by the exact contract.

    A side of s px beside one of o px scales to s * sqrt(budget * 48^2 / (s * o)) px, so it holds
    floor(sqrt(budget * s / o)) units; for integers that is isqrt(budget * s // o).
    """
    columns = math.isqrt(max_soft_tokens * width_px // height_px)
    rows = math.isqrt(max_soft_tokens * height_px // width_px)
    return _lift_degenerate(columns, rows, width_px, height_px, max_soft_tokens)


def is_exact_ratio(width_px: int, height_px: int, max_soft_tokens: int) -> bool:
    """Whether a scaled side is a whole number of units: only there can floating point move a count."""
    for side_px, other_px in ((width_px, height_px), (height_px, width_px)):
        units = math.isqrt(max_soft_tokens * side_px // other_px)
        if units**2 * other_px == max_soft_tokens * side_px:
            return True
    return False


def _lift_degenerate(columns: int, rows: int, width_px: int, height_px: int, budget: int) -> tuple[int, int]:
    """A side that would vanish becomes one unit; the other is then the whole ratio, capped by the budget."""
    if rows == 0:
        return min(width_px // height_px, budget), 1
    if columns == 0:
        return 1, min(height_px // width_px, budget)
    return columns, rows


@dataclass(frozen=True)
class SoftTokens:
    """Both right answers for one image."""

    reference: int
    contract: int

    @property
    def rounding_sensitive(self) -> bool:
        """True where the reference rule loses tokens to floating point."""
        return self.reference != self.contract


def soft_tokens(width_px: int, height_px: int, max_soft_tokens: int) -> SoftTokens:
    """Soft tokens of an image of that size under that budget, by both rules.

    Raises:
        ValueError: a side below 1 px, or a budget that Gemma 4 does not have.
    """
    if min(width_px, height_px) < 1:
        raise ValueError(f"image of {width_px} x {height_px} px: both sides must be at least 1 px")
    if max_soft_tokens not in SOFT_TOKEN_BUDGETS:
        raise ValueError(f"budget of {max_soft_tokens} soft tokens: must be one of {SOFT_TOKEN_BUDGETS}")
    sides = width_px, height_px, max_soft_tokens
    return SoftTokens(math.prod(reference_grid(*sides)), math.prod(contract_grid(*sides)))


@dataclass(frozen=True)
class MediaTokens:
    """The token ids that frame and fill an image, read from a checkpoint's config.json."""

    boi: int
    image: int
    eoi: int


def placeholder_runs(token_ids: Sequence[int], tokens: MediaTokens) -> list[tuple[int, int]]:
    """(start, length) of each image's placeholders: maximal runs of the image token, in prompt order."""
    runs: list[tuple[int, int]] = []
    for position, token in enumerate(token_ids):
        if token != tokens.image:
            continue
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs
