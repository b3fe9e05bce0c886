"""Every size, arithmetic only: each engine's own counting function beside both answers of `harness.spec`. Layer 3.

No engine is started. Each subject counts in processes of its own environment, one a core, into array files; what they
say is compared here, a block of heights at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.builds import held
from harness.checkpoint import Checkpoint
from harness.deviations import explain, load_deviations
from harness.environments import Subject
from harness.errors import EngineUnavailable
from harness.schema import Case, Finding, ImageSpec, Part
from harness.spec import audio_tokens, soft_token_rows

COUNTING = ("hf", "vllm", "native")
"""Engines whose own counting function can be called alone."""

BLOCK_HEIGHTS = 50
BLOCK_SAMPLES = 50_000

ANSWER_TIMEOUT_S = 300.0
"""Importing an engine from a cold disk takes a minute on a slow machine, a block seconds; more than this is a hang."""

Watch = Callable[[str, int, int], None]
"""Told what is counted, how many calls are done, and of how many."""


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    `images` has a row for each size and budget on which subjects part: width_px, height_px, budget, a column for each
    subject, reference, contract. `audio` the same by samples. `sensitive` counts sizes by budget where the reference
    rule itself loses tokens to rounding: no disagreement between engines. `versions` has each subject's `engine` too.
    """

    images: pd.DataFrame
    audio: pd.DataFrame
    sensitive: dict[int, int]
    compared: int
    calls_per_s: dict[str, float]
    versions: dict[str, dict[str, str]]
    wall_s: float


class _Counters:
    """The counting processes of one subject."""

    def __init__(self, subject: Subject, checkpoint: Path, processes: int) -> None:
        command = [subject.python, "-m", "harness.engines.counting", subject.engine, str(checkpoint)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **subject.env}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=environment, text=True)
            for _ in range(processes)
        ]
        self.idle = list(self.processes)
        self.lock = threading.Lock()
        self.subject = subject
        self.versions: dict[str, str] = {}

    def start(self) -> None:
        """Wait until every process has its engine imported.

        Raises:
            EngineUnavailable: one ended instead; the message ends in its last words.
        """
        for process in self.processes:
            self.versions = self._answer(process)["versions"]

    def count(self, task: dict[str, Any]) -> float:
        """Have one idle process fill a block; seconds that it took."""
        with self.lock:
            process = self.idle.pop()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            return float(self._answer(process)["seconds"])
        except BrokenPipeError as error:
            raise self._gone() from error
        finally:
            with self.lock:
                self.idle.append(process)

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        limit = threading.Timer(ANSWER_TIMEOUT_S, end)
        limit.start()
        try:
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            raise self._gone(late=late.is_set())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self, *, late: bool = False) -> EngineUnavailable:
        if late:
            return EngineUnavailable(
                f"subject {self.subject.name} cannot count here: no answer within {ANSWER_TIMEOUT_S:g} s; killed"
            )
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        return EngineUnavailable(f"subject {self.subject.name} cannot count here: {last[0][:500]}")

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        self.errors.close()


@contextmanager
def _counters(subject: Subject, checkpoint: Path) -> Iterator[_Counters]:
    counters = _Counters(subject, checkpoint, len(os.sched_getaffinity(0)))
    try:
        counters.start()
        yield counters
    finally:
        counters.close()


def sweep(
    subjects: Sequence[Subject], checkpoint: Path, budgets: Sequence[int], max_side_px: int, samples: int, watch: Watch
) -> Swept:
    """Count every size up to `max_side_px` squared at each budget, and every recording shorter than `samples`.

    Raises:
        EngineUnavailable: a subject whose counting function cannot be reached here.
    """
    for subject in subjects:
        if subject.engine not in COUNTING or subject.options:
            raise EngineUnavailable(f"{subject.name} has no counting function here; of these: {', '.join(COUNTING)}")
    started = time.perf_counter()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-")))
        rates, versions, files = {}, {}, {}
        for subject in subjects:
            made = {budget: scratch / f"{subject.name}-{budget}.npy" for budget in (*budgets, 0)}
            for budget, path in made.items():
                np.save(path, np.zeros((max_side_px, max_side_px) if budget else samples, dtype=np.uint16))
            with held(subject), _counters(subject, checkpoint) as counters:
                rates[subject.name] = _fill(counters, made, max_side_px, samples, watch)
                versions[subject.name] = {"engine": subject.engine, **counters.versions}
            files[subject.name] = made
        watch("comparing", 0, 1)
        images, sensitive = _compare_images(files, budgets)
        compared = len(budgets) * max_side_px**2 + samples
        audio = _compare_audio({name: np.load(made[0]) for name, made in files.items()})
        return Swept(images, audio, sensitive, compared, rates, versions, time.perf_counter() - started)


