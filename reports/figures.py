"""Figures to look into, as plotly JSON ready to stand in a script element. Colours of text and grid are the page's.

They are plain values: 2,000 pages have one each, and plotly's own objects take 0.1 s a figure to check what we know.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from harness import schema
from harness.store import roles_of


@dataclass(frozen=True)
class Role:
    """How one token role is named and drawn: told apart by shape as well as by colour. `glyph` is for legends."""

    name: str
    words: str
    colour: str
    symbol: str
    glyph: str


_LOOKS = (
    Role("text_before", "text before an image", "#3d9bd1", "circle", "●"),
    Role("boi", "begin of image", "#c99700", "triangle-up", "▲"),
    Role("soft", "soft tokens of an image", "#7f6bd0", "square", "■"),
    Role("eoi", "end of image", "#d4572a", "triangle-down", "▼"),
    Role("after_media", "first 8 text tokens after it", "#15957a", "diamond", "◆"),
    Role("rest", "text further on", "#8b8f97", "x-thin-open", "✕"),
)
ROLES = tuple(next(look for look in _LOOKS if look.name == name) for name in schema.ROLES)
"""In the order of the indices that a run's `roles` arrays hold."""

FLOOR_NATS = 1e-15
"""Where a logarithmic axis shows zero: below what float64 sums over a vocabulary can tell from it."""

LIMIT_COLOUR = "#d8407c"
_PANEL_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 140, 34, 30, 46

Trace = dict[str, Any]


def role_style() -> str:
    """The colours of roles as style rules."""
    rules = [f".role-{role.name} {{ --role: {role.colour}; }}" for role in ROLES]
    return "\n".join([*rules, f".limit {{ --role: {LIMIT_COLOUR}; }}", ""])


def kl_positions(arrays: Mapping[str, Any], limits: Mapping[tuple[str, str], float]) -> Markup:
    """KL at every position of one prompt: one panel a pair, coloured by role, with the pair's limit as a line.

    The page has the numbers and the looks of roles once; its script makes the traces of them.
    """
    curves = kl_by_pair(arrays)
    positions = {
        "looks": [[role.words, role.colour, role.symbol] for role in ROLES],
        "runs": [_runs(roles_of(arrays, *pair)) for pair in curves],
        "curves": [typed(_drawable(kl), "f4")["bdata"] for kl in curves.values()],
        "limits": [limits.get(pair) for pair in curves],
        "limit_colour": LIMIT_COLOUR,
    }
    return drawn([], _panels(list(curves)), positions)


FLOOR_ERROR = 1e-9
"""Where the axis of relative errors shows zero: below what float32 can tell from it."""

_PAIR_LOOKS = (("#3d9bd1", "circle"), ("#d4572a", "diamond"), ("#15957a", "square"), ("#7f6bd0", "triangle-up"))


def stage_errors(pairs: Sequence[Mapping[str, Any]]) -> Markup:
    """The relative error of every stage, one line a pair; a filled mark differs beyond its limit."""
    stages = list(dict.fromkeys(row["stage"] for pair in pairs for row in pair["stages"]))
    traces: list[Trace] = []
    for number, pair in enumerate(pairs):
        rows = [row for row in pair["stages"] if row["max_relative"] is not None]
        colour, symbol = _PAIR_LOOKS[number % len(_PAIR_LOOKS)]
        symbols = [symbol if row["verdict"] == "differ" else f"{symbol}-open" for row in rows]
        hover = f"{_plain(pair['left'])} - {_plain(pair['right'])}, %{{x}}<br>%{{y:.3g}}<extra></extra>"
        traces.append(
            {
                "type": "scatter",
                "x": [row["stage"] for row in rows],
                "y": [max(row["max_relative"], FLOOR_ERROR) for row in rows],
                "mode": "lines+markers",
                "marker": {"color": colour, "symbol": symbols, "size": 10},
                "line": {"color": colour, "width": 1.5},
                "hovertemplate": hover,
            }
        )
    noise = {row["stage"]: row["noise"] for pair in pairs for row in pair["stages"] if row["noise"]}
    if noise:
        line = {"color": LIMIT_COLOUR, "width": 1.5, "dash": "dash"}
        hover = "rounding alone, %{x}<br>%{y:.3g}<extra></extra>"
        traces.append(
            {
                "type": "scatter",
                "x": [*noise],
                "y": [*noise.values()],
                "mode": "lines",
                "line": line,
                "hovertemplate": hover,
            }
        )
    axes = {"xaxis": {"categoryorder": "array", "categoryarray": stages}, "yaxis": _LOG_AXIS}
    return drawn(traces, {"height": 300, **axes})


