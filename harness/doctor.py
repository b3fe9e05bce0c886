"""Which subjects run here, and whether checkpoints arrive in them whole. Layer 3."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from harness.builds import is_built, ready
from harness.environments import Subject, known_subjects, resolve
from harness.errors import EngineUnavailable
from harness.fleet import Options, fleet
from harness.pool import Worker
from harness.schema import LoadReport
from harness.session import locate

_AT_A_TIME = 2
"""Subjects that are started side by side: each imports torch, which is work for a core."""


@dataclass(frozen=True)
class Examined:
    """A subject that was started: its versions, or why it cannot run here."""

    subject: Subject
    versions: dict[str, str]
    reason: str


def examine(names: Sequence[str] = ()) -> list[Examined]:
    """Start subjects once, a few at a time; without names every known one. Nothing is built."""
    subjects = resolve(names or list(known_subjects()))
    with tempfile.TemporaryDirectory() as logs, ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(lambda subject: _examine(subject, Path(logs)), subjects))


def _examine(subject: Subject, logs: Path) -> Examined:
    if not is_built(subject):
        return Examined(subject, {}, f"not built yet: `harness doctor --subjects {subject.name}` builds it")
    try:
        found = ready(subject)
        with closing(Worker(found, logs / f"{subject.name}.log", threads=1, timeout_s=1.0)) as worker:
            worker.start()
            return Examined(subject, worker.versions, "")
    except EngineUnavailable as error:
        return Examined(subject, {}, str(error))


@dataclass(frozen=True)
class Verified:
    """How one checkpoint arrived in one subject."""

    model: str
    subject: str
    report: LoadReport
    reason: str

    @property
    def sound(self) -> bool:
        """Nothing missing, unexpected, or made up by the engine."""
        return not (self.reason or self.report.missing or self.report.unexpected or self.report.reinitialised)


def verify(models: Sequence[str], subjects: Sequence[str]) -> list[Verified]:
    """Load each model in each subject, tensors compared by content."""
    verified = []
    with tempfile.TemporaryDirectory() as logs, fleet(resolve(subjects), Options(), Path(logs)) as workers:
        for model in models:
            workers.load(locate(model), audit=True)
            reports = workers.reports
            verified += [
                Verified(model, name, reports.get(name, LoadReport()), "" if name in reports else workers.absent[name])
                for name in subjects
            ]
    return verified
