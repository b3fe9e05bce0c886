"""A run as pandas frames, and the summaries that the command line, the JSON file and the pages share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UserError
from harness.schema import PROPERTIES, Capsule, Case, Finding
from harness.store import TABLES, Damaged, RunStore, plain, read_capsule, runs

VERDICTS = ("agree", "differ", "not comparable")


@dataclass(frozen=True)
class Frames:
    """One run: its header, and one frame a table of the store. `reports.columns` says what each column means."""

    run: RunStore
    header: dict[str, Any]
    cases: pd.DataFrame
    images: pd.DataFrame
    audios: pd.DataFrame
    videos: pd.DataFrame
    observations: pd.DataFrame
    verdicts: pd.DataFrame
    divergences: pd.DataFrame
    forecasts: pd.DataFrame
    findings: pd.DataFrame
    noise: pd.DataFrame
    comparisons: pd.DataFrame
    damaged: Damaged = field(default_factory=dict)
    """Grows while the run is read: capsules, arrays and pictures are read when they are shown."""

    @cached_property
    def _cases(self) -> dict[str, Case]:
        """The run's cases by id, for what a damaged capsule does not say any more."""
        try:
            return {case.id: case for case in self.run.cases()}
        except UserError as error:
            self.damaged[str(self.run.path / "cases.json")] = str(error)
            return {}

    def capsule(self, finding_id: str) -> Capsule | None:
        """A finding's example; of a damaged capsule, what the other files of the run say, or None without them."""
        path = self.run.path / "capsules" / f"{finding_id}.json"
        try:
            return read_capsule(path)
        except UserError as error:
            self.damaged[str(path)] = str(error)
        row = self.findings[self.findings["id"] == finding_id].astype(object).iloc[0]
        case = self._cases.get(row["case_id"])
        if case is None:
            return None
        values: dict[str, Any] = {
            entry.name: None if pd.isna(row[entry.name]) else row[entry.name] for entry in fields(Finding)
        }
        values["subjects"] = tuple(json.loads(values["subjects"]))
        ran, plan = self.header.get("subjects", {}), self.header.get("plan", {})
        subjects = {name: {"engine": subject["engine"], **subject["version"]} for name, subject in ran.items()}
        dtype, device = plan.get("dtype", ""), plan.get("device", "")
        return Capsule(self.header["schema"], Finding(**values), case, subjects, dtype, device)

    def arrays(self, case_id: str) -> dict[str, Any]:
        """What was kept by position of a case; nothing where its file is damaged."""
        try:
            return self.run.read_arrays(case_id)
        except UserError as error:
            self.damaged[str(self.run.path / "arrays" / f"{case_id}.safetensors")] = str(error)
            return {}

    @cached_property
    def planned(self) -> int:
        """How many cases the run was started with; those that have rows, where nothing else says it."""
        try:
            return self.run.planned()
        except UserError as error:
            self.damaged[str(self.run.path / "cases.json")] = str(error)
            return int(self.header.get("plan", {}).get("cases", len(self.cases)))


def load(store: Path, run_id: str | None = None) -> Frames:
    """A run of a store, the newest unless named.

    Raises:
        UserError: the store has no such run.
    """
    known = runs(store)
    if run_id is None and not known:
        raise UserError(f"no run in {store}; `harness run` makes one")
    return load_run(RunStore.open(store, run_id or known[-1].run_id))


def load_run(run: RunStore) -> Frames:
    """A run's frames, without what its damaged files held."""
    damaged: Damaged = {}
    tables = {table: run.frame(table, damaged=damaged) for table in TABLES}
    return Frames(run, run.header(), **tables, damaged=damaged)


def agreement(frames: Frames) -> pd.DataFrame:
    """Verdicts counted: one row a pair of subjects (or one subject by itself), columns (property, verdict)."""
    verdicts = frames.verdicts
    pair = verdicts["left"].where(verdicts["left"] == verdicts["right"], verdicts["left"] + " - " + verdicts["right"])
    counted = pd.crosstab(pair, [verdicts["property"], verdicts["verdict"]])
    columns = pd.MultiIndex.from_product([PROPERTIES, VERDICTS], names=["property", "verdict"])
    return counted.reindex(index=pair.unique(), columns=columns, fill_value=0)


