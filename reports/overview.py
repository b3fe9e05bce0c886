"""What the first page says of a run: what ran, who agrees with whom, what is new since the run before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.schema import PROPERTIES
from harness.store import RunStore, runs
from reports.charts import KL_SCALE
from reports.frames import VERDICTS, Frames, agreement, kl_maxima, reasons_not_comparable, when


def context(frames: Frames, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The variables of overview.html.j2."""
    return {
        "cases_planned": frames.planned,
        "verdicts": VERDICTS,
        "matrix": list(_matrix(frames)),
        "reasons": reasons_not_comparable(frames),
        "kl": _kl_rows(frames),
        "kl_ticks": KL_SCALE.ticks(5),
        "since": since(frames, findings),
    }


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


def _kl_rows(frames: Frames) -> list[dict[str, Any]]:
    """A row a pair, model, compute type and limit: how the largest KL of a case is spread, with media and without."""
    rows = []
    keys = ["left", "right", "model", "dtype", "limit"]
    for (left, right, model, dtype, _), chosen in kl_maxima(frames).groupby(keys, sort=False, dropna=False):
        finite = chosen.loc[np.isfinite(chosen["max"].astype(float)), "max"]
        known = next(iter(chosen["limit"].dropna().astype(float)), None)
        rows.append(
            {
                "pair": f"{left} ‖ {right}",
                "model": model,
                "dtype": dtype,
                "cases": len(chosen),
                "media": KL_SCALE.strip(chosen.loc[chosen["has_media"], "max"], "nats"),
                "text": KL_SCALE.strip(chosen.loc[~chosen["has_media"], "max"], "nats"),
                "median": float(finite.median()) if len(finite) else None,
                "largest": float(finite.max()) if len(finite) else None,
                "not_finite": len(chosen) - len(finite),
                "limit": known,
                "limit_at": KL_SCALE.place(known) if known else None,
            }
        )
    return rows


def since(frames: Frames, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What is new, still there and not seen any more, beside the run before; None where there is none to compare."""
    before = _run_before(frames)
    if before is None:
        return None
    old = before.frame("findings", ["id", "signature", "property", "model", "deviation"], {})
    known = old.drop_duplicates("id").set_index("id")
    now = {finding["id"]: finding for finding in findings}
    gone = known[~known.index.isin(list(now))].reset_index()
    header = before.header()
    return {
        "run_id": before.run_id,
        "started": when(header.get("started", "")),
        "versions": changed_versions(header, frames.header),
        "new": [finding for key, finding in now.items() if key not in known.index],
        "still": [finding for key, finding in now.items() if key in known.index],
        "gone": [row | {"tried": _tried(frames, row)} for row in gone.to_dict("records")],
    }


def _run_before(frames: Frames) -> RunStore | None:
    """The newest run of the store that began earlier, of a model that this run has too."""
    own, started = frames.header.get("plan", {}).get("models", []), frames.header.get("started", "")
    for run in reversed(runs(frames.run.path.parent)):
        if run.run_id == frames.run.run_id:
            continue
        try:
            header = RunStore.open(run.path.parent, run.run_id).header()
        except UserError:  # Of another schema: nothing to compare with.
            continue
        if header.get("started", "") <= started and {*header.get("plan", {}).get("models", [])} & {*own}:
            return run
    return None


def _tried(frames: Frames, finding: Mapping[Any, Any]) -> int:
    """Cases of this run whose verdicts could have shown a finding again."""
    asked = frames.verdicts["property"] == finding["property"]
    judged = frames.verdicts["verdict"] != "not comparable"
    rows = frames.verdicts[asked & judged & (frames.verdicts["model"] == finding["model"])]
    return int(rows["case_id"].nunique())


def changed_versions(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Subject -> the packages that differ between two runs' headers, in words; those that both runs had."""
    words = {}
    for name, subject in after.get("subjects", {}).items():
        old = before.get("subjects", {}).get(name, {}).get("version", {})
        pairs = [(p, old.get(p), v) for p, v in subject.get("version", {}).items()] if old else []
        if changed := [f"{p} {was or 'none'} → {now}" for p, was, now in pairs if was != now]:
            words[name] = ", ".join(changed)
    return words
