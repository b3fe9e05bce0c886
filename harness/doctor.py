"""Which subjects run here, and whether checkpoints arrive in them whole. Layer 3."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.campaign import Options, fleet
from harness.environments import SUBJECTS, resolve, unavailable_because
from harness.errors import EngineUnavailable
from harness.pool import Worker
from harness.schema import LoadReport
from harness.session import locate


@dataclass(frozen=True)
class Examined:
    """A subject that was started: its versions, or why it cannot run here."""

    name: str
    versions: dict[str, str]
    reason: str


def examine() -> list[Examined]:
    """Start every known subject once."""
    with tempfile.TemporaryDirectory() as logs:
        return [_examine(name, Path(logs)) for name in SUBJECTS]


def _examine(name: str, logs: Path) -> Examined:
    subject = SUBJECTS[name]
    if why := unavailable_because(subject):
        return Examined(name, {}, why)
    worker = Worker(subject, logs / f"{name}.log", threads=1, timeout_s=1.0)
    try:
        worker.start()
        return Examined(name, worker.versions, "")
    except EngineUnavailable as error:
        return Examined(name, {}, str(error))
    finally:
        worker.close()


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
            verified += [
                Verified(model, name, workers.reports.get(name, LoadReport()), workers.absent.get(name, ""))
                for name in subjects
            ]
    return verified