def grouped_findings(frames: Frames) -> list[dict[str, Any]]:
    """Findings by signature and model, unexpected ones first: how many cases, the worst, and the kept example."""
    grouped = []
    for finding_id, rows in frames.findings.groupby("id", sort=False):
        capsule = frames.run.path / "capsules" / f"{finding_id}.json"
        kept = frames.capsule(str(finding_id))
        if kept is None:
            continue
        example = plain(kept.finding)
        unexplained = rows[rows["deviation"] == ""]
        grouped.append(
            {
                **{k: example[k] for k in ("id", "signature", "property", "stage", "subjects", "suspect", "model")},
                "cases": len(rows),
                "example": example["case_id"],
                "measured": _worst(rows["measured"]),
                "limit": example["limit"],
                "unit": example["unit"],
                "detail": example["detail"],
                "deviation": "" if len(unexplained) else str(rows["deviation"].mode()[0]),
                "unexpected_cases": len(unexplained),
                "replay": f"uv run harness replay {capsule}",
            }
        )
    return sorted(grouped, key=lambda entry: (entry["deviation"] != "", entry["signature"], entry["model"]))


def _worst(measured: pd.Series[float]) -> float | None:
    """The largest value; None if nothing was measured, or something that is no number."""
    return None if measured.isna().any() else float(measured.max())


def reasons_not_comparable(frames: Frames) -> list[tuple[str, int]]:
    """Why verdicts are not comparable, most frequent first."""
    rows = frames.verdicts[frames.verdicts["verdict"] == "not comparable"]
    return [(str(reason), int(count)) for reason, count in rows["reason"].value_counts().items()]


def kl_maxima(frames: Frames) -> pd.DataFrame:
    """The largest KL in nats of each case and pair, with its limit, its compute type, and whether it has media."""
    whole = frames.divergences[frames.divergences["role"] == "all"]
    judged = frames.verdicts[(frames.verdicts["property"] == "P6") & (frames.verdicts["stage"] == "hidden")]
    keys = ["case_id", "left", "right"]
    merged = whole.merge(judged[[*keys, "limit"]].drop_duplicates(keys), on=keys, how="left")
    media = frames.cases[["images", "audios", "videos"]].fillna(0).sum(axis=1) > 0
    own = frames.header.get("plan", {}).get("dtype", "")
    types = frames.cases.set_index("case_id")["dtype"].fillna("").replace("", own)
    return merged.assign(
        has_media=merged["case_id"].isin(frames.cases.loc[media, "case_id"]),
        dtype=merged["case_id"].map(types).astype(object).fillna(own),
    )


def when(started: str) -> str:
    """A moment as a person writes it."""
    try:
        return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return started or "unknown"


def failures(frames: Frames) -> list[tuple[str, int]]:
    """What the harness or the machine failed at, most frequent first: outcomes, and comparators of ours."""
    lost = frames.observations[frames.observations["outcome"] == "failed"]
    words = lost["subject"] + " failed: " + lost["message"]
    ours = frames.verdicts["reason"].fillna("").str.startswith("our comparator failed")
    told = frames.verdicts[ours]
    who = told["property"] + " of " + told["left"] + ", " + told["right"] + ": " + told["reason"]
    return [(str(text), int(count)) for found in (words, who) for text, count in found.value_counts().items()]


def document(frames: Frames) -> dict[str, Any]:
    """What `harness run --json` writes: docs/json.md lists the fields."""
    counted = frames.verdicts["verdict"].value_counts()
    return {
        "schema": frames.header["schema"],
        "run_id": frames.run.run_id,
        "cases": len(frames.cases),
        "subjects": frames.header.get("subjects", {}),
        "verdicts": {name.replace(" ", "_"): int(counted.get(name, 0)) for name in VERDICTS},
        "findings": grouped_findings(frames),
        "failures": [{"what": what, "times": times} for what, times in failures(frames)],
        "comparisons": [plain(row) for row in frames.comparisons.to_dict("records")],
        "timing": frames.header.get("timing", {}),
    }
