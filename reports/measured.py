"""Two pages about the harness itself: what it takes for noise, and how many cases it needs to see a fault."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.charts import Cell, Scale, cells
from reports.findings import ROOT
from reports.frames import Frames

POWER = ROOT / "docs" / "power.json"
"""What `nox -s power` measured."""

NOISE_SCALE = Scale(-16, 2, steps=1)
_CASES_SCALE = Scale(0, 3)

LIMITS_NATS = {"float32": 1e-5, "bfloat16": 2.0, "float16": 0.7}
"""Compute type -> the KL from which calibration calls a case a finding: docs/decisions/0003-limits.md."""

KINDS = {
    "repeat": "the same run twice",
    "batch": "alone and in a batch",
    "chunked": "at once and in chunks",
    "anchor": "float32 beside float64",
}


def noise(frames: Frames) -> dict[str, Any]:
    """The variables of noise.html.j2: a row a model, subject and kind, and the comparisons of the whole run."""
    rows = []
    keys = ["model", "dtype", "subject", "kind"]
    for (model, dtype, subject, kind), chosen in frames.noise.groupby(keys, sort=True, dropna=False):
        rows.append(
            {
                "model": model,
                "dtype": dtype,
                "subject": subject,
                "kind": kind,
                "words": KINDS.get(str(kind), kind),
                "cases": len(chosen),
                "positions": int(chosen["n"].sum()),
                "strip": _histogram(chosen["kl_histogram"]),
                "kl_p50": _largest(chosen["kl_p50"]),
                "kl_p99_9": _largest(chosen["kl_p99_9"]),
                "kl_max": _largest(chosen["kl_max"]),
                "logprob_max": _largest(chosen["logprob_max"]),
                "findings": int((pd.to_numeric(chosen["kl_max"]) > LIMITS_NATS.get(str(dtype), np.inf)).sum()),
            }
        )
    return {
        "rows": rows,
        "limits": LIMITS_NATS,
        "ticks": NOISE_SCALE.ticks(6),
        "comparisons": frames.comparisons.to_dict("records"),
    }


def _histogram(texts: pd.Series[str]) -> list[Cell]:
    """Positions by decade, summed over calibration cases."""
    counted = [json.loads(text) for text in texts.dropna()]
    if not counted:
        return []
    edges = [f"1e{power}" for power in range(NOISE_SCALE.low, NOISE_SCALE.high + 1)]
    total = np.sum([counts for counts in counted if len(counts) == len(edges) - 1], axis=0)
    return cells(np.atleast_1d(total).astype(int).tolist(), edges, "nats")


def _largest(values: pd.Series[Any]) -> float | None:
    known = pd.to_numeric(values).dropna()
    return float(known.max()) if len(known) else None


def power(path: Path | None = None) -> dict[str, Any]:
    """The variables of power.html.j2: seeded faults by the cases that it took to see them."""
    file = path or POWER
    if not file.is_file():
        return {"faults": [], "null": [], "ticks": [], "median": None, "missed": 0}
    measured = json.loads(file.read_text(encoding="utf-8"))
    faults = sorted(measured["detected"], key=lambda entry: (entry["cases"] is None, entry["cases"] or 0))
    for entry in faults:
        entry["at"] = _CASES_SCALE.place(entry["cases"]) if entry["cases"] else None
    found = [entry["cases"] for entry in faults if entry["cases"]]
    return {
        "faults": faults,
        "null": measured["null"],
        "ticks": _CASES_SCALE.ticks(1),
        "median": statistics.median(found) if found else None,
        "missed": len(faults) - len(found),
    }
