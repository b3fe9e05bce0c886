"""Tiny random checkpoints of the five published Gemma 4 variants and of single features, in the published layout.

`ensure(name, root)` gives a directory that an engine can be pointed at. Files are the same bytes wherever they are
built.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness.zoo.catalog import FEATURE_NAMES, NAMES, config, is_silent, planted
from harness.zoo.files import text_files
from harness.zoo.tensors import Tensor, tensors
from harness.zoo.values import value

__all__ = ["FEATURE_NAMES", "NAMES", "build", "describe", "ensure", "recipe_digest"]

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


def _value(name: str, tensor: Tensor) -> torch.Tensor:
    drawn = value(name, tensor)
    if is_silent(name, tensor.name):
        return torch.zeros_like(drawn)
    first = planted(name, tensor.name)
    if first is not None:
        drawn.view(-1)[0] = first
    return drawn


def _tensors(name: str) -> list[Tensor]:
    return tensors(config(name))


def _is_current(target: Path, digest: str) -> bool:
    recorded = target / RECIPE_FILE
    return recorded.is_file() and recorded.read_text(encoding="utf-8").strip() == digest


def _write(name: str, directory: Path, digest: str) -> None:
    directory.mkdir()
    for file, text in text_files(name).items():
        (directory / file).write_text(text, encoding="utf-8", newline="\n")
    weights = {tensor.name: _value(name, tensor) for tensor in _tensors(name)}
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / WEIGHTS_FILE).chmod(0o644)  # the writer makes it private, unlike the other files
    (directory / RECIPE_FILE).write_text(digest + "\n", encoding="utf-8")


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
