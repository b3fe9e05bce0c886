"""The ways through a Hugging Face model: one pass, padded, in pieces, by `generate`. It is handed the model.

Hidden states are not returned: the adapter reads them off the text model as they pass by, piece after piece.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.engines.inputs import read_singly, step

Inputs = dict[str, Any]


class Forward(Protocol):
    """A call of the model: logits (samples, T, V)."""

    def __call__(self, model: Any, inputs: Inputs, **options: Any) -> Tensor:
        """Run `model` on what its processor made; `options` name the cache."""
        ...


def plain(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    """The model called with all that its processor returned."""
    logits: Tensor = model(**inputs, **options).logits
    return logits


_ENCODERS = {
    "image": ("get_image_features", ("pixel_values", "image_position_ids")),
    "video": ("get_video_features", ("pixel_values_videos", "video_position_ids", "num_frames_per_video")),
}


def video_encoded_first(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    """With a video as `generate` does it: what is seen through its encoder, then the model with `mm_encoder_outputs`.

    The model's own forward refuses a video in 5.19, which the probe `forward` shows; all else goes in plainly, and so
    do the videos of older releases, whose processors count no frames.
    """
    if "num_frames_per_video" not in inputs:
        return plain(model, inputs, **options)
    rest, encoded = dict(inputs), {}
    for medium, (encoder, names) in _ENCODERS.items():
        given = {name: rest.pop(name) for name in names if name in rest}
        if given:
            encoded[medium] = getattr(model.model, encoder)(**given, return_dict=True)
    return plain(model, rest, mm_encoder_outputs=encoded, **options)


def padded(inputs: Inputs, at: int, pad: int) -> Inputs:
    """The inputs of one sample behind `step(at)` positions of padding."""
    filling = {"input_ids": pad, "attention_mask": 0, "mm_token_type_ids": 0}
    rows = {name: torch.nn.functional.pad(inputs[name], (step(at), 0), value=value) for name, value in filling.items()}
    return {**inputs, **rows}


def token_by_token(forward: Forward, model: Any, inputs: Inputs, at: int, cache: Any) -> Tensor:
    """Prefill into a cache, then the last few tokens one by one: logits (1, T, V)."""
    ids, types, mask = (inputs[name] for name in ("input_ids", "mm_token_type_ids", "attention_mask"))
    first, last = ids.shape[1] - read_singly(at, types[0].tolist()), ids.shape[1]
    begun = {"input_ids": ids[:, :first], "mm_token_type_ids": types[:, :first], "attention_mask": mask[:, :first]}
    options = {"past_key_values": cache, "use_cache": True}
    logits = [forward(model, {**inputs, **begun}, **options)]
    for position in range(first, last):
        token = {"input_ids": ids[:, position : position + 1], "attention_mask": mask[:, : position + 1]}
        logits.append(plain(model, token, **options))
    return torch.cat(logits, dim=1)


def generated(model: Any, inputs: Inputs, **options: Any) -> None:
    """`generate` of one token: of its prefill, in chunks or into the cache that `options` name."""
    model.generate(**inputs, max_new_tokens=1, do_sample=False, disable_compile=True, **options)


def written(model: Any, inputs: Inputs, tokens: int, seed: int | None) -> Tensor:
    """The tokens (n,) that `generate` goes on with: greedily, or drawn from the whole distribution."""
    torch.manual_seed(seed or 0)
    drawn = {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    ids: Tensor = model.generate(**inputs, max_new_tokens=tokens, disable_compile=True, **drawn)
    return ids[0, inputs["input_ids"].shape[1] :]


def continued(inputs: Inputs, tokens: Sequence[int]) -> Inputs:
    """The inputs of one sample with more text tokens behind them."""
    more = inputs["input_ids"].new_tensor([list(tokens)])
    added = {"input_ids": more, "attention_mask": torch.ones_like(more), "mm_token_type_ids": torch.zeros_like(more)}
    return {**inputs, **{name: torch.cat([inputs[name], rows], dim=1) for name, rows in added.items()}}


@contextmanager
def depth(model: Any, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Within, what enters the decoder and what leaves each of its layers is kept in `seen`, a piece for each pass."""
    text = model.model.language_model

    def keep_entering(_module: Any, _args: Any, kwargs: Inputs) -> None:
        seen.setdefault("merged_embeddings", []).append(kwargs["inputs_embeds"])

    def keep_leaving(name: str) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            seen.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return keep

    layers = text.layers.values() if hasattr(text.layers, "values") else text.layers
    handles = [layer.register_forward_hook(keep_leaving(f"layer.{k}")) for k, layer in enumerate(layers)]
    handles.append(text.register_forward_pre_hook(keep_entering, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def negated(model: Any, position: int) -> Iterator[None]:
    """Within, the row at `position` of what enters the decoder has its sign turned."""

    def turn(_module: Any, args: Any, kwargs: Inputs) -> Any:
        rows = kwargs["inputs_embeds"].clone()
        rows[0, position] *= -1
        return args, {**kwargs, "inputs_embeds": rows}

    handle = model.model.language_model.register_forward_pre_hook(turn, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
