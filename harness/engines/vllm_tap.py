"""What passes through vLLM's model, recorded and, where a probe asks for it, changed. Layer 2; imports no engine.

The outermost module is wrapped where the model runner calls it: encoder, embedding, forward pass, logits.

Legend: T tokens of a step, H text hidden size.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from harness.schema import Medium

_INPUTS: dict[Medium, tuple[str, str]] = {
    "image": ("pixel_values", "pixel_position_ids"),
    "audio": ("input_features_padded", "input_features_mask"),
    "video": ("pixel_values_videos", "pixel_position_ids_videos"),
}
"""What the model's encoder function is given, by medium: samples, and where they are or which are valid."""

_DECODER_LAYER = re.compile(r"(.+\.)?language_model\.(.+\.)?layers\.\d+")
"""Names of the modules that are decoder layers; a tower's are below other names."""

_OF_TRANSFORMERS = {"pixel_position_ids": "image_position_ids"}
"""Names that the Transformers backend has instead. It encodes images alone."""


@dataclass(frozen=True)
class Encoded:
    """One image, recording or video: valid samples and their positions (none for audio), and its feature rows."""

    samples: torch.Tensor
    positions: torch.Tensor | None
    rows: torch.Tensor


@dataclass(frozen=True)
class Step:
    """One forward pass: (T,) token ids, (T,) positions, (T, H) final normed hidden states."""

    ids: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor

    def spans(self) -> list[slice]:
        """The rows of each prompt of the step, in the order of the batch; positions start again at 0."""
        starts = [*torch.nonzero(self.positions == 0)[:, 0].tolist(), len(self.positions)]
        return [slice(start, end) for start, end in pairwise(starts)]


@dataclass
class Tap:
    """Recorded since `clear`; `negate` and `forced` are set by a probe."""

    steps: list[Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each step."""
    encoded: dict[Medium, list[Encoded]] = field(default_factory=dict)
    negate: int | None = None
    """Row of the first step's embeddings to negate, modulo their number."""
    negated: int = -1
    forced: deque[int] = field(default_factory=deque)
    """Tokens that the next steps sample, whatever the logits are."""
    stages: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """What enters the decoder and what leaves each layer, a piece for each step; kept within `depth` alone."""
    _ids: torch.Tensor | None = None
    _layers: list[torch.nn.Module] = field(default_factory=list)
    _deep: bool = False

    def clear(self) -> None:
        """Forget what was recorded and what was asked for."""
        self.steps, self.lengths = [], []
        self.encoded = {"image": [], "audio": [], "video": []}
        self.negate, self.negated = None, -1
        self.forced.clear()
        self.stages = {}

    @contextmanager
    def depth(self) -> Iterator[None]:
        """Within, the decoder's stages are kept."""

        def keep_leaving(name: str) -> Any:
            return lambda _module, _args, output: self._keep(name, output[0] if isinstance(output, tuple) else output)

        handles = [layer.register_forward_hook(keep_leaving(f"layer.{k}")) for k, layer in enumerate(self._layers)]
        self._deep = True
        try:
            yield
        finally:
            self._deep = False
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, rows: torch.Tensor) -> None:
        assert self._ids is not None
        # Rows beyond the step's tokens are padding.
        piece = rows.reshape(-1, rows.shape[-1])[: len(self._ids)].clone()
        self.stages.setdefault(name, []).append(piece)

    @property
    def hidden(self) -> torch.Tensor:
        """Hidden states of all steps, one after another."""
        return torch.cat([step.hidden for step in self.steps])

    def keep(self, prompt: int, before: Mapping[Medium, int], media: Mapping[Medium, int]) -> None:
        """Keep one prompt of a batch of one step: which it is, the media of those before it, its own."""
        (step,) = self.steps
        rows = step.spans()[prompt]
        self.steps = [Step(step.ids[rows], step.positions[rows], step.hidden[rows])]
        self.stages = {name: [piece[rows] for piece in pieces] for name, pieces in self.stages.items()}
        self.encoded = {m: items[before[m] : before[m] + media[m]] for m, items in self.encoded.items()}

    def share(self, known: Mapping[Medium, Sequence[str]]) -> None:
        """Media that the engine took for the same were encoded once: give each what was made of the first such one."""
        for medium, names in known.items():
            encoded = dict(zip(dict.fromkeys(names), self.encoded[medium], strict=True))
            self.encoded[medium] = [encoded[name] for name in names]

    def attach(self, model: Any) -> None:
        """Wrap a model's functions; what they return is the model's own."""
        self._layers = [module for name, module in model.named_modules() if _DECODER_LAYER.fullmatch(name)]
        model.embed_multimodal = self._around_encoder(model.embed_multimodal)
        model.embed_input_ids = self._around_embedding(model)
        model.compute_logits = self._around_logits(model.compute_logits)
        model.register_forward_hook(self._after_forward, with_kwargs=True)

    def _around_encoder(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def embed_multimodal(**kwargs: Any) -> Any:
            rows = encode(**kwargs)
            (medium,) = (medium for medium, (samples, _) in _INPUTS.items() if samples in kwargs)
            values, where = (kwargs[n if n in kwargs else _OF_TRANSFORMERS[n]] for n in _INPUTS[medium])
            if medium == "video":
                counts = torch.as_tensor(kwargs["video_frame_counts"]).flatten().tolist()
                values, where = values.split(counts), where.split(counts)
            self.encoded[medium] += map(_encoded, values, where, rows)
            return rows

        return embed_multimodal

    def _around_embedding(self, model: Any) -> Callable[..., Any]:
        embed = model.embed_input_ids

        def embed_input_ids(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # The Transformers backend copies all attributes of the instance into a text model, and calls it from here.
            del model.embed_input_ids
            try:
                rows = embed(input_ids, *args, **kwargs)
            finally:
                model.embed_input_ids = embed_input_ids
            self._ids = input_ids.clone()
            if self.negate is not None:
                self.negated, self.negate = self.negate % len(rows), None
                rows = rows.clone()
                rows[self.negated].neg_()
            if self._deep:
                self._keep("merged_embeddings", rows)
            return rows

        return embed_input_ids

    def _around_logits(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def compute_logits(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if self.forced:
                logits.fill_(-torch.inf)
                logits[:, self.forced.popleft()] = 0
            return logits

        return compute_logits

    def _after_forward(self, _module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        assert self._ids is not None
        count = len(self._ids)  # Rows beyond it are padding.
        self.lengths.append(count)
        self.steps.append(Step(self._ids, kwargs["positions"][:count].clone(), output[:count].clone()))


def _encoded(samples: torch.Tensor, where: torch.Tensor, rows: torch.Tensor) -> Encoded:
    """Without padding: audio comes with a mask, patches with positions that are -1 where there is none."""
    if where.dtype == torch.bool:
        return Encoded(samples[where], None, rows)
    valid = (where >= 0).all(dim=-1)
    return Encoded(samples[valid], where[valid], rows)
