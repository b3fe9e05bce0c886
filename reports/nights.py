"""The history store: what one night came to, in one small file that outlives the run that it was made from.

    <history>/<run_id>.json     series of numbers with their sampling error, and how many cases show each signature

A night that is added twice is the same file. All of it is summaries, so thirty nights are a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.store import validated, write_json
from reports.figures import FLOOR_NATS
from reports.frames import Frames

DEFAULT_HISTORY = Path(".harness/history")
NIGHT_SCHEMA = 1

_FORBID_EXTRA = {"extra": "forbid"}


@dataclass(frozen=True)
class Series:
    """What is followed from night to night. `subjects` are those whose releases can move it.

    A share is of `n` cases; a level is a mean over them in `unit`. `worse` says which direction is bad. A series is
    `known` where a written cause explains every case of it.
    """

    name: str
    model: str
    subjects: tuple[str, ...]
    kind: Literal["share", "level"]
    unit: str
    worse: Literal["up", "down"]
    signature: bool = False
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Point:
    """One night's value of a series, over `n` cases; `error` is the standard error of a level."""

    series: Series
    value: float
    n: int
    error: float = 0.0
    known: bool = False
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Night:
    """One run as the history keeps it."""

    schema: int
    run_id: str
    started: str
    plan: dict[str, Any]
    versions: dict[str, dict[str, str]]
    points: tuple[Point, ...]
    __pydantic_config__: ClassVar = _FORBID_EXTRA


def night(frames: Frames) -> Night:
    """What a finished run came to."""
    header = frames.header
    versions = {name: subject["version"] for name, subject in header.get("subjects", {}).items() if subject["version"]}
    points = (*_answered(frames), *_found(frames), *_kl(frames), *_signatures(frames))
    return Night(NIGHT_SCHEMA, frames.run.run_id, header.get("started", ""), header.get("plan", {}), versions, points)


def add(history: Path, made: Night) -> Path:
    """Keep a night; whole or not at all."""
    history.mkdir(parents=True, exist_ok=True)
    path = history / f"{made.run_id}.json"
    write_json(path, made)
    return path


def read(history: Path) -> tuple[Night, ...]:
    """Every night, oldest first.

    Raises:
        UserError: a file that is no night, or one of another schema, or no directory.
    """
    if history.exists() and not history.is_dir():
        raise UserError(f"--history {history}: is no directory; give the one where nights are kept")
    nights = []
    for path in sorted(history.glob("*.json")):
        text = path.read_bytes()
        found = _schema(text)
        if found != NIGHT_SCHEMA:
            raise UserError(f"{path} has schema {found}; this harness reads {NIGHT_SCHEMA}: add its run again")
        nights.append(validated(Night, text, str(path)))
    return tuple(sorted(nights, key=lambda entry: (entry.started, entry.run_id)))


def _schema(text: bytes) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return "no JSON"
    return value.get("schema") if isinstance(value, dict) else "no object"


def _answered(frames: Frames) -> Iterator[Point]:
    plain = frames.observations[~frames.observations["probe"].fillna(False).astype(bool)]
    for (model, subject), rows in plain.groupby(["model", "subject"]):
        series = Series("cases answered", str(model), (str(subject),), "share", "of cases", "down")
        yield Point(series, float((rows["outcome"] == "ok").mean()), len(rows))


def _found(frames: Frames) -> Iterator[Point]:
    """Unexplained findings of each property, by whom they may be the fault of."""
    engines = {name: subject["engine"] for name, subject in frames.header.get("subjects", {}).items()}
    unexpected = frames.findings[frames.findings["deviation"] == ""]
    blamed = {name: unexpected[_blames(unexpected, name, engine)] for name, engine in engines.items()}
    for (model, prop), rows in _judged(frames).groupby(["model", "property"]):
        for name, found in blamed.items():
            asked = rows[(rows["left"] == name) | (rows["right"] == name)]["case_id"].nunique()
            if asked:
                own = found[(found["model"] == model) & (found["property"] == prop)]["case_id"].nunique()
                series = Series(f"unexpected findings of {prop}", str(model), (name,), "share", "of cases", "up")
                yield Point(series, min(1.0, own / asked), asked)


def _blames(findings: pd.DataFrame, name: str, engine: str) -> Any:
    among = findings["subjects"].fillna("[]").map(lambda text: name in json.loads(text))
    return findings["suspect"].isin([name, engine]) | ((findings["suspect"] == "undecided") & among)


def _judged(frames: Frames) -> pd.DataFrame:
    return frames.verdicts[frames.verdicts["verdict"] != "not comparable"]


def _kl(frames: Frames) -> Iterator[Point]:
    """The decade of a case's largest KL, a mean over cases of which no written cause explains it."""
    known = frames.findings[(frames.findings["property"] == "P6") & (frames.findings["deviation"] != "")]
    whole = frames.divergences[frames.divergences["role"] == "all"]
    whole = whole[~whole["case_id"].isin(known["case_id"])]
    for (model, left, right), rows in whole.groupby(["model", "left", "right"]):
        decades = np.log10(np.clip(rows["max"].astype(float).to_numpy(), FLOOR_NATS, 1e3))
        decades = decades[np.isfinite(decades)]
        if len(decades) > 1:
            name = f"largest KL( {left} ‖ {right} )"
            series = Series(name, str(model), (str(left), str(right)), "level", "log10 nats", "up")
            yield Point(series, float(decades.mean()), len(decades), _error(decades))


def _error(values: Any) -> float:
    """Standard error of the mean; never below a hundredth of a decade, which no rounding is worth."""
    return max(0.01, float(values.std(ddof=1)) / float(np.sqrt(len(values))))


def _signatures(frames: Frames) -> Iterator[Point]:
    asked = _judged(frames).groupby(["model", "property"])["case_id"].nunique()
    for (signature, model), rows in frames.findings.groupby(["signature", "model"]):
        tried = int(asked.get((model, rows["property"].iloc[0]), 0))
        seen = rows["case_id"].nunique()
        subjects = tuple(sorted({name for text in rows["subjects"].fillna("[]") for name in json.loads(text)}))
        series = Series(str(signature), str(model), subjects, "share", "of cases", "up", signature=True)
        yield Point(series, seen / max(tried, seen), max(tried, seen), known=bool((rows["deviation"] != "").all()))
