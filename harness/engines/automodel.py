"""NVIDIA NeMo Automodel's Gemma 4 with a mixture of experts, as a subject: the model that a trainer runs.

Its text model is rebuilt from Automodel's own routing and experts, and it makes its own attention masks; processor and
towers are those of transformers. So it is fed, tapped and run as transformers is. Dense checkpoints it hands to
transformers' own model, so it has nothing of its own to show with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read when torch is imported: Automodel compiles the activations of its experts, which takes minutes on a busy CPU.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.gemma4_moe.model import Gemma4ForConditionalGeneration
from torch import Tensor
from transformers import AutoConfig, AutoProcessor

from harness.checkpoint import tensors
from harness.engines.base import Array, Recording, Unsupported, chosen, package_versions
from harness.engines.hf import HfEngine
from harness.schema import LoadReport, ProbeKind, Request

Inputs = dict[str, Any]

_PROBES: tuple[ProbeKind, ...] = (
    "visibility", "batch", "batch_last", "padding", "repeat", "chat", "ids", "expanded",
)  # fmt: skip
"""What is one pass without a cache and leaves the weights alone."""

_BACKEND = {"attn": "sdpa", "linear": "torch", "rms_norm": "torch", "dispatcher": "torch", "experts": "torch"}
"""Every part by PyTorch alone: what runs on a CPU."""


def scored(model: Any, inputs: Inputs, **_options: Any) -> Tensor:
    """One pass: logits (samples, T, V). Up to 0.4.0 they come bare."""
    output = model(**inputs)
    logits: Tensor = output if torch.is_tensor(output) else output.logits
    return logits


class AutomodelEngine(HfEngine):
    """Automodel's text model behind transformers' processor and vision tower."""

    forward = staticmethod(scored)

    def __init__(self, plant: str = "") -> None:
        """`plant` names a fault to re-create: `causal` takes the vision-aware mask away, as before #1901."""
        super().__init__()
        self.plant = chosen("plant", plant, ("", "causal"))

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on, and the planted fault if there is one."""
        planted = {"planted fault": self.plant} if self.plant else {}
        return {**package_versions("nemo-automodel"), **super().versions(), **planted}

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Build the model and give it the checkpoint's weights by its own adapter of names.

        Experts are transposed and scaled on the way, so tensors are compared by name alone.
        """
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        if not getattr(config.text_config, "enable_moe_block", False):
            raise Unsupported("Automodel hands a model without experts to transformers: it has nothing of its own here")
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
        config.dtype = config.text_config.dtype = config.vision_config.dtype = getattr(torch, dtype)
        config._attn_implementation = "sdpa"
        backend = BackendConfig(**_BACKEND, enable_hf_state_dict_adapter=True)
        self.model = Gemma4ForConditionalGeneration.from_config(config, backend=backend).to(config.dtype)
        weights = {name: tensor.to(config.dtype) for name, tensor in tensors(checkpoint)}
        found = self.model.load_state_dict(self.model.state_dict_adapter.from_hf(weights), strict=False)
        self.model.tie_weights()
        self.model = self.model.to(device).eval()
        if self.plant:
            self.model.config.text_config.use_bidirectional_attention = None
        self._tap()
        # Tied to the embeddings, which are there.
        missing = [name for name in found.missing_keys if name != "lm_head.weight"]
        return LoadReport(missing=tuple(missing), unexpected=tuple(found.unexpected_keys))

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt in one pass, or as a probe says that needs no cache."""
        if request.case.audios or request.case.videos:
            raise Unsupported("Automodel's model with experts takes images alone")
        if request.probe and request.case.probe and request.case.probe.kind not in _PROBES:
            raise Unsupported(f"{request.case.probe.kind}: Automodel's model with experts has one pass and no cache")
        return super().run(request, arrays)
