"""Did every tensor of a checkpoint arrive in a model, and did the model keep nothing that it made up itself?

Engines rename, fuse, split and stack tensors, but they keep rows: the last axis of a weight. So the audit needs
no name map: a row of the checkpoint must be somewhere in the model, a row of the model somewhere in the
checkpoint. Random weights make rows unique; single numbers are compared as single numbers.

Rows are compared by 64-bit digests, 8 bytes for a row of thousands, and tensors are read a piece at a time: beside a
model of any size the audit takes a few tens of MB and one reading of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from harness.checkpoint import stored
from harness.engines.base import give_back_memory
from harness.schema import LoadReport

_PIECE_NUMBERS = 1 << 18
"""Digested at once: what stays in a core's cache."""

Digests = npt.NDArray[np.int64]


@lru_cache(maxsize=64)
def _factors(width: int) -> torch.Tensor:
    """A random odd factor for each column, the same everywhere."""
    return torch.from_numpy(np.random.Philox(key=width).random_raw(width).astype(np.int64) | 1)


def _width(shape: tuple[int, ...]) -> int:
    """Of a row. An axis of one, as a convolution has, does not count."""
    return next((size for size in reversed(shape) if size != 1), 1)


def _digest(rows: torch.Tensor) -> torch.Tensor:
    """Digests of (rows, width): the sum of factor times float32 bits, modulo 2^64.

    Two rows that differ have the same one with a chance of about 2^-48 where a number has two bytes, 2^-32 at worst.
    """
    width = rows.shape[1]
    step, found = max(1, _PIECE_NUMBERS // width), torch.empty(len(rows), dtype=torch.int64)
    # Room that is used again: what is asked for and freed piece by piece, glibc keeps in ever new places.
    floats, bits = _room(max(_PIECE_NUMBERS, width))
    for first in range(0, len(rows), step):
        piece = rows[first : first + step]
        floats[: piece.numel()].view(piece.shape).copy_(piece)
        bits[: piece.numel()].copy_(floats[: piece.numel()].view(torch.int32))
        found[first : first + step] = bits[: piece.numel()].view(piece.shape) @ _factors(width)
    return found + width


@lru_cache(maxsize=1)
def _room(numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(numbers, dtype=torch.float32), torch.empty(numbers, dtype=torch.int64)


def _rows_of(tensor: torch.Tensor) -> Digests:
    """The distinct digests of a model's tensor, which may be a view that no flat piece can be cut from."""
    squeezed = tensor.detach().squeeze()
    if squeezed.ndim < 2:
        squeezed = squeezed.reshape(1, -1)
    step = max(1, _PIECE_NUMBERS // max(1, prod(squeezed.shape[1:])))
    pieces = torch.split(squeezed, step) if squeezed.numel() else ()
    return _distinct(_digest(piece.cpu().reshape(-1, piece.shape[-1])) for piece in pieces)


def _distinct(pieces: Iterable[torch.Tensor]) -> Digests:
    found = [piece.numpy() for piece in pieces]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _is_exact(dtype: torch.dtype, wider: torch.dtype) -> bool:
    """Whether the wider type holds every number of the other."""
    if not dtype.is_floating_point:
        return False
    one, other = torch.finfo(dtype), torch.finfo(wider)
    return one.eps >= other.eps and one.max <= other.max and one.smallest_normal >= other.smallest_normal


def audit_tensors(model: Mapping[str, torch.Tensor], checkpoint: Path) -> LoadReport:
    """Compare a model's tensors with a checkpoint's by content.

    `unused` names tensors of the checkpoint that are not in the model; `reinitialised` names tensors of the
    model with a row that no tensor of the checkpoint has.
    """
    floating = {name: tensor for name, tensor in model.items() if tensor.is_floating_point()}
    model_rows = {}
    for name, held in floating.items():
        model_rows[name] = _rows_of(held)
        give_back_memory()  # What is freed in pieces stays with the process otherwise, gigabytes over a model.
    kept = _merged(model_rows.values())
    types = {tensor.dtype for tensor in floating.values()}
    unused, known = [], list[Digests]()
    for tensor in stored(checkpoint):
        # Float16 rounds what a file has in bfloat16; an engine may keep some tensors in a wider type.
        forms = {tensor.dtype if _is_exact(tensor.dtype, dtype) else dtype for dtype in types}
        width = _width(tensor.shape)
        rows = [
            _distinct(_digest(piece.to(form).reshape(-1, width)) for piece in tensor.pieces(width)) for form in forms
        ]
        give_back_memory()
        known += rows
        if not any(_within(form, kept) for form in rows):
            unused.append(tensor.name)
    everything = _merged(known)
    made_up = [name for name, rows in model_rows.items() if not _within(rows, everything)]
    return LoadReport(reinitialised=tuple(made_up), unused=tuple(unused))


def _merged(parts: Iterable[Digests]) -> Digests:
    found = list(parts)
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _within(rows: Digests, others: Digests) -> bool:
    """Whether all are among the others, which are sorted."""
    if not len(others):
        return not len(rows)
    at = np.searchsorted(others, rows).clip(max=len(others) - 1)
    return bool((others[at] == rows).all())
