"""The page's figures as plotly JSON, ready to stand in a script element. Colours of text and grid are the page's."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from harness import schema


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

CASE_KINDS = (
    Role("with_image", "case with an image", "#d4572a", "circle", "●"),
    Role("text_only", "case of text only", "#3d9bd1", "diamond-open", "◇"),
)
LIMIT_COLOUR = "#d8407c"
_PANEL_PX, _ROW_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 140, 32, 34, 30, 46


def kl_overview(maxima: pd.DataFrame) -> Markup:
    """The largest KL of every case: one panel a pair, one row a model, a point a case."""
    pairs = list(maxima[["left", "right"]].drop_duplicates().itertuples(index=False, name=None))
    models = list(dict.fromkeys(maxima["model"]))
    figure = _panels(pairs, max(len(models), 2) * _ROW_PX)
    for row, pair in enumerate(pairs, start=1):
        chosen = maxima[(maxima["left"] == pair[0]) & (maxima["right"] == pair[1])]
        for trace in (*_case_points(chosen, models), _limits_by_model(chosen, models)):
            figure.add_trace(trace, row=row, col=1)
    figure.update_xaxes(type="log", exponentformat="power")
    figure.update_xaxes(title_text="largest KL of the case, nats", row=len(pairs), col=1)
    ticks = {"tickvals": list(range(len(models))), "ticktext": [_short(model) for model in models]}
    figure.update_yaxes(range=[len(models) - 0.5, -0.5], automargin=True, zeroline=False, **ticks)
    return _json(figure)


def _case_points(chosen: pd.DataFrame, models: list[str]) -> list[go.Scatter]:
    """One trace of cases with an image, one of cases without; golden-ratio steps keep points of a row apart."""
    spread = (np.arange(len(chosen)) * 0.618) % 1 - 0.5
    placed = chosen.assign(y=chosen["model"].map(models.index) + 0.6 * spread)
    return [
        go.Scatter(
            x=_drawable(rows["max"]),
            y=rows["y"].to_numpy(np.float32),
            text=rows["case_id"].tolist(),
            mode="markers",
            marker={"color": kind.colour, "symbol": kind.symbol, "size": 7, "opacity": 0.85},
            hovertemplate=f"{kind.words}, %{{text}}<br>%{{x:.3g}} nats<extra></extra>",
        )
        for kind, has_image in zip(CASE_KINDS, (True, False), strict=True)
        for rows in [placed[placed["has_image"] == has_image]]
    ]


def _limits_by_model(chosen: pd.DataFrame, models: list[str]) -> go.Scatter:
    limits = chosen.dropna(subset=["limit"]).drop_duplicates(["model", "limit"])
    rows = limits["model"].map(models.index)
    x = [value for limit in limits["limit"] for value in (limit, limit, None)]
    y = [value for row in rows for value in (row - 0.5, row + 0.5, None)]
    return _limit_line(x, y)


def kl_positions(arrays: Mapping[str, Any], limits: Mapping[tuple[str, str], float]) -> Markup:
    """KL at every position of one prompt: one panel a pair, coloured by role, with the pair's limit as a line."""
    curves = kl_by_pair(arrays)
    figure = _panels(list(curves), _PANEL_PX)
    for row, (pair, kl) in enumerate(curves.items(), start=1):
        for trace in _role_points(kl, arrays["roles"]):
            figure.add_trace(trace, row=row, col=1)
        if pair in limits:
            figure.add_trace(_limit_line([0, len(kl) - 1], [limits[pair]] * 2), row=row, col=1)
    figure.update_yaxes(type="log", exponentformat="power", dtick=3)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title_text="position in the expanded prompt", row=len(curves), col=1)
    return _json(figure)


FLOOR_ERROR = 1e-9
"""Where the axis of relative errors shows zero: below what float32 can tell from it."""

_PAIR_LOOKS = (("#3d9bd1", "circle"), ("#d4572a", "diamond"), ("#15957a", "square"), ("#7f6bd0", "triangle-up"))


