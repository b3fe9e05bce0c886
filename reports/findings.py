"""What the page of one finding says: the input, what each subject made of it, and the stages in order."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.schema import PROPERTIES, Case
from harness.spec import AUDIO_RATE_HZ, audio_tokens, reference_grid, soft_tokens, waveform_tokens
from reports import figures
from reports.frames import Frames

ROOT = Path(__file__).resolve().parent.parent
DEVIATIONS = ROOT / "cases" / "deviations"
ISSUES = ROOT / "docs" / "findings"

STAGES = {
    "load": "whether the checkpoint loads whole",
    "tensor": "whether one tensor matters",
    "outcome": "whether the engine answers at all",
    "counts": "how many soft tokens a medium becomes",
    "rounding": "the reference rule beside the exact contract",
    "prompt_ids": "token ids of the expanded prompt",
    "frames": "how many frames of a video are shown",
    "timestamps": "the times in front of a video's frames",
    "pixels": "image patches after resizing",
    "positions": "coordinates of the image patches",
    "audio_input": "what enters the audio tower",
    "video_pixels": "patches of the video frames",
    "video_positions": "coordinates of the video patches",
    "mm_features.first": "first soft-token row of an image",
    "mm_features": "soft-token rows from the vision tower and projector",
    "audio_features": "soft-token rows of the recordings",
    "video_features": "soft-token rows of the videos",
    "merged_embeddings": "what enters the decoder",
    "layer": "what leaves a decoder layer",
    "visibility": "who sees whom in the decoder",
    "hidden": "probability of every token, from the final hidden states",
    "logprobs": "the engine's own log-probabilities against its hidden states",
    "finite": "whether reduced precision stays finite",
}
"""What a stage means to a newcomer, in the order of the computation; one that is not here goes by its name, last."""

_ORDER = list(STAGES)


def stage_words(stage: str) -> str:
    """A stage in words; a probe's stage names the probe."""
    base, _, kind = stage.partition(".")
    return STAGES.get(stage) or (f"{STAGES[base]}, by probe {kind}" if base in STAGES else f"by probe {stage}")


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdict rows in the order of the computation; probes, which are runs of their own, behind them."""

    def place(row: Mapping[str, Any]) -> tuple[int, str, str, str]:
        stage = str(row["stage"])
        base = stage if stage in STAGES else stage.partition(".")[0]
        probed = len(_ORDER) * (stage not in STAGES and base != "layer")
        return probed + (_ORDER.index(base) if base in STAGES else len(_ORDER)), stage, row["left"], row["right"]

    return sorted(rows, key=place)


def ledger(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Verdicts as a table: a row a stage in the order of the computation, a column a pair, then each by itself."""
    columns = {(row["left"], row["right"]): None for row in rows}
    pairs = sorted(columns, key=lambda pair: (pair[0] == pair[1], pair[0] == "reference"))
    lines: dict[Any, dict[str, Any]] = {}
    for row in in_order(rows):
        limit = None if pd.isna(row["limit"]) else row["limit"]
        key = row["stage"], row["property"], limit, row["unit"]
        line = lines.setdefault(
            key, {**dict(zip(("stage", "property", "limit", "unit"), key, strict=True)), "cells": {}}
        )
        line["cells"][row["left"], row["right"]] = row
    notes = [row for row in in_order(rows) if row["reason"] and row["verdict"] != "agree"]
    return {"pairs": pairs, "rows": list(lines.values()), "notes": notes}


