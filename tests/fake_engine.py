"""An engine that fails on purpose. It exists to test the harness; no subject of `harness run` can name it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from harness.engines.base import Array, Recording, Rejected, Unsupported
from harness.schema import Counts, LoadReport, Request

HIDDEN = 80
"""Width of tiny-31b, whose head the comparators use."""


class FakeEngine:
    """What it does to a request is written in the prompt: `crash`, `hang`, `raise`, `reject`, `noise`, `starve` ..."""

    def versions(self) -> dict[str, str]:
        """Its only version."""
        return {"fake": "0"}

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load nothing; die, break or decline where the directory's name says so."""
        if checkpoint.name == "dies":
            os._exit(3)
        if checkpoint.name == "refuses":
            raise RuntimeError("no such layer: 17")
        if checkpoint.name == "starves":
            raise MemoryError("no room for layer 3")
        if checkpoint.name == "lacks":
            raise Unsupported("a fake has no such model")
        return LoadReport()

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Obey the prompt."""
        if request.probe:
            raise Unsupported("a fake has one way")
        self._misbehave(request.prompt)
        ids = np.array([2, *range(10, 20)], dtype=np.int64)
        recording = Recording(counts=tuple(Counts(1, 1, 1) for _ in arrays))
        recording.add("prompt_ids", ids)
        recording.add("hidden", np.full((len(ids), HIDDEN), np.nan if "nan" in request.prompt else 0.5, np.float32))
        recording.add("logprobs", np.zeros(len(ids) - 1, dtype=np.float32))
        return recording

    def _misbehave(self, prompt: str) -> None:
        if "crash" in prompt:
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
        if "hang" in prompt:
            time.sleep(3600)
        if "raise" in prompt:
            raise RuntimeError("index 289 is out of bounds at 0x7f00 in /some/where.py")
        if "starve" in prompt:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 40000 bytes")
        if "linger" in prompt:
            os.closerange(3, 100)  # Its end of the pipe among them.
            time.sleep(3600)
        if "reject" in prompt:
            raise Rejected("ValueError: 2 placeholders for 1 image")
        if "noise" in prompt:
            print("{not a message}")


class Relinked(FakeEngine):
    """A fake of package `relinked`, whose prompts have it installed again under the process: `once`, or `always`."""

    def versions(self) -> dict[str, str]:
        """That of the package."""
        return {"relinked": "1"}

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Put the package in its own place once more, and miss a module of it."""
        place = Path(str(metadata.distribution("relinked").locate_file("relinked-1.dist-info")))
        done = place.with_name("done")
        if request.prompt == "always" or not done.exists():
            done.touch()
            if request.prompt != "untouched":
                place.rename(place.with_name("old"))
                shutil.copytree(place.with_name("old"), place)
                shutil.rmtree(place.with_name("old"))
            raise ModuleNotFoundError("No module named 'relinked.tool'")
        return super().run(request, arrays)


class ByToolz(FakeEngine):
    """A fake whose release is that of another package: below 1.0 every prompt raises."""

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Raise, or answer as any fake."""
        if metadata.version("toolz") < "1":
            raise RuntimeError("toolz is too old")
        return super().run(request, arrays)