def stage_errors(pairs: Sequence[Mapping[str, Any]]) -> Markup:
    """The relative error of every stage, one line a pair; a filled mark differs beyond its limit."""
    stages = list(dict.fromkeys(row["stage"] for pair in pairs for row in pair["stages"]))
    figure = go.Figure()
    for number, pair in enumerate(pairs):
        rows = [row for row in pair["stages"] if row["max_relative"] is not None]
        colour, symbol = _PAIR_LOOKS[number % len(_PAIR_LOOKS)]
        symbols = [symbol if row["verdict"] == "differ" else f"{symbol}-open" for row in rows]
        hover = f"{_plain(pair['left'])} - {_plain(pair['right'])}, %{{x}}<br>%{{y:.3g}}<extra></extra>"
        figure.add_trace(
            go.Scatter(
                x=[row["stage"] for row in rows],
                y=[max(row["max_relative"], FLOOR_ERROR) for row in rows],
                mode="lines+markers",
                marker={"color": colour, "symbol": symbols, "size": 10},
                line={"color": colour, "width": 1.5},
                hovertemplate=hover,
            )
        )
    noise = {row["stage"]: row["noise"] for pair in pairs for row in pair["stages"] if row["noise"]}
    if noise:
        line = {"color": LIMIT_COLOUR, "width": 1.5, "dash": "dash"}
        hover = "rounding alone, %{x}<br>%{y:.3g}<extra></extra>"
        figure.add_trace(go.Scatter(x=[*noise], y=[*noise.values()], mode="lines", line=line, hovertemplate=hover))
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_xaxes(categoryorder="array", categoryarray=stages)
    return _json(figure.update_layout(height=300))


def pair_looks(number: int) -> Role:
    """How the legend names the line of a pair."""
    glyphs = "●◆■▲"
    place = number % len(_PAIR_LOOKS)
    return Role(f"pair-{number}", "", _PAIR_LOOKS[place][0], _PAIR_LOOKS[place][1], glyphs[place])


def kl_by_pair(arrays: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """KL per position of the pairs whose prompts the roles describe."""
    positions = len(arrays.get("roles", ()))
    named = {tuple(name.split("/", 2)[1:]): kl for name, kl in arrays.items() if name.startswith("kl/")}
    return {(left, right): kl for (left, right), kl in named.items() if len(kl) == positions}


def _role_points(kl: Any, roles: Any) -> list[go.Scatter]:
    traces = []
    for index, role in enumerate(ROLES):
        positions = np.flatnonzero(roles == index)
        marker = {"color": role.colour, "symbol": role.symbol, "size": 5, "line": {"width": 1.5, "color": role.colour}}
        hover = f"position %{{x}}, {role.words}<br>%{{y:.3g}} nats<extra></extra>"
        points = {"x": positions.astype(np.int32), "y": _drawable(kl[positions])}
        traces.append(go.Scatter(**points, mode="markers", marker=marker, hovertemplate=hover))
    return traces


def _limit_line(x: list[Any], y: list[Any]) -> go.Scatter:
    line = {"color": LIMIT_COLOUR, "width": 1.5, "dash": "dash"}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hovertemplate="limit<extra></extra>")


def _drawable(nats: Any) -> Any:
    """Zero at the floor; what is no number stays so, is not drawn, and is counted beside the figure."""
    return np.maximum(np.asarray(nats, dtype=np.float64), FLOOR_NATS).astype(np.float32)


def not_finite(nats: Any) -> int:
    """How many values a figure cannot draw."""
    return int((~np.isfinite(np.asarray(nats, dtype=np.float64))).sum())


def _panels(pairs: Sequence[tuple[str, str]], panel_px: int) -> go.Figure:
    """One panel a pair, above one another on one horizontal axis."""
    inner_px = len(pairs) * (panel_px + _GAP_PX) - _GAP_PX
    titles = [_plain(f"KL( {left} ‖ {right} ), nats") for left, right in pairs]
    figure = make_subplots(
        len(pairs), 1, shared_xaxes=True, shared_yaxes="all", subplot_titles=titles, vertical_spacing=_GAP_PX / inner_px
    )
    return figure.update_layout(height=inner_px + _TOP_PX + _BOTTOM_PX)


def _short(model: str) -> str:
    """A zoo name, or the last part of a checkpoint's path: on a phone a label must leave room for points."""
    return _plain(model.rstrip("/").rsplit("/", 1)[-1][:20])


def _plain(text: str) -> str:
    """Plotly reads a subset of HTML in labels."""
    return html.escape(text, quote=False)


def _json(figure: go.Figure) -> Markup:
    figure.update_layout(
        template="none",
        margin={"l": 46, "r": 12, "t": _TOP_PX, "b": _BOTTOM_PX},
        showlegend=False,  # The page has one in words, which wraps on a phone.
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_xaxes(tickfont_size=11).update_yaxes(tickfont_size=11)
    # A script element ends at "</script" whatever the JSON around it says.
    return Markup(figure.to_json().replace("<", "\\u003c"))  # noqa: S704
