"""Native with one weight tensor changed by a given part of each value, as a worker's engine.

The environment names the tensor and the part: `GEMMA4_HARNESS_PERTURBED=tower.layers.0.mlp.up.weight:0.01`. Every value
is multiplied by 1 + part * a standard normal draw. Its versions say so, and no subject of `harness run` can name it.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from harness.engines.native import NativeEngine
from harness.schema import LoadReport

VARIABLE = "GEMMA4_HARNESS_PERTURBED"


class PerturbedNative(NativeEngine):
    """Native, but for one tensor."""

    def versions(self) -> dict[str, str]:
        """Says which tensor and how much."""
        return super().versions() | {"perturbed": os.environ[VARIABLE]}

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load the checkpoint and change the tensor, in the type that it has then."""
        report = super().load(checkpoint, dtype=dtype, device=device, audit=audit)
        name, part = os.environ[VARIABLE].rsplit(":", 1)
        weight = dict(self.model.network.named_parameters())[name]
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weight.data = (weight.double() * (1 + float(part) * drawn)).to(weight.dtype)
        return report
