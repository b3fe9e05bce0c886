"""Runs on disk. Layer 1.

    <store>/<run_id>/
        run.json            what was asked, versions, seeds; rewritten when the run ends
        cases.json          every generated case, before the first one runs
        parts/000001/       rows of a few finished cases, one Parquet file a table
        parts/000001-000500/  those of so many parts, in their place
        capsules/<id>.json  one per finding, replayable anywhere
        media/<case>-<k>.png, arrays/<case>.safetensors   what a page shows of a finding's example

A part is written beside its place and renamed into it, whole tables at once, so a run that is killed has every
row of a case or none, and resuming neither loses nor doubles one. Every so many parts are merged into one, by which a
run of 100,000 cases stays readable; whoever reads takes a merged part and not what it is made of, so that being killed
between the two steps doubles nothing. Nothing here is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from harness.bounds import require_sense, require_sound
from harness.errors import HarnessBug, UserError, want
from harness.schema import SCHEMA_VERSION, Capsule, Case

DEFAULT_STORE = Path(".harness/store")

MERGED_PARTS = 500
"""How many parts become one."""

_TEXT, _REAL, _WHOLE, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_KEYS = {"case_id": _TEXT, "model": _TEXT}
_PAIR = {"left": _TEXT, "right": _TEXT}
_MEASURE = {"measured": _REAL, "limit": _REAL, "unit": _TEXT}
TABLES = {
    "cases": {
        **_KEYS,
        **dict.fromkeys(("form", "order", "probe", "companion", "dtype", "case"), _TEXT),
        **dict.fromkeys(("max_soft_tokens", "images", "audios", "videos"), _WHOLE),
        **dict.fromkeys(("expanded_parts", "text_bytes", "probe_at"), _WHOLE),
        **dict.fromkeys(("expanded", "system", "tool", "ascii", "special_tokens"), _FLAG),
    },
    "images": {
        **_KEYS,
        **dict.fromkeys(
            ("index", "width_px", "height_px", "orientation", "max_soft_tokens", "reference", "contract"), _WHOLE
        ),
        "mode": _TEXT,
        "pattern": _TEXT,
        "exact_ratio": _FLAG,
    },
    "audios": {**_KEYS, **dict.fromkeys(("index", "samples", "rate_hz"), _WHOLE), "pattern": _TEXT},
    "videos": {
        **_KEYS,
        **dict.fromkeys(("index", "frames", "width_px", "height_px", "last_index"), _WHOLE),
        "fps": _REAL,
        "given": _FLAG,
        "indices": _TEXT,
        "pattern": _TEXT,
    },
    "observations": {
        **_KEYS,
        **dict.fromkeys(("subject", "outcome", "message", "signature", "counts", "digests"), _TEXT),
        "probe": _FLAG,
        "tokens": _WHOLE,
        "engine_s": _REAL,
    },
    "verdicts": {**_KEYS, "property": _TEXT, "stage": _TEXT, **_PAIR, "verdict": _TEXT, **_MEASURE, "reason": _TEXT},
    "divergences": {
        **_KEYS,
        **_PAIR,
        "role": _TEXT,
        "n": _WHOLE,
        **dict.fromkeys(("mean", "p50", "p99", "p99_9", "max", "js_mean", "js_max", "same_top1"), _REAL),
        **dict.fromkeys(("min", "p0_1", "p1", "p5", "p10", "p90", "p95"), _REAL),
        **dict.fromkeys(("reverse_mean", "entropy_left", "entropy_right", "top5_shared"), _REAL),
        "tokens": _WHOLE,
        **dict.fromkeys(("gen_kl_error", "policy_kl_error", "js_divergence_error", "token_mult_prob_error"), _REAL),
        **dict.fromkeys(("kl", "k3_kl", "chi2_token", "ppl_ratio", "rollout_is_eff_sample_size"), _REAL),
        **dict.fromkeys((f"rollout_probs_diff_{name}" for name in ("mean", "max", "std")), _REAL),
    },
    "forecasts": {**_KEYS, **_PAIR, **dict.fromkeys(("rule", "level"), _TEXT), "n": _WHOLE, "dropped": _WHOLE},
    "findings": {
        **_KEYS,
        **dict.fromkeys(("id", "signature", "property", "stage", "subjects", "suspect", "detail", "deviation"), _TEXT),
        **_MEASURE,
    },
    "noise": {
        **_KEYS,
        **dict.fromkeys(("subject", "dtype", "device", "kind"), _TEXT),
        "n": _WHOLE,
        **dict.fromkeys(("kl_mean", "kl_p50", "kl_p99", "kl_p99_9", "kl_max"), _REAL),
        **dict.fromkeys(("logprob_mean", "logprob_p50", "logprob_p99", "logprob_p99_9", "logprob_max"), _REAL),
        **dict.fromkeys(("kl_histogram", "logprob_histogram"), _TEXT),
        "feature_max": _REAL,
    },
    "comparisons": {
        **dict.fromkeys(("model", "property", "stage"), _TEXT),
        **_PAIR,
        **dict.fromkeys(("dtype", "device", "unit", "verdict", "reason"), _TEXT),
        "cases": _WHOLE,
        **dict.fromkeys(("effect", "ci_low", "ci_high", "floor", "p_value", "q_value", "smallest_visible"), _REAL),
    },
}
"""Tables and their columns. `counts`, `digests`, `subjects`, `indices` and `case` hold JSON; `order` and `companion`
have a letter a part: t, i, a, v. `cases`, `images`, `audios` and `videos` say what was tried, so also what was not."""

T = TypeVar("T")

Damaged = dict[str, str]
"""Files of a run that cannot be read, each with the reason; what they held is left out of what is shown."""

_WORDS: dict[Any, str] = {Capsule: "capsule", list[Case]: "list of cases"}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Made once: it takes longer than a hundred capsules do."""
    return TypeAdapter(kind)


