"""Did every tensor of a checkpoint arrive in a model, and did the model keep nothing that it made up itself?

Engines rename, fuse, split and stack tensors, but they keep rows: the last axis of a weight. So the audit needs
no name map: a row of the checkpoint must be somewhere in the model, a row of the model somewhere in the
checkpoint. Random weights make rows unique; single numbers are compared as single numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from harness.checkpoint import tensors
from harness.schema import LoadReport


def _rows(tensor: torch.Tensor) -> set[bytes]:
    """Every distinct row in float32 bytes. A trailing axis of one, as a convolution has, does not count."""
    values = tensor.detach().float().cpu()
    squeezed = values.squeeze()
    width = squeezed.shape[-1] if squeezed.ndim else 1
    return {row.numpy().tobytes() for row in squeezed.reshape(-1, width)}


def audit_tensors(model: Mapping[str, torch.Tensor], checkpoint: Path) -> LoadReport:
    """Compare a model's tensors with a checkpoint's by content.

    `unused` names tensors of the checkpoint that are not in the model; `reinitialised` names tensors of the
    model with a row that no tensor of the checkpoint has.
    """
    floating = {name: tensor for name, tensor in model.items() if tensor.is_floating_point()}
    model_rows = {name: _rows(tensor) for name, tensor in floating.items()}
    kept = set().union(*model_rows.values())
    types = {tensor.dtype for tensor in floating.values()}
    unused, known = [], set()
    for name, tensor in tensors(checkpoint):
        # Float16 rounds what a file has in bfloat16; an engine may keep some tensors in a wider type.
        forms = [_rows(tensor.to(dtype)) for dtype in types]
        known |= set().union(*forms)
        if not any(rows <= kept for rows in forms):
            unused.append(name)
    made_up = [name for name, rows in model_rows.items() if not rows <= known]
    return LoadReport(reinitialised=tuple(made_up), unused=tuple(unused))