def described(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A group of findings with its promise, what is known of its cause, and the text of its issue."""
    known = _known_cause(entry["deviation"]) if entry["deviation"] else {}
    answers = entry["stage"] == "outcome"
    return {
        **entry,
        "promise": "the engine answers" if answers else PROPERTIES.get(entry["property"], entry["property"]),
        "words": stage_words(entry["stage"]),
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


def issue_text(deviation: str) -> str:
    """The text for the engine's tracker up to its script; empty where none is written."""
    files = {path.stem: path for path in ISSUES.glob("*.md")}
    if deviation not in files:
        return ""
    return files[deviation].read_text(encoding="utf-8").partition("<details>")[0].strip()


class Examples:
    """The stored rows of the cases that pages show, looked up by case."""

    def __init__(self, frames: Frames, case_ids: set[str]) -> None:
        """Take the rows of those cases out of the frames once."""
        self.frames = frames
        self._rows = {
            name: _by_case(getattr(frames, name), case_ids) for name in ("verdicts", "observations", "divergences")
        }

    def of(self, finding_id: str) -> dict[str, Any]:
        """Everything that a page shows of a finding's example."""
        capsule = self.frames.capsule(finding_id)
        assert capsule is not None, "a finding without an example is not shown"
        case = capsule.case
        arrays = self.frames.arrays(case.id)
        curves = figures.kl_by_pair(arrays)
        verdicts, observations = (self._rows[name].get(case.id, []) for name in ("verdicts", "observations"))
        judged = [row for row in verdicts if (row["property"], row["stage"]) == ("P6", "hidden")]
        limits = {(row["left"], row["right"]): row["limit"] for row in judged if pd.notna(row["limit"])}
        return {
            "case": case,
            "own": capsule.finding,
            "versions": capsule.subjects,
            "computed": f"{case.dtype or capsule.dtype} on {capsule.device}",
            "capsule": capsule,
            "media": list(_media(self.frames.run.path, case, observations)),
            "observations": observations,
            "ledger": ledger(verdicts),
            "roles": _roles(self._rows["divergences"].get(case.id, [])),
            "token_runs": role_runs(arrays),
            "placeholders": placeholder_runs(arrays),
            "figure": figures.kl_positions(arrays, limits) if curves else None,
            "without_curve": without_curve(judged, curves),
            "not_drawn": sum(map(figures.not_finite, curves.values())),
        }


def without_curve(judged: Sequence[Mapping[str, Any]], curves: Collection[tuple[str, str]]) -> dict[str, list[str]]:
    """Why pairs have no curve, in the words of their verdict: reason -> pairs."""
    found: dict[str, list[str]] = {}
    for row in judged:
        if (row["left"], row["right"]) not in curves:
            found.setdefault(row["reason"] or row["verdict"], []).append(f"{row['left']} – {row['right']}")
    return found


def _roles(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """KL by role as a table: a row a role, a column a pair."""
    pairs = list(dict.fromkeys((row["left"], row["right"]) for row in rows))
    names = [role.name for role in figures.ROLES if any(row["role"] == role.name for row in rows)]
    cells = {(row["role"], row["left"], row["right"]): row for row in rows}
    return {"pairs": pairs, "rows": [(name, [cells.get((name, *pair)) for pair in pairs]) for name in names]}


def _by_case(frame: pd.DataFrame, case_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in frame[frame["case_id"].isin(case_ids)].to_dict("records"):
        found.setdefault(row["case_id"], []).append({str(key): value for key, value in row.items()})
    return found


def _media(run: Path, case: Case, observations: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each medium of a case in prompt order: what it is, the right answers, and every subject's counts."""
    counted = {row["subject"]: json.loads(row["counts"] or "[]") for row in observations if not row.get("probe")}
    seen: dict[str, int] = {}
    for part in case.parts:
        spec = part.image or part.audio or part.video
        if part.medium is None or spec is None:
            continue
        index = seen.setdefault(part.medium, 0)
        seen[part.medium] += 1
        own = {
            name: [count for count in counts if count.get("medium", "image") == part.medium]
            for name, counts in counted.items()
        }
        yield {
            "kind": part.medium,
            "index": index,
            "spec": asdict(spec),
            "rules": _rules(part, case),
            "grid": _grid(part.image, case),
            "file": _picture(run, case, index) if part.image else "",
            "counts": {name: counts[index] for name, counts in own.items() if index < len(counts)},
        }


def _rules(part: Any, case: Case) -> dict[str, int]:
    """The right answers of `harness.spec` by their names; none for a video, which is counted frame by frame."""
    if part.image:
        answer = soft_tokens(part.image.width_px, part.image.height_px, case.max_soft_tokens)
        return {"reference rule, as shipped": answer.reference, "exact contract": answer.contract}
    if part.audio:
        samples = part.audio.samples * AUDIO_RATE_HZ // part.audio.rate_hz
        return {"E2B, E4B: log-mel frames": audio_tokens(samples), "12B: waves": waveform_tokens(samples)}
    return {}


def _grid(image: Any, case: Case) -> tuple[int, int] | None:
    """(columns, rows) of 48 px units that an image becomes; an oriented one is counted as it is stored."""
    return reference_grid(image.width_px, image.height_px, case.max_soft_tokens) if image else None


def _picture(run: Path, case: Case, index: int) -> str:
    name = f"{case.id}-{index}.png"
    return name if (run / "media" / name).is_file() else ""


def role_runs(arrays: Mapping[str, Any]) -> list[tuple[figures.Role, int]]:
    """The expanded prompt as (role, number of tokens), in order; empty where no pair had identical prompts."""
    roles = np.asarray(arrays.get("roles", ()), dtype=np.int64)
    starts = np.flatnonzero(np.diff(roles, prepend=-1))
    lengths = np.diff(starts, append=len(roles))
    return [(figures.ROLES[roles[start]], int(n)) for start, n in zip(starts, lengths, strict=True)]


def placeholder_runs(arrays: Mapping[str, Any]) -> dict[str, list[int]]:
    """Lengths of each subject's runs of placeholders, in prompt order.

    The placeholder's id is the one at a soft position of a prompt that the roles describe: of any compared pair.
    """
    soft = next(index for index, role in enumerate(figures.ROLES) if role.name == "soft")
    left = next((pair[0] for pair in figures.kl_by_pair(arrays)), "")
    described_ids = arrays.get(f"prompt_ids/{left}", np.array([], dtype=np.int64))
    placeholder = described_ids[arrays["roles"] == soft][:1] if len(described_ids) else described_ids
    if not len(placeholder):
        return {}
    sides = {name.removeprefix("prompt_ids/"): ids for name, ids in arrays.items() if name.startswith("prompt_ids/")}
    return {name: _true_runs(ids == placeholder) for name, ids in sides.items()}


def _true_runs(flags: Any) -> list[int]:
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [int(end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