def validated(kind: type[T], text: str | bytes, source: str) -> T:
    """JSON from outside as one of the harness's own dataclasses.

    Raises:
        UserError: what the text holds instead; the message names its source and the first offending field.
    """
    try:
        return cast("T", _adapter(cast("Any", kind)).validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{source} is no valid {_WORDS.get(kind, 'JSON object')}: {where}: {first['msg']}") from error


def read_capsule(path: Path) -> Capsule:
    """A capsule from a file.

    Raises:
        UserError: the file cannot be read, is no capsule, or is of another schema version.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read capsule {path}: {error.strerror}") from error
    try:
        found = json.loads(text)["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = SCHEMA_VERSION  # No capsule at all, of which the next line says what is wrong.
    _require_schema(found, path)
    capsule = validated(Capsule, text, str(path))
    _require_schema(capsule.schema, path)
    require_sound(capsule, str(path))
    return capsule


def _require_schema(found: Any, path: Path) -> None:
    """Look at a capsule's schema version, before its fields too: another version may have others."""
    if isinstance(found, int) and found != SCHEMA_VERSION:
        fix = "update the harness" if found > SCHEMA_VERSION else "use the release that wrote it"
        age = "newer" if found > SCHEMA_VERSION else "older"
        raise UserError(f"{path} has schema {found}, {age} than this harness's, which reads {SCHEMA_VERSION}: {fix}")


def plain(value: Any) -> Any:
    """A value for JSON: dataclasses as objects, and no NaN or infinity, which JSON cannot say."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"
    with _written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A place beside a file, which takes the file's place once it is written; nothing is left of a failed one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def kept(run: RunStore) -> Iterator[None]:
    """Whatever is written into a run.

    Raises:
        HarnessBug: it cannot be; what is finished is there, and the message says so.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = want(error) or getattr(error, "strerror", None) or error
        raise HarnessBug(f"cannot write to {run.path}: {why}; make room, and nothing finished is lost") from error


@dataclass(frozen=True)
class RunStore:
    """One run's directory."""

    path: Path

    @property
    def run_id(self) -> str:
        """The directory's name."""
        return self.path.name

    @classmethod
    def create(cls, store: Path, header: Mapping[str, Any], cases: Sequence[Case]) -> RunStore:
        """A new run.

        Raises:
            UserError: the store cannot be written.
        """
        started = datetime.now(UTC)
        run = cls(store / f"{started:%Y%m%d-%H%M%S}-{os.getpid()}")
        try:
            for name in ("parts", "capsules", "media", "arrays", "logs"):
                (run.path / name).mkdir(parents=True)
            write_json(run.path / "cases.json", cases)
            run.write_header({**header, "started": started.isoformat(timespec="seconds")})
        except OSError as error:
            raise UserError(
                f"cannot write to the store {store}: {error.strerror}; choose another with --store"
            ) from error
        return run

    @classmethod
    def open(cls, store: Path, run_id: str) -> RunStore:
        """A run that exists.

        Raises:
            UserError: there is none of that name, or it is of another schema version.
        """
        run = cls(store / run_id)
        if not (run.path / "run.json").is_file():
            known = ", ".join(r.run_id for r in runs(store)[-3:]) or "none"
            raise UserError(f"no run {run_id} in {store}; the latest: {known}")
        found = run.header().get("schema")
        if found != SCHEMA_VERSION:
            raise UserError(f"run {run_id} has schema {found}; this harness reads {SCHEMA_VERSION}: run it again")
        return run

    def header(self) -> dict[str, Any]:
        """What was asked, versions, seeds, and, once it ended, the timing."""
        path = self.path / "run.json"
        return validated(dict[str, Any], path.read_bytes(), str(path))

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Replace the header."""
        write_json(self.path / "run.json", {"schema": SCHEMA_VERSION, "run_id": self.run_id, **header})

    def cases(self) -> list[Case]:
        """Every case of the run, finished or not.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "cases.json"
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        return list(validated(list[Case], text, str(path)))

    def planned(self) -> int:
        """How many cases the run was started with.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "cases.json"
        try:
            return len(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def append(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Add the rows of whole cases, all tables or none."""
        parts = self.path / "parts"
        number = 1 + max((int(p.name[-6:]) for p in parts.iterdir() if p.name[-6:].isdigit()), default=0)
        tables = {
            table: pa.Table.from_pylist(list(entries), pa.schema(TABLES[table]))
            for table, entries in rows.items()
            if entries
        }
        self._write_part(f"{number:06d}", tables)
        if number % MERGED_PARTS == 0:
            self._merge(number)

    def _write_part(self, name: str, tables: Mapping[str, pa.Table]) -> None:
        beside = self.path / "parts" / f".{name}-{os.getpid()}"
        beside.mkdir()
        try:
            for table, rows in tables.items():
                pq.write_table(rows, beside / f"{table}.parquet")
            beside.rename(self.path / "parts" / name)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise

    def _merge(self, last: int) -> None:
        """Put one part in the place of those up to `last` that are not merged yet."""
        single = [part for part in self._parts() if "-" not in part.name]
        merged = {}
        for table, columns in TABLES.items():
            files = [file for part in single if (file := part / f"{table}.parquet").is_file()]
            if files:
                merged[table] = pa.concat_tables(pq.read_table(file, schema=pa.schema(columns)) for file in files)
        self._write_part(f"{int(single[0].name):06d}-{last:06d}", merged)
        for part in single:
            shutil.rmtree(part)

    def _parts(self) -> list[Path]:
        """The parts that count, in order: a merged one, not what it is made of."""
        names = sorted(path.name for path in (self.path / "parts").glob("[0-9]*"))
        merged = [tuple(map(int, name.split("-"))) for name in names if "-" in name]
        covered = {number for first, last in merged for number in range(first, last + 1)}
        return [self.path / "parts" / name for name in names if "-" in name or int(name) not in covered]

    def frame(self, table: str, columns: Sequence[str] = (), damaged: Damaged | None = None) -> pd.DataFrame:
        """A whole table, or some columns of it; empty where the run has no such row.

        Given `damaged`, a file that cannot be read is named in it, and what it held is left out.

        Raises:
            UserError: a file cannot be read, and there is no `damaged` to name it in.
        """
        files = [file for part in self._parts() if (file := part / f"{table}.parquet").is_file()]
        try:
            return _frame(files, table, columns)
        except duckdb.Error:
            unreadable = {str(file): why for file in files if (why := _unreadable(file, table, columns))}
        if damaged is None:
            raise UserError(f"cannot read {', '.join(unreadable)}: damaged; `harness report` leaves out what it held")
        damaged.update(unreadable)
        return _frame([file for file in files if str(file) not in unreadable], table, columns)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A whole table as one mapping a row."""
        return [{str(column): value for column, value in row.items()} for row in self.frame(table).to_dict("records")]

    def finished(self) -> set[str]:
        """Ids of the cases that have their rows."""
        return set(self.frame("cases", ["case_id"])["case_id"])

    def discard_unfinished_parts(self) -> None:
        """Remove what a killed run was writing, and parts that it had merged and not yet removed."""
        counting = set(self._parts())
        for leftover in (self.path / "parts").iterdir():
            if leftover not in counting:
                shutil.rmtree(leftover)

    def write_arrays(self, case_id: str, arrays: Mapping[str, Any]) -> None:
        """Per-position arrays of an example."""
        with _written_whole(self.path / "arrays" / f"{case_id}.safetensors") as beside:
            save_file(dict(arrays), beside)

    def read_arrays(self, case_id: str) -> dict[str, Any]:
        """Per-position arrays of an example; empty if none were kept.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "arrays" / f"{case_id}.safetensors"
        if not path.is_file():
            return {}
        try:
            return dict(load_file(path))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}") from error


