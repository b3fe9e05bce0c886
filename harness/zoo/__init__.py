"""Tiny random checkpoints of the five published Gemma 4 variants and of single features, in the published layout.

`ensure(name, root)` gives a directory that an engine can be pointed at. Files are the same bytes wherever they are
built.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harness.zoo.catalog import FEATURE_NAMES, NAMES, config, is_silent, planted
from harness.zoo.files import text_files
from harness.zoo.large import DEFAULT_LAYERS, LARGE, large_name
from harness.zoo.tensors import Tensor, tensors
from harness.zoo.values import pieces

__all__ = [
    "DEFAULT_LAYERS",
    "FEATURE_NAMES",
    "LARGE",
    "NAMES",
    "build",
    "describe",
    "ensure",
    "large_name",
    "recipe_digest",
]

RECIPE_FILE = "recipe.sha256"
WEIGHTS_FILE = "model.safetensors"
# Read on import: a process that runs on after an edit must record the code that it holds, not the code that is on disk
# by then.
_VALUES_SOURCE = (Path(__file__).parent / "values.py").read_text(encoding="utf-8")


def build(name: str, root: Path, *, force: bool = False) -> Path:
    """Write checkpoint `name` to `root / name` unless one of this recipe is there; `force` writes it in any case.

    Safe when several processes build the same one at once: each writes a directory of its own beside the target and
    renames it, and whoever comes second finds the target done.
    """
    target = Path(root) / name
    digest = recipe_digest(name)
    if not force and _is_current(target, digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent, ignore_cleanup_errors=True) as scratch:
        written = Path(scratch) / "new"
        _write(name, written, digest)
        _install(written, target, digest, force=force)
    return target


def ensure(name: str, root: Path) -> Path:
    """The directory of checkpoint `name` under `root`, built first where it is missing or of another recipe."""
    return build(name, root)


def describe(name: str) -> dict[str, Any]:
    """What a checkpoint holds: architecture, sizes, numbers of tensors and parameters, bytes of weights."""
    text = config(name)["text_config"]
    table = _tensors(name)
    parameters = sum(tensor.parameters for tensor in table)
    return {
        "variant": name,
        "architecture": config(name)["architectures"][0],
        "layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "vocab_size": text["vocab_size"],
        "tensors": len(table),
        "parameters": parameters,
        "weights_bytes": 2 * parameters,
    }


def recipe_digest(name: str) -> str:
    """SHA-256, in hex, of all that decides a checkpoint: text files, tensor table, the code that makes the values."""
    parts = [f"{file}\0{text}" for file, text in sorted(text_files(name).items())]
    parts += [f"{tensor!r} {is_silent(name, tensor.name)} {planted(name, tensor.name)}" for tensor in _tensors(name)]
    return hashlib.sha256("\0".join([name, *parts, _VALUES_SOURCE]).encode()).hexdigest()


def _pieces(name: str, tensor: Tensor) -> Iterator[torch.Tensor]:
    """What the file holds of a tensor, flat, a piece at a time."""
    first = planted(name, tensor.name)
    for number, drawn in enumerate(pieces(name, tensor)):
        if is_silent(name, tensor.name):
            drawn.zero_()
        elif first is not None and number == 0:
            drawn[0] = first
        yield drawn


def _tensors(name: str) -> list[Tensor]:
    return tensors(config(name))


def _is_current(target: Path, digest: str) -> bool:
    recorded = target / RECIPE_FILE
    return recorded.is_file() and recorded.read_text(encoding="utf-8").strip() == digest


def _write(name: str, directory: Path, digest: str) -> None:
    directory.mkdir()
    for file, text in text_files(name).items():
        (directory / file).write_text(text, encoding="utf-8", newline="\n")
    _write_weights(name, directory / WEIGHTS_FILE)
    (directory / RECIPE_FILE).write_text(digest + "\n", encoding="utf-8")


def _write_weights(name: str, path: Path) -> None:
    """A safetensors file, to the byte as its own library writes it, without ever holding a whole tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in _tensors(name):
        begin, end = end, end + 2 * tensor.parameters
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in _tensors(name):
            for piece in _pieces(name, tensor):
                file.write(piece.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())


def _install(written: Path, target: Path, digest: str, *, force: bool) -> None:
    """Rename `written` to `target`; a directory cannot replace a full one, so an outdated target moves away first."""
    while force or not _is_current(target, digest):
        try:
            written.rename(target)
        except OSError:
            _discard(target, written.parent)
        else:
            return


def _discard(target: Path, scratch: Path) -> None:
    try:
        target.rename(tempfile.mkdtemp(prefix="old-", dir=scratch))
    except FileNotFoundError:
        return  # another process has just moved it away
