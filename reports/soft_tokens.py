"""The surface of soft-token counts over width and height, and the sizes at which somebody disagrees with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.spec import SOFT_TOKEN_BUDGETS, soft_token_rows
from reports import figures
from reports.frames import Frames

SWEEP = Path(".harness/sweeps/images.parquet")
"""Where `harness sweep` keeps every size on which subjects part."""

SHOWN = 400
"""Disagreements that the page lists and draws; it says how many more there are."""

_SIDES_PX = np.unique(np.round(np.geomspace(1, 20_000, 110)).astype(np.int64))


def context(frames: Frames, sweep: Path = SWEEP) -> dict[str, Any]:
    """The variables of soft_tokens.html.j2."""
    counted = disagreements(frames)
    swept = pd.read_parquet(sweep) if sweep.is_file() else pd.DataFrame()
    surfaces = [
        {"budget": budget, "figure": _surface(budget, counted[counted["budget"] == budget])}
        for budget in SOFT_TOKEN_BUDGETS
    ]
    return {
        "surfaces": surfaces,
        "disagreements": counted.head(SHOWN).to_dict("records"),
        "subjects_counting": [name for name in counted.columns if name not in _KNOWN],
        "more": max(0, len(counted) - SHOWN),
        "images": len(frames.images),
        "sensitive": int((frames.images["reference"] != frames.images["contract"]).sum()),
        "swept": _swept(swept),
    }


_KNOWN = ("case_id", "model", "width_px", "height_px", "budget", "reference", "contract", "why")


def disagreements(frames: Frames) -> pd.DataFrame:
    """Sizes at which subjects part, one leaves both rules, or the rules part: a column of counts for each subject."""
    images = frames.images.rename(columns={"max_soft_tokens": "budget"})
    keys = ["case_id", "model", "index", "width_px", "height_px", "budget", "reference", "contract"]
    table = images[keys].merge(_predicted(frames), on=["case_id", "index"], how="left").drop(columns="index")
    subjects = [name for name in table.columns if name not in _KNOWN]
    counts = table[subjects]
    parting = counts.max(axis=1) > counts.min(axis=1)
    astray = (counts.notna() & counts.ne(table["reference"], axis=0) & counts.ne(table["contract"], axis=0)).any(axis=1)
    sensitive = table["reference"] != table["contract"]
    kind = np.select([parting, astray, sensitive], [0, 1, 2], default=len(MARKS))
    found = table.assign(kind=kind).query(f"kind < {len(MARKS)}").sort_values("kind", kind="stable")
    return found.assign(why=found["kind"].map(dict(enumerate(MARKS)))).drop(columns="kind")


def _predicted(frames: Frames) -> pd.DataFrame:
    """What each subject predicted for each image: a row an image, a column a subject."""
    plain = frames.observations[~frames.observations["probe"].fillna(False).astype(bool)]
    rows: list[dict[str, Any]] = []
    parsed: dict[str, list[int]] = {}
    for case_id, subject, text in zip(plain["case_id"], plain["subject"], plain["counts"], strict=True):
        if text not in parsed:
            parsed[text] = _of_images(json.loads(text or "[]"))
        rows += [
            {"case_id": case_id, "index": index, "subject": subject, "n": count}
            for index, count in enumerate(parsed[text])
        ]
    if not rows:
        return pd.DataFrame(columns=["case_id", "index"])
    wide = pd.DataFrame(rows).drop_duplicates(["case_id", "index", "subject"])
    return wide.pivot(index=["case_id", "index"], columns="subject", values="n").reset_index()  # noqa: PD010


def _of_images(counts: list[Mapping[str, Any]]) -> list[int]:
    return [int(count["predicted"]) for count in counts if count.get("medium", "image") == "image"]


def _surface(budget: int, counted: pd.DataFrame) -> Markup:
    """Counts by the reference rule, and marks where somebody disagrees."""
    reference, contract = soft_token_rows(_SIDES_PX[None, :], _SIDES_PX[:, None], budget)
    surface = {
        "type": "heatmap",
        "x": figures.typed(_SIDES_PX, "i4"),
        "y": figures.typed(_SIDES_PX, "i4"),
        "z": figures.typed(reference, "u2"),
        "colorscale": "Cividis",
        "colorbar": {"thickness": 10, "len": 0.9, "outlinewidth": 0},
        "hovertemplate": "%{x} × %{y} px: %{z} soft tokens<extra></extra>",
    }
    y, x = np.nonzero(reference != contract)
    marks = [_marks(_SIDES_PX[x], _SIDES_PX[y], "the two rules part")]
    marks += [_marks(rows["width_px"], rows["height_px"], str(why)) for why, rows in counted.head(SHOWN).groupby("why")]
    axis = {"type": "log", "range": [0, np.log10(20_000)], "zeroline": False, "tickvals": [1, 10, 100, 1_000, 10_000]}
    layout = {
        "height": 330,
        "xaxis": {**axis, "title": {"text": "width, px"}},
        "yaxis": {**axis, "title": {"text": "height, px", "standoff": 4}, "automargin": True},
    }
    return figures.drawn([surface, *marks], layout)


MARKS = {
    "subjects part": ("✕", "x", "#ff6a3d"),
    "neither rule": ("◆", "diamond", "#ff6a3d"),
    "the two rules part": ("○", "circle-open", "#ffffff"),
}
"""Why a size is marked: glyph for the legend, plotly's symbol, colour."""


def _marks(widths: Any, heights: Any, why: str) -> dict[str, Any]:
    _, symbol, colour = MARKS[why]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": figures.typed(widths, "i4"),
        "y": figures.typed(heights, "i4"),
        "marker": {"symbol": symbol, "color": colour, "size": 8, "line": {"width": 1.5, "color": colour}},
        "hovertemplate": f"%{{x}} × %{{y}} px: {why}<extra></extra>",
    }


def _swept(swept: pd.DataFrame) -> list[dict[str, Any]]:
    """Disagreements of the newest sweep by budget, and the smallest of each."""
    if not len(swept):
        return []
    area = swept.assign(area=swept["width_px"] * swept["height_px"]).sort_values("area")
    smallest = area.drop_duplicates("budget").sort_values("budget")
    counted = swept["budget"].value_counts()
    rows = smallest.drop(columns="area").to_dict("records")
    return [{**{str(name): value for name, value in row.items()}, "sizes": int(counted[row["budget"]])} for row in rows]
