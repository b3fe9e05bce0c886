"""The static page of a run: one HTML file, and beside it the images and one copy of plotly. Needs no network.

Prompts and messages come from strangers. Jinja2 escapes every one of them; only figures, made in
`reports.figures`, pass as they are.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly
from markupsafe import Markup

from harness.schema import PROPERTIES, Case
from reports import figures
from reports.frames import VERDICTS, Frames, agreement, grouped_findings, kl_maxima, reasons_not_comparable

DEVIATIONS = Path(__file__).resolve().parent.parent / "cases" / "deviations"
_TEMPLATES = Path(__file__).parent / "templates"
_PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

STAGES = {
    "outcome": "whether the engine answers at all",
    "prompt_ids": "token ids of the expanded prompt",
    "counts": "how many soft tokens an image becomes",
    "pixels": "image patches after resizing",
    "positions": "coordinates of the image patches",
    "mm_features.first": "first soft-token row of an image",
    "mm_features": "soft-token rows from the vision tower and projector",
    "hidden": "probability of every token, from the final hidden states",
    "logprobs": "the engine's own log-probabilities against its hidden states",
}
"""What a stage means to a newcomer; one that is not here goes by its name."""

_READING_ORDER = ("differ", "not comparable", "agree")
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def build(frames: Frames, out: Path) -> Path:
    """Write the page into a directory; returns the page's path."""
    media = out / "assets" / "media"
    media.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_PLOTLY, out / "assets" / "plotly.min.js")
    findings = [_finding(frames, entry) for entry in grouped_findings(frames)]
    shown = {finding["example"] for finding in findings}
    examples = {case.id: _example(frames, case) for case in frames.run.cases() if case.id in shown}
    for image in (image for example in examples.values() for image in example["images"] if image["file"]):
        shutil.copyfile(frames.run.path / "media" / image["file"], media / image["file"])
    page = out / "index.html"
    text = environment().get_template("index.html.j2").render(
        **_overview(frames), findings=findings, examples=examples, stages=STAGES, figures=figures
    )  # fmt: skip
    page.write_text(text, encoding="utf-8")
    return page


def environment() -> jinja2.Environment:
    """Templates in which everything is escaped, and a variable that does not exist is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    templates.filters["number"] = _number
    return templates


def visible(value: Any) -> Any:
    """Control characters, which a browser hides and HTML partly forbids, as the symbols that stand for them."""
    return value.translate(_CONTROLS) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None) -> str:
    """Three significant digits; whole numbers in full; a dash for none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def _overview(frames: Frames) -> dict[str, Any]:
    """What the page says of the run as a whole."""
    header, maxima = frames.header, kl_maxima(frames)
    return {
        "run_id": frames.run.run_id,
        "plan": header.get("plan", {}),
        "environment": header.get("environment", {}),
        "subjects": header.get("subjects", {}),
        "timing": header.get("timing", {}),
        "started": _when(header.get("started", "")),
        "cases_done": len(frames.cases),
        "cases_planned": len(frames.run.cases()),
        "properties": PROPERTIES,
        "verdicts": VERDICTS,
        "matrix": list(_matrix(frames)),
        "reasons": reasons_not_comparable(frames),
        "kl_overview": figures.kl_overview(maxima) if len(maxima) else None,
        "kl_not_drawn": figures.not_finite(maxima["max"]),
    }


def _when(started: str) -> str:
    try:
        return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return started or "unknown"


def _matrix(frames: Frames) -> Iterator[dict[str, Any]]:
    """Rows of the agreement matrix: pairs first, then what each subject was asked by itself."""
    alone = set(frames.verdicts.loc[frames.verdicts["left"] == frames.verdicts["right"], "left"])
    counted = agreement(frames)
    for pair in sorted(counted.index, key=lambda name: (name in alone, name == "reference")):
        row = counted.loc[pair]
        yield {
            "pair": pair,
            "alone": pair in alone,
            "counts": {prop: {kind: int(row[prop, kind]) for kind in VERDICTS} for prop in PROPERTIES},
        }