def _frame(files: Sequence[Path], table: str, columns: Sequence[str]) -> pd.DataFrame:
    if not files:
        return pd.DataFrame(columns=list(columns or TABLES[table]))
    with duckdb.connect() as connection:
        rows = connection.read_parquet(list(map(str, files)), union_by_name=True)
        frame: pd.DataFrame = (rows.project(", ".join(f'"{name}"' for name in columns)) if columns else rows).df()
    return frame


def _unreadable(file: Path, table: str, columns: Sequence[str]) -> str:
    """Why one file of a table cannot be read; empty if it can."""
    try:
        _frame([file], table, columns)
    except duckdb.Error as error:
        return str(error).splitlines()[0]
    return ""


def roles_of(arrays: Mapping[str, Any], left: str, right: str) -> Any:
    """The roles of the positions that a pair was compared at; runs of before have those of one pair for all."""
    return arrays.get(f"roles/{left}/{right}", arrays.get("roles", ()))


def runs(store: Path) -> list[RunStore]:
    """The runs of a store, oldest first."""
    return [RunStore(path.parent) for path in sorted(store.glob("*/run.json"))]


def find_case(store: Path, case_id: str) -> tuple[RunStore, Case]:
    """A case by its id, and the newest run that has it.

    Raises:
        UserError: no run of the store that can be read has it.
    """
    damaged: list[str] = []
    for run in reversed(runs(store)):
        try:
            cases = run.cases()
        except UserError as error:
            damaged.append(str(error))
            continue
        for case in cases:
            if case.id == case_id:
                require_sense(case, str(run.path / "cases.json"))
                return run, case
    left_out = "".join(f"; not looked into: {why}" for why in damaged)
    raise UserError(
        f"no case {case_id} in {store}, and no file of that name: give a capsule's path or a case id{left_out}"
    )


@contextlib.contextmanager
def locked(run: RunStore) -> Iterator[None]:
    """Hold a run against a second writer; the lock goes with the process, however that ends.

    Raises:
        UserError: another process is writing this run.
    """
    import fcntl

    with (run.path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"run {run.run_id} is being written by another process") from error
        yield
