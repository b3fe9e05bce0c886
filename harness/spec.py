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

import numpy as np
import numpy.typing as npt

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
PATCH_PX = 16
POOLING = 3
SIDE_PX = PATCH_PX * POOLING
"""One soft token covers 48 x 48 px of the resized image."""

BOS, BOI, EOI, IMAGE = "<bos>", "<|image>", "<image|>", "<|image|>"
AUDIO, VIDEO = "<|audio|>", "<|video|>"
BOA, EOA = "<|audio>", "<audio|>"
TURN_START, TURN_END = "<|turn>", "<turn|>"
QUOTE = '<|"|>'
"""Stands on both sides of a string in what tools are told and say."""


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


Counts = npt.NDArray[np.int64]


def soft_token_rows(widths_px: Counts, heights_px: Counts, max_soft_tokens: int) -> tuple[Counts, Counts]:
    """Both answers, (reference, contract), for whole arrays of sizes; the same operations in the same order."""
    wide, high, target_px = widths_px, heights_px, max_soft_tokens * SIDE_PX**2
    factor = np.sqrt(target_px / (high * wide))
    reference = np.floor(factor * wide / SIDE_PX).astype(int), np.floor(factor * high / SIDE_PX).astype(int)
    # Exact: a float64 root of a whole number below 2^52 cannot be rounded up to the next whole number.
    contract = np.sqrt(max_soft_tokens * wide // high).astype(int), np.sqrt(max_soft_tokens * high // wide).astype(int)
    lifted = [
        np.where(
            rows == 0,
            np.minimum(wide // high, max_soft_tokens),
            np.where(columns == 0, np.minimum(high // wide, max_soft_tokens), columns * rows),
        )
        for columns, rows in (reference, contract)
    ]
    return lifted[0], lifted[1]


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


AUDIO_RATE_HZ = 16_000
AUDIO_MAX_SAMPLES = 30 * AUDIO_RATE_HZ
VIDEO_FRAMES = 32
"""How many frames of a whole video are shown."""

VIDEO_BUDGET = 70
DEFAULT_FPS = 24


def audio_tokens(samples: int) -> int:
    """Soft tokens of a recording in E2B and E4B: 10 ms frames that have a sample behind them, halved twice, rounded up.

    Source: `Gemma4AudioFeatureExtractor` of transformers 5.19.0: the wave is cut at 30 s, 160 zeros go in front, frame
    i counts if sample 160 i + 320 of that is real, and of the mask every second entry is kept, twice.
    """
    frames = max(0, min(samples, AUDIO_MAX_SAMPLES) - 1) // 160
    return -(-frames // 4)


def waveform_tokens(samples: int) -> int:
    """Soft tokens of a recording in the 12B: one for each 640 samples begun, 40 ms, without a limit."""
    return -(-samples // 640)


def shown_frames(frames: int, indices: Sequence[int] | None) -> list[int]:
    """Numbers of the frames of a video that are shown: those given, or 32 at even steps, floor(i * total / 32).

    Raises:
        ValueError: a whole video of fewer than 32 frames, which the reference refuses too.
    """
    if indices is not None:
        return list(indices)
    if frames < VIDEO_FRAMES:
        raise ValueError(f"a video of {frames} frames is too short to take {VIDEO_FRAMES} from")
    return [index * frames // VIDEO_FRAMES for index in range(VIDEO_FRAMES)]


def timestamp(index: int, fps: float | None) -> str:
    """The time of a frame as mm:ss, rounded down; without a rate, 24 frames a second."""
    seconds = int(index / (fps or DEFAULT_FPS))
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


@dataclass(frozen=True)
class MediaTokens:
    """The token ids that frame and fill media, read from a checkpoint's config.json."""

    boi: int
    image: int
    eoi: int
    boa: int = -1
    audio: int = -1
    eoa: int = -1
    video: int = -1

    def of(self, medium: str) -> int:
        """The soft token of a medium."""
        return {"image": self.image, "audio": self.audio, "video": self.video}[medium]


@dataclass(frozen=True)
class LayerRule:
    """What decides whom a decoder layer's queries see.

    `window` is the number of keys up to and with the query's own, None in a full layer; `blocks` says that an image or
    a frame sees itself in both directions; `silent` that the layer's attention adds nothing; `donor` is the layer
    whose keys and values it reads, its own number where it has its own.
    """

    window: int | None
    blocks: bool
    silent: bool
    donor: int


def visible(blocks: npt.NDArray[np.int64], rule: LayerRule) -> npt.NDArray[np.bool_]:
    """(T, T), entry [q, k]: query q sees key k. `blocks` (T,) numbers the image or frame of a soft token, else 0.

    Full layers are causal; sliding layers see (causal or the same block) and no key older than the window.
    Source: the published reference (google-deepmind/gemma), transformers 5.17 to 5.19 for the models with a tower,
    vLLM's `mm_prefix_clamp_sliding_window`;
    """
    query, key = np.arange(len(blocks))[:, None], np.arange(len(blocks))[None, :]
    seen: npt.NDArray[np.bool_] = np.array(key <= query, dtype=np.bool_)
    if rule.window is None:
        return seen
    if rule.blocks:
        seen |= (blocks[:, None] == blocks[None, :]) & (blocks[:, None] > 0)
    seen &= key > query - rule.window
    return seen


def reached(position: int, blocks: npt.NDArray[np.int64], layers: Sequence[LayerRule]) -> npt.NDArray[np.bool_]:
    """(T,): the positions whose final hidden state depends on what enters the decoder at `position`."""
    now: npt.NDArray[np.bool_] = np.equal(np.arange(len(blocks)), position)
    before = []
    for rule in layers:
        before.append(now)
        if not rule.silent:
            now = np.logical_or(now, (visible(blocks, rule) & before[rule.donor]).any(axis=1))
    return now


def block_numbers(token_ids: Sequence[int], tokens: MediaTokens) -> npt.NDArray[np.int64]:
    """(T,): 1, 2, ... for the soft tokens of each image and each video frame in prompt order; 0 for all else."""
    ids = np.asarray(token_ids)
    soft = np.isin(ids, (tokens.image, tokens.video))
    starts = soft & np.diff(ids, prepend=-1).astype(bool)
    numbers: npt.NDArray[np.int64] = np.cumsum(starts) * soft
    return numbers


def placeholder_runs(token_ids: Sequence[int], tokens: MediaTokens, medium: str = "image") -> list[tuple[int, int]]:
    """(start, length) of each item's placeholders: maximal runs of the medium's token, in prompt order.

    A video is as many runs as it has frames.
    """
    wanted = tokens.of(medium)
    runs: list[tuple[int, int]] = []
    for position, token in enumerate(token_ids):
        if token != wanted:
            continue
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs
