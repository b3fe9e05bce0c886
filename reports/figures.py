"""The page's figures as plotly JSON, ready to stand in a script element. Colours of text and grid are the page's."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots


@dataclass(frozen=True)
class Role:
    """How one token role is named and drawn: told apart by shape as well as by colour."""

    name: str
    words: str
    colour: str
    symbol: str


ROLES = (
    Role("text_before", "text before an image", "#3d9bd1", "circle"),
    Role("boi", "begin of image", "#c99700", "triangle-up"),
    Role("soft", "soft tokens of an image", "#7f6bd0", "square"),
    Role("eoi", "end of image", "#d4572a", "triangle-down"),
    Role("after_media", "first 8 text tokens after it", "#15957a", "diamond"),
    Role("rest", "text further on", "#8b8f97", "x-thin-open"),
)
"""In the order of the indices that a run's `roles` arrays hold."""

FLOOR_NATS = 1e-15
"""Where a logarithmic axis shows zero: below what float64 sums over a vocabulary can tell from it."""

IMAGE_COLOUR, TEXT_COLOUR, LIMIT_COLOUR = "#d4572a", "#3d9bd1", "#c2185b"
_PANEL_PX, _ROW_PX, _MARGIN_PX = 190, 34, 110


def kl_overview(maxima: pd.DataFrame) -> Markup:
    """The largest KL of every case: one panel a pair, one row a model, a point a case."""
    pairs = list(maxima[["left", "right"]].drop_duplicates().itertuples(index=False, name=None))
    models = list(dict.fromkeys(maxima["model"]))
    titles = [_kl_name(*pair) for pair in pairs]
    figure = make_subplots(len(pairs), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.16 / len(pairs))
    for row, pair in enumerate(pairs, start=1):
        chosen = maxima[(maxima["left"] == pair[0]) & (maxima["right"] == pair[1])]
        for trace in (*_case_points(chosen, models), _limits_by_model(chosen, models)):
            figure.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
    figure.update_xaxes(type="log", exponentformat="power", showticklabels=True)
    figure.update_xaxes(title_text="largest KL of the case, nats", row=len(pairs), col=1)
    ticks = {"tickvals": list(range(len(models))), "ticktext": [_plain(model) for model in models]}
    figure.update_yaxes(range=[len(models) - 0.5, -0.5], automargin=True, zeroline=False, **ticks)
    return _json(figure, len(pairs) * (len(models) * _ROW_PX + 70) + _MARGIN_PX)


def _case_points(chosen: pd.DataFrame, models: list[str]) -> list[go.Scatter]:
    """One trace of cases with an image, one of cases without; golden-ratio steps keep points of a row apart."""
    spread = (np.arange(len(chosen)) * 0.618) % 1 - 0.5
    placed = chosen.assign(y=chosen["model"].map(models.index) + 0.6 * spread)
    looks = {True: ("with an image", IMAGE_COLOUR, "circle"), False: ("text only", TEXT_COLOUR, "diamond-open")}
    return [
        go.Scatter(
            x=_drawable(rows["max"]),
            y=rows["y"].to_numpy(np.float32),
            text=rows["case_id"].tolist(),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75},
            name=name,
            legendgroup=name,
            hovertemplate="case %{text}<br>%{x:.3g} nats<extra></extra>",
        )
        for has_image, (name, colour, symbol) in looks.items()
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
    titles = [_kl_name(*pair) for pair in curves]
    figure = make_subplots(len(curves), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.2 / len(curves))
    named: set[str] = set()
    for row, (pair, kl) in enumerate(curves.items(), start=1):
        for trace in _role_points(kl, arrays["roles"], named):
            figure.add_trace(trace, row=row, col=1)
        if pair in limits:
            line = _limit_line([0, len(kl) - 1], [limits[pair]] * 2).update(showlegend="limit" not in named)
            figure.add_trace(line, row=row, col=1)
            named.add("limit")
    figure.update_yaxes(type="log", exponentformat="power", title_text="nats", nticks=6)
    figure.update_xaxes(showticklabels=True, zeroline=False)
    figure.update_xaxes(title_text="position in the expanded prompt", row=len(curves), col=1)
    return _json(figure, len(curves) * _PANEL_PX + _MARGIN_PX)


def kl_by_pair(arrays: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """KL per position of the pairs whose prompts the roles describe."""
    positions = len(arrays.get("roles", ()))
    named = {tuple(name.split("/", 2)[1:]): kl for name, kl in arrays.items() if name.startswith("kl/")}
    return {(left, right): kl for (left, right), kl in named.items() if len(kl) == positions}


def _role_points(kl: Any, roles: Any, named: set[str]) -> list[go.Scatter]:
    traces = []
    for index, role in enumerate(ROLES):
        positions = np.flatnonzero(roles == index)
        if not len(positions):
            continue
        marker = {"color": role.colour, "symbol": role.symbol, "size": 5, "line": {"width": 1.5, "color": role.colour}}
        look = {"mode": "markers", "marker": marker, "name": role.words, "legendgroup": role.name}
        hover = f"position %{{x}}, {role.words}<br>%{{y:.3g}} nats<extra></extra>"
        points = {"x": positions.astype(np.int32), "y": _drawable(kl[positions])}
        traces.append(go.Scatter(**points, **look, hovertemplate=hover, showlegend=role.name not in named))
        named.add(role.name)
    return traces


def _limit_line(x: list[Any], y: list[Any]) -> go.Scatter:
    look = {"color": LIMIT_COLOUR, "width": 1.5, "dash": "dash"}
    return go.Scatter(x=x, y=y, mode="lines", line=look, name="limit", legendgroup="limit", hoverinfo="x+y+name")


def _drawable(nats: Any) -> Any:
    """Zero at the floor; what is no number stays so, is not drawn, and is counted beside the figure."""
    return np.maximum(np.asarray(nats, dtype=np.float64), FLOOR_NATS).astype(np.float32)


def not_finite(nats: Any) -> int:
    """How many values a figure cannot draw."""
    return int((~np.isfinite(np.asarray(nats, dtype=np.float64))).sum())


def _kl_name(left: str, right: str) -> str:
    return _plain(f"KL( {left} ‖ {right} )")


def _plain(text: str) -> str:
    """Plotly reads a subset of HTML in labels."""
    return html.escape(text, quote=False)


def _json(figure: go.Figure, height_px: int) -> Markup:
    figure.update_layout(
        template="none",
        height=height_px,
        margin={"l": 62, "r": 12, "t": 70, "b": 48},
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0, "xref": "paper"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    # A script element ends at "</script" whatever the JSON around it says.
    return Markup(figure.to_json().replace("<", "\\u003c"))  # noqa: S704
