"""The page of one explained case: one HTML file with everything in it. Needs no network and nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from reports import figures
from reports.findings import STAGES
from reports.site import environment


def build(explained: Mapping[str, Any], arrays: Mapping[str, Any], images: Sequence[Image.Image], out: Path) -> Path:
    """Write the page of what `harness explain` found out; returns its path.

    `explained` is that as plain values, `arrays` the KL of each position, `images` a thumbnail of each image.
    """
    limits = {
        (pair["left"], pair["right"]): row["limit"]
        for pair in explained["pairs"]
        for row in pair["stages"]
        if row["stage"] == "hidden" and row["unit"] == "nats"
    }
    text = environment().get_template("explanation.html.j2").render(
        **explained,
        thumbnails=[_data_uri(image) for image in images],
        stage_figure=figures.stage_errors(explained["pairs"]) if explained["pairs"] else None,
        kl_figure=figures.kl_positions(arrays, limits) if figures.kl_by_pair(arrays) else None,
        words=STAGES,
        figures=figures,
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # noqa: S704 - a library's own file
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


def _data_uri(image: Image.Image) -> str:
    kept = io.BytesIO()
    image.save(kept, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"