def _fill(counters: _Counters, files: dict[int, Path], max_side_px: int, samples: int, watch: Watch) -> float:
    """Have one subject count everything; calls per second of one process."""
    tasks: list[tuple[dict[str, Any], int]] = []
    for budget, path in files.items():
        block, end, weight = (BLOCK_HEIGHTS, max_side_px + 1, max_side_px) if budget else (BLOCK_SAMPLES, samples, 1)
        for first in range(1 if budget else 0, end, block):
            last = min(first + block, end)
            tasks.append(({"budget": budget, "path": str(path), "first": first, "last": last}, (last - first) * weight))
    total, done, busy_s = sum(calls for _, calls in tasks), 0, 0.0
    with ThreadPoolExecutor(len(counters.processes)) as pool:
        running = {pool.submit(counters.count, task): calls for task, calls in tasks}
        try:
            for future in as_completed(running):
                busy_s += future.result()
                done += running[future]
                watch(counters.subject.name, done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            counters.close()
            raise
    return total / busy_s if busy_s else 0.0


def explained(swept: Swept, model: Checkpoint) -> pd.Series[str]:
    """For each row of `images`, the deviation that explains it, or an empty string.

    The subject whose count is not that of the others is the suspect, as in P1 of a campaign; where as many say one
    thing as another, the one whose count is not that of the reference rule.
    """
    known, names = load_deviations(), list(swept.versions)
    features, checkpoint = model.features, str(model.path)

    def explain_row(row: Any) -> str:
        counted = [getattr(row, name) for name in names]
        odd = [name for name, count in zip(names, counted, strict=True) if counted.count(count) == 1]
        if len(names) == 2:
            odd = [name for name, count in zip(names, counted, strict=True) if count != row.reference]
        who = odd[0] if len(odd) == 1 else "+".join(names)
        case = Case(checkpoint, (Part(image=ImageSpec(row.width_px, row.height_px)),), row.budget)
        where = tuple(names), who, checkpoint, case.id
        finding = Finding("", f"P1/counts/{who}", "P1", "counts", *where, None, None, "soft tokens", "")
        return explain(finding, case, known, swept.versions, "cpu", features).deviation

    return pd.Series([explain_row(row) for row in swept.images.itertuples()], dtype=str)


def _compare_images(files: dict[str, dict[int, Path]], budgets: Sequence[int]) -> tuple[pd.DataFrame, dict[int, int]]:
    found, sensitive = [], {}
    for budget in budgets:
        counted = {name: np.load(made[budget], mmap_mode="r") for name, made in files.items()}
        sensitive[budget] = 0
        side = len(next(iter(counted.values())))
        widths = np.arange(1, side + 1)[None, :]
        for first in range(0, side, BLOCK_HEIGHTS):
            rows = {name: np.asarray(array[first : first + BLOCK_HEIGHTS]) for name, array in counted.items()}
            heights = np.arange(first + 1, first + 1 + len(next(iter(rows.values()))))[:, None]
            reference, contract = soft_token_rows(widths, heights, budget)
            sensitive[budget] += int((reference != contract).sum())
            part = _parting(rows)
            y, x = np.nonzero(part)
            sizes = {"width_px": x + 1, "height_px": y + first + 1, "budget": budget}
            answers = {"reference": reference[part], "contract": contract[part]}
            found.append(pd.DataFrame(sizes | {name: row[part] for name, row in rows.items()} | answers))
    return pd.concat(found, ignore_index=True), sensitive


def _compare_audio(counted: dict[str, npt.NDArray[np.uint16]]) -> pd.DataFrame:
    part = _parting(counted)
    samples = np.flatnonzero(part)
    answers = [audio_tokens(int(length)) for length in samples]
    return pd.DataFrame({"samples": samples} | {n: row[part] for n, row in counted.items()} | {"reference": answers})


def _parting(rows: dict[str, npt.NDArray[np.uint16]]) -> npt.NDArray[np.bool_]:
    """Where any two subjects differ."""
    first, *others = rows.values()
    differing = np.zeros(first.shape, dtype=np.bool_)
    for other in others:
        differing |= first != other
    return differing


def keep(swept: Swept, deviations: pd.Series[str], directory: Path) -> None:
    """Write every disagreement to `images.parquet` and `audio.parquet` of a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    swept.images.assign(deviation=deviations).to_parquet(directory / "images.parquet")
    swept.audio.to_parquet(directory / "audio.parquet")


def document(swept: Swept, deviations: pd.Series[str]) -> dict[str, Any]:
    """The result for `--json`: totals, and the first hundred disagreements of each kind."""
    images = swept.images.assign(deviation=deviations)
    return {
        "compared": swept.compared,
        "disagreements": len(images),
        "unexplained": int((deviations == "").sum()),
        "by_budget": {str(budget): int(n) for budget, n in images["budget"].value_counts(sort=False).items()},
        "rounding_sensitive": {str(budget): count for budget, count in swept.sensitive.items()},
        "images": images.head(100).to_dict("records"),
        "audio_disagreements": len(swept.audio),
        "audio": swept.audio.head(100).to_dict("records"),
        "calls_per_s": swept.calls_per_s,
        "versions": swept.versions,
        "wall_s": swept.wall_s,
    }