def _finding(frames: Frames, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A group of findings with what is known of its cause."""
    known = _known_cause(entry["deviation"]) if entry["deviation"] else {}
    return {
        **entry,
        "promise": PROPERTIES.get(entry["property"], entry["property"]),
        "cause": known.get("cause", ""),
        "link": known.get("link", ""),
    }


def _known_cause(name: str) -> dict[str, Any]:
    """A deviation's file; empty if it is gone or cannot be read: a page of an old run must still build."""
    files = {path.stem: path for path in DEVIATIONS.glob("*.toml")}
    try:
        return tomllib.loads(files[name].read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return {}


def _example(frames: Frames, case: Case) -> dict[str, Any]:
    """Everything that the page shows of one case."""
    arrays = frames.run.read_arrays(case.id)
    curves = figures.kl_by_pair(arrays)
    verdicts = sorted(_of_case(frames.verdicts, case.id), key=lambda row: _READING_ORDER.index(row["verdict"]))
    limits = {
        (row["left"], row["right"]): row["limit"]
        for row in verdicts
        if (row["property"], row["stage"]) == ("P6", "hidden") and pd.notna(row["limit"])
    }
    observations = _of_case(frames.observations, case.id)
    return {
        "case": case,
        "images": list(_images(frames, case, observations)),
        "observations": observations,
        "verdicts": verdicts,
        "token_runs": _role_runs(arrays),
        "placeholders": _placeholder_runs(arrays),
        "figure": figures.kl_positions(arrays, limits) if curves else None,
        "off_curves": [row["subject"] for row in observations if not any(row["subject"] in pair for pair in curves)],
        "not_drawn": sum(map(figures.not_finite, curves.values())),
    }


def _of_case(frame: pd.DataFrame, case_id: str) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame[frame["case_id"] == case_id].to_dict("records")]


def _images(frames: Frames, case: Case, observations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each image of a case, both right answers for its soft tokens, and every subject's counts."""
    answers = {row["index"]: row for row in _of_case(frames.images, case.id)}
    counted = {row["subject"]: json.loads(row["counts"] or "[]") for row in observations}
    for index, image in enumerate(case.images):
        name = f"{case.id}-{index}.png"
        yield {
            **asdict(image),
            "file": name if (frames.run.path / "media" / name).is_file() else "",
            "reference": answers.get(index, {}).get("reference"),
            "contract": answers.get(index, {}).get("contract"),
            "counts": {name: counts[index] for name, counts in counted.items() if index < len(counts)},
        }


def _role_runs(arrays: Mapping[str, Any]) -> list[tuple[figures.Role, int]]:
    """The expanded prompt as (role, number of tokens), in order; empty where no pair had identical prompts."""
    roles = np.asarray(arrays.get("roles", ()), dtype=np.int64)
    starts = np.flatnonzero(np.diff(roles, prepend=-1))
    lengths = np.diff(starts, append=len(roles))
    return [(figures.ROLES[roles[start]], int(n)) for start, n in zip(starts, lengths, strict=True)]


def _placeholder_runs(arrays: Mapping[str, Any]) -> dict[str, list[int]]:
    """Lengths of each subject's runs of image placeholders, in prompt order.

    The placeholder's id is the one at a soft position of a prompt that the roles describe: of any compared pair.
    """
    soft = next(index for index, role in enumerate(figures.ROLES) if role.name == "soft")
    left = next((pair[0] for pair in figures.kl_by_pair(arrays)), "")
    described = arrays.get(f"prompt_ids/{left}", np.array([], dtype=np.int64))
    placeholder = described[arrays["roles"] == soft][:1] if len(described) else described
    if not len(placeholder):
        return {}
    sides = {name.removeprefix("prompt_ids/"): ids for name, ids in arrays.items() if name.startswith("prompt_ids/")}
    return {name: _true_runs(ids == placeholder) for name, ids in sides.items()}


def _true_runs(flags: Any) -> list[int]:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [int(end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
