"""What was tried, and so what was not: cases counted by what is in them, with how many of them have a finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.schema import PROBES, PROPERTIES
from harness.spec import SOFT_TOKEN_BUDGETS
from reports.frames import Frames


@dataclass(frozen=True)
class Heat:
    """A table of cells (cases tried, cases with a finding); `dark` of the most tried is 1."""

    title: str
    what: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def most(self) -> int:
        """The most tried cell."""
        return max((tried for row in self.cells for tried, _ in row), default=0)

    @property
    def untried(self) -> list[str]:
        """Names of the cells that no case fell into, whole rows and columns by one name."""
        rows = [name for name, row in zip(self.rows, self.cells, strict=True) if not any(tried for tried, _ in row)]
        filled = [any(row[k][0] for row in self.cells) for k in range(len(self.columns))]
        columns = [name for name, any_tried in zip(self.columns, filled, strict=True) if not any_tried]
        single = [
            f"{row} × {column}"
            for row, cells in zip(self.rows, self.cells, strict=True)
            for column, (tried, _) in zip(self.columns, cells, strict=True)
            if not tried and row not in rows and column not in columns
        ]
        return [*rows, *columns, *single]


_ASPECTS = (
    (0, 1 / 64, "1 : 64 and narrower"),
    (1 / 64, 1 / 16, "1 : 64 to 1 : 16"),
    (1 / 16, 1 / 4, "1 : 16 to 1 : 4"),
    (1 / 4, 1 / 1.2, "1 : 4 to 1 : 1.2"),
    (1 / 1.2, 1.2, "about square"),
    (1.2, 4, "1.2 : 1 to 4 : 1"),
    (4, 16, "4 : 1 to 16 : 1"),
    (16, 64, "16 : 1 to 64 : 1"),
    (64, np.inf, "64 : 1 and wider"),
)
_SIDES = (1, 2, 16, 48, 96, 256, 1_024, 4_096, 20_001)
_SAMPLES = (0, 1, 161, 321, 1_600, 16_000, 160_000, 480_000, 480_001, 10**9)
_FRAMES = (1, 2, 8, 32, 33, 128, 10**9)
_BYTES = (0, 1, 16, 128, 1_024, 8_192, 10**9)


def heats(frames: Frames) -> list[Heat]:
    """Every map of the page; those of media that the run has none of are left out."""
    failed = frozenset(frames.findings["case_id"])
    models = sorted(frames.cases["model"].unique())
    return [
        *_of_images(frames.images, failed),
        *_of_sound_and_video(frames, failed),
        *_of_prompts(frames.cases, models, failed),
        _of_properties(frames, models),
    ]


def _of_images(images: pd.DataFrame, failed: frozenset[str]) -> Iterator[Heat]:
    ids = list(images["case_id"])
    budgets = [str(budget) for budget in SOFT_TOKEN_BUDGETS]
    words = "Aspect of images × budget", "width : height, by soft-token budget"
    places = _aspects(images), images["max_soft_tokens"].map(_whole)
    yield _heat(words, ids, places, ([name for *_, name in _ASPECTS], budgets), failed)
    sides = images[["width_px", "height_px"]]
    (short, names), (long, _) = (_binned(side, _SIDES, "px") for side in (sides.min(axis=1), sides.max(axis=1)))
    yield _heat(("Shorter × longer side of images", "px"), ids, (short, long), (names, names), failed)
    modes, turned = ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1"], [str(tag) for tag in range(1, 9)]
    words = "Colour mode × EXIF orientation", "1 is upright"
    yield _heat(words, ids, (images["mode"], images["orientation"].map(_whole)), (modes, turned), failed)


def _of_sound_and_video(frames: Frames, failed: frozenset[str]) -> Iterator[Heat]:
    audios, videos = frames.audios, frames.videos
    if len(audios):
        lengths, names = _binned(audios["samples"], _SAMPLES, "samples")
        rates = [f"{rate:,} Hz" for rate in sorted({int(rate) for rate in audios["rate_hz"]})]
        places = lengths, audios["rate_hz"].map(lambda rate: f"{int(rate):,} Hz")
        words = "Length × rate of recordings", "30 s at 16 kHz are 480,000"
        yield _heat(words, list(audios["case_id"]), places, (names, rates), failed)
    if len(videos):
        lengths, names = _binned(videos["frames"], _FRAMES, "frames")
        kinds = {False: "whole video", True: "frames with numbers"}
        places = lengths, videos["given"].map(kinds)
        words = "Length × kind of videos", "32 frames are shown"
        yield _heat(words, list(videos["case_id"]), places, (names, list(kinds.values())), failed)


def _of_prompts(cases: pd.DataFrame, models: list[str], failed: frozenset[str]) -> Iterator[Heat]:
    ids = list(cases["case_id"])
    probes = cases["probe"].replace("", "none").fillna("none")
    words = "Probe × model", "the other way taken"
    yield _heat(words, ids, (probes, cases["model"]), (["none", *PROBES], models), failed)
    lengths, names = _binned(cases["text_bytes"], _BYTES, "bytes")
    words = "Length of text × form of prompt", "bytes of UTF-8"
    yield _heat(words, ids, (lengths, cases["form"]), (names, ["raw", "turn", "chat"]), failed)
    orders = cases["order"].fillna("").map(_order)
    words = "Order of parts × model", "the 16 most frequent; t text, i image, a recording, v video"
    yield _heat(words, ids, (orders, cases["model"]), (list(orders.value_counts().index[:16]), models), failed)


def _of_properties(frames: Frames, models: list[str]) -> Heat:
    judged = frames.verdicts[frames.verdicts["verdict"] != "not comparable"].drop_duplicates(["case_id", "property"])
    promised = [f"{name} {promise}" for name, promise in PROPERTIES.items()]
    named = judged["property"].map(dict(zip(PROPERTIES, promised, strict=True)))
    broken = frozenset(frames.findings["case_id"] + frames.findings["property"])
    ids = list(judged["case_id"] + judged["property"])
    words = "Property × model", "cases in which it could be judged"
    return _heat(words, ids, (named, judged["model"]), (promised, models), broken)


def _heat(words: tuple[str, str], ids: list[str], places: tuple[Any, Any], names: Any, failed: frozenset[str]) -> Heat:
    """Count distinct cases by row and column."""
    frame = pd.DataFrame({"row": list(places[0]), "column": list(places[1]), "id": ids}).drop_duplicates()
    frame["failed"] = frame["id"].isin(failed)
    counted = frame.groupby(["row", "column"])["failed"].agg(["size", "sum"]).to_dict("index")
    empty = {"size": 0, "sum": 0}
    found = [[counted.get((row, column), empty) for column in names[1]] for row in names[0]]
    cells = tuple(tuple((int(cell["size"]), int(cell["sum"])) for cell in row) for row in found)
    return Heat(*words, tuple(names[0]), tuple(names[1]), cells)


def _aspects(images: pd.DataFrame) -> Any:
    ratio = images["width_px"].astype(float) / images["height_px"].astype(float)
    edges = [_ASPECTS[0][0], *(high for _, high, _ in _ASPECTS)]
    return pd.cut(ratio, edges, labels=[name for *_, name in _ASPECTS], right=False).astype(str)


def _binned(values: pd.Series[Any], edges: Sequence[int], unit: str) -> tuple[Any, list[str]]:
    """Whole numbers by half-open bins, and the names of the bins."""
    words = [_bin(low, high, unit) for low, high in pairwise(edges)]
    return pd.cut(values.astype(float), list(edges), labels=words, right=False).astype(str), words


def _bin(low: int, high: int, unit: str) -> str:
    if high >= 10**9:
        return f"{low:,} {unit} and more"
    return f"{low:,} {unit}" if high == low + 1 else f"{low:,} to {high - 1:,} {unit}"


def _whole(value: Any) -> str:
    return "" if pd.isna(value) else str(int(value))


def _order(letters: str) -> str:
    return letters if len(letters) <= 8 else f"{letters[:8]}…"