def pair_looks(number: int) -> Role:
    """How the legend names the line of a pair."""
    glyphs = "●◆■▲"
    place = number % len(_PAIR_LOOKS)
    return Role(f"pair-{number}", "", _PAIR_LOOKS[place][0], _PAIR_LOOKS[place][1], glyphs[place])


def kl_by_pair(arrays: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """KL per position of the pairs whose prompts roles describe."""
    named = {tuple(name.split("/", 2)[1:]): kl for name, kl in arrays.items() if name.startswith("kl/")}
    return {(left, right): kl for (left, right), kl in named.items() if len(kl) == len(roles_of(arrays, left, right))}


def _runs(roles: Any) -> list[list[int]]:
    """Roles by position as [role, how many positions], in order."""
    starts = np.flatnonzero(np.diff(np.asarray(roles, dtype=np.int64), prepend=-1))
    lengths = np.diff(starts, append=len(roles))
    return [[int(roles[start]), int(n)] for start, n in zip(starts, lengths, strict=True)]


def typed(values: Any, kind: str) -> dict[str, Any]:
    """Numbers as plotly takes them without a digit of text: their bytes. Rows of a matrix keep their shape."""
    array = np.asarray(values, dtype=f"<{kind}")
    shape = {"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {}
    return {"dtype": kind, "bdata": base64.b64encode(array.tobytes()).decode(), **shape}


def _drawable(nats: Any) -> Any:
    """Zero at the floor; what is no number stays so, is not drawn, and is counted beside the figure."""
    return np.maximum(np.asarray(nats, dtype=np.float64), FLOOR_NATS).astype(np.float32)


def not_finite(nats: Any) -> int:
    """How many values a figure cannot draw."""
    return int((~np.isfinite(np.asarray(nats, dtype=np.float64))).sum())


_LOG_AXIS = {"type": "log", "exponentformat": "power"}


def _axis(letter: str, number: int) -> str:
    return letter if number == 1 else f"{letter}{number}"


def _panels(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One panel a pair, above one another on one horizontal axis."""
    inner_px = len(pairs) * (_PANEL_PX + _GAP_PX) - _GAP_PX
    layout: dict[str, Any] = {"height": inner_px + _TOP_PX + _BOTTOM_PX, "annotations": []}
    for number, (left, right) in enumerate(pairs, start=1):
        top = 1 - (number - 1) * (_PANEL_PX + _GAP_PX) / inner_px
        same = {} if number == 1 else {"matches": "y"}
        domain = [max(0.0, top - _PANEL_PX / inner_px), top]
        layout[_axis("yaxis", number)] = {**_LOG_AXIS, "dtick": 3, "domain": domain, **same}
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        words = _plain(f"KL( {left} ‖ {right} ), nats")
        layout["annotations"].append({**place, "text": words, "showarrow": False, "font": {"size": 13}})
    title = {"text": "position in the expanded prompt"}
    layout["xaxis"] = {"zeroline": False, "anchor": _axis("y", len(pairs)), "title": title}
    return layout


def _plain(text: str) -> str:
    """Plotly reads a subset of HTML in labels."""
    return html.escape(text, quote=False)


def drawn(traces: Sequence[Trace], layout: Mapping[str, Any], positions: Any = None) -> Markup:
    """A figure for a script element: what every one has in common, and its own traces and layout."""
    common = {
        "template": {},
        "margin": {"l": 46, "r": 12, "t": _TOP_PX, "b": _BOTTOM_PX},
        "showlegend": False,  # The page has one in words, which wraps on a phone.
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
    }
    axes = {key: {"tickfont": {"size": 11}, **axis} for key, axis in layout.items() if key[1:].startswith("axis")}
    figure = {"data": traces, "layout": {**common, **layout, **axes}, "positions": positions}
    text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    # A script element ends at "</script" whatever the JSON around it says.
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704
