"""One engine in one process: reads JSON lines, runs them, answers in JSON lines. Layer 3.

    python -m harness.worker hf-eager hf '{"attention": "eager"}'

Arrays travel beside the pipe as safetensors files in shared memory: images in, stages out. No pickle anywhere:
a case from a stranger must never run code. This file needs only the standard library, numpy and safetensors
beside its engine, so that it can be dropped into the environment of any release.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.numpy import load_file, save_file

from harness.engines import create
from harness.engines.base import Array, Engine, Recording, Rejected, Unsupported, give_back_memory
from harness.errors import TOUCHED, want
from harness.schema import Observation, OutcomeKind, Request, case_of, error_signature

_WHOLE_S = 20.0
"""How long a package may take to be whole again."""


def digest(array: Array) -> str:
    """Sixteen hex digits over type, shape and bytes."""
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.blake2b(array.tobytes(), key=header[:64], digest_size=8).hexdigest()


class Server:
    """Answers one message at a time; an error of the engine is an answer, never the end of the process."""

    def __init__(self, subject: str, engine: Engine) -> None:
        """Serve `engine` under the name `subject`."""
        self.subject, self.engine = subject, engine
        self._packages = Packages(engine.versions())

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a message of kind `hello`, `load` or `run`."""
        kind = message.pop("kind")
        if kind == "hello":
            return {"pid": os.getpid(), "versions": self.engine.versions()}
        if kind == "load":
            return self._load(**message)
        return dataclasses.asdict(self._run(Request(**{**message, "case": case_of(message["case"])})))

    def _load(self, checkpoint: str, **options: Any) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            report = self.engine.load(Path(checkpoint), **options)
        except Unsupported as error:
            return {"error": str(error), "unsupported": True}
        except Exception as error:
            traceback.print_exc()
            if touched := self._packages.touched(error):
                return {"error": touched, "failed": True, "touched": True}
            return {"error": _words(error), "failed": bool(want(error))}
        give_back_memory()
        return dataclasses.asdict(dataclasses.replace(report, load_s=time.perf_counter() - started))

    def _run(self, request: Request) -> Observation:
        observation = Observation(request.case.id, self.subject, "ok", probe=request.probe)
        started = time.perf_counter()
        try:
            with _ours():
                media = load_file(request.media_path) if request.media_path else {}
            recording = self._asked(request)(request, media)
            engine_s = time.perf_counter() - started
            with _ours():
                written = _written(recording, request.arrays_path)
        except Exception as error:
            outcome = _outcome(error)
            if outcome in ("crashed", "failed"):
                traceback.print_exc()
            text = _words(error)
            if touched := self._packages.touched(error):
                outcome, text = "failed", touched
            return dataclasses.replace(
                observation,
                outcome=outcome,
                message=text[:2000],
                signature=error_signature(text),
                engine_s=time.perf_counter() - started,
            )
        return dataclasses.replace(observation, engine_s=engine_s, **written)

    def _asked(self, request: Request) -> Callable[[Request, Mapping[str, Array]], Recording]:
        """The engine's function for a request."""
        if not (request.generate or request.continuation):
            return self.engine.run
        if not hasattr(self.engine, "go_on"):
            raise Unsupported("this subject writes no continuation")
        go_on: Callable[[Request, Mapping[str, Array]], Recording] = self.engine.go_on
        return go_on


class Packages:
    """The engine's packages as they were when its process started: `uv sync` in another shell may take files away."""

    def __init__(self, names: Iterable[str]) -> None:
        """Look at the installed packages among these names."""
        found = [(name, dist) for name in names for dist in metadata.distributions(name=name)]
        self._files = {name: [Path(str(dist.locate_file(file))) for file in dist.files or ()] for name, dist in found}
        self._before = {name: self._mark(name) for name in self._files}

    def _mark(self, name: str) -> tuple[int, int] | None:
        """What another installation changes, even one of the same files: the directory that lists them."""
        lists = [path for path in self._files[name] if path.name == "RECORD"]
        try:
            found = lists[0].parent.stat()
        except (OSError, IndexError):
            return None
        return found.st_ino, found.st_mtime_ns

    def touched(self, error: BaseException | None) -> str:
        """Whose files were changed, if that is behind an error of files that are gone; waits until they are back."""
        while not isinstance(error, (ImportError, FileNotFoundError)):
            if error is None:
                return ""
            error = error.__cause__ or error.__context__
        changed = [name for name, before in self._before.items() if self._mark(name) != before]
        deadline = time.monotonic() + _WHOLE_S
        while changed and time.monotonic() < deadline:
            if all(path.exists() for name in changed for path in self._files[name] if path.suffix == ".py"):
                break
            time.sleep(0.2)
        why = "was installed again under the run (uv run or uv sync in another shell?); leave its environment alone"
        return f"{TOUCHED}: {', '.join(changed)} {why}: {type(error).__name__}: {error}" if changed else ""


class Failed(Exception):
    """Something of ours failed around the engine."""


@contextmanager
def _ours() -> Iterator[None]:
    """What the harness does itself: whatever breaks in here is no engine's."""
    try:
        yield
    except Exception as error:
        raise Failed(_words(error)) from error


_OUTCOMES: dict[type[Exception], OutcomeKind] = {Rejected: "rejected", Unsupported: "unavailable", Failed: "failed"}


def _outcome(error: Exception) -> OutcomeKind:
    return _OUTCOMES.get(type(error), "failed" if want(error) else "crashed")


def _words(error: Exception) -> str:
    """An error in words: what the machine wanted for first, and the type where the words are not ours."""
    if isinstance(error, (Rejected, Unsupported)):
        return str(error)
    told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    needed = "" if isinstance(error, Failed) else want(error)
    return f"{needed}: {told}" if needed else told


def _written(recording: Recording, path: str) -> dict[str, Any]:
    save_file(recording.arrays, path)
    digests = {stage: digest(array) for stage, array in recording.arrays.items()}
    return {"counts": recording.counts, "digests": digests, "arrays_path": path}


def serve(server: Server, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the other side closes its end."""
    for line in source:
        sink.write(json.dumps(server.answer(json.loads(line))).encode() + b"\n")
        sink.flush()


def main() -> None:
    """Engines print; so messages keep the real standard output and prints go to standard error."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    subject, engine, options = sys.argv[1:4]
    serve(Server(subject, create(engine, json.loads(options))), sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
