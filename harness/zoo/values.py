"""Values of the tiny tensors: far from every identity, and the same bytes on every machine.

Each tensor has a random stream of its own, keyed by checkpoint and tensor name, so that adding one changes no other.
The draw is made of integers (a sum of four 16-bit numbers of a Philox counter) and one float32 multiplication: unlike a
library's normal deviates it does not depend on a mathematical library or on a release. It is nearly normal and never
beyond 3.47 standard deviations.

The gains below were measured on the reference implementation, so that a difference anywhere moves the
log-probabilities: attention is neither uniform nor one-hot, the soft cap is felt but not reached, and an image changes
the text behind it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.zoo.tensors import Tensor

# Variance of the sum of four numbers uniform on 0 .. 65535.
_SUM_STD = math.sqrt(4 * (65536**2 - 1) / 12)
_PIECE = 1 << 20


class Rule(NamedTuple):
    """A tensor is mean + std * z, both divided by sqrt(fan in) where `per_root_fan_in`.

    Fan in is counted per output value.
    """

    pattern: str
    mean: float
    std: float
    per_root_fan_in: bool = False


# The first pattern that is found in a name decides.
RULES: tuple[Rule, ...] = (
    # Clip bounds stand near 2.5 to 3 standard deviations of what passes: measured, most clip 0.1 to 3 % of the values.
    Rule(r"o_proj\.input_min$", -1.1, 0.05),
    Rule(r"o_proj\.input_max$", 1.1, 0.05),
    Rule(r"(o_proj|down_proj|ffw_layer_2|linear_end)\.output_min$", -1.3, 0.05),
    Rule(r"(o_proj|down_proj|ffw_layer_2|linear_end)\.output_max$", 1.3, 0.05),
    Rule(r"\.input_min$", -2.6, 0.1),
    Rule(r"\.input_max$", 2.6, 0.1),
    Rule(r"\.output_min$", -2.8, 0.1),
    Rule(r"\.output_max$", 2.8, 0.1),
    Rule(r"layer_scalar$", 0.75, 0.05),
    Rule(r"router\.per_expert_scale$", 0.9, 0.2),
    Rule(r"router\.scale$", 1.1, 0.2),
    Rule(r"router\.proj", 0.0, 2.0),
    Rule(r"std_bias$", 1.0, 3.0),
    Rule(r"std_scale$", 0.8, 0.2),
    Rule(r"per_dim_scale$", 0.3, 0.3),
    Rule(r"vision_tower.*q_norm", 0.6, 0.1),
    Rule(r"vision_tower.*k_norm", 2.6, 0.4, True),
    Rule(r"q_norm", 0.9, 0.15),
    Rule(r"k_norm", 2.2, 0.4, True),
    Rule(r"\.bias$", 0.1, 0.3),
    Rule(r"language_model\.norm\.weight$", 2.2, 0.3),
    Rule(r"post_\w*norm\w*\.weight$", 0.7, 0.1),
    Rule(r"(norm\w*|patch_ln\d)\.weight$", 0.9, 0.15),
    Rule(r"position_embedding_table$|pos_embedding$", 0.0, 0.5),
    Rule(r"embed_tokens_per_layer", 0.0, 0.18),
    Rule(r"input_proj\.weight$", 0.0, 1.5, True),
    Rule(r"(weight|proj)$", 0.0, 1.0, True),
)

# Published files repeat the bounds of linears that read the same input, so an engine may fuse these and keep one set.
_SHARED_BOUNDS = (
    (re.compile(r"(audio_tower.*)\.[qkv]_proj(\.\w+_m\w+)$"), r"\1.qkv_proj\2"),
    (re.compile(r"(vision_tower.*)\.[kv]_proj(\.\w+_m\w+)$"), r"\1.kv_proj\2"),
    (re.compile(r"(vision_tower.*)\.(?:gate|up)_proj(\.\w+_m\w+)$"), r"\1.gate_up_proj\2"),
)


def value(checkpoint: str, tensor: Tensor) -> torch.Tensor:
    """The bfloat16 content of one tensor, of the shape that `tensor` gives."""
    return torch.cat(list(pieces(checkpoint, tensor))).reshape(tensor.shape)


def pieces(checkpoint: str, tensor: Tensor) -> Iterator[torch.Tensor]:
    """The content of one tensor, flat, a bounded piece at a time."""
    rule = _rule(tensor.name)
    divisor = math.sqrt(_fan_in(tensor)) if rule.per_root_fan_in else 1.0
    for z in _deviates(f"{checkpoint}/{_stream(tensor.name)}", tensor.parameters):
        exact = np.float32(rule.mean / divisor) + np.float32(rule.std / divisor) * z
        yield torch.from_numpy(exact).to(torch.bfloat16)


def _rule(name: str) -> Rule:
    for rule in RULES:
        if re.search(rule.pattern, name):
            return rule
    raise ValueError(f"no value rule matches tensor {name!r}: add one to RULES in harness/zoo/values.py")


def _stream(name: str) -> str:
    for pattern, shared in _SHARED_BOUNDS:
        name = pattern.sub(shared, name)
    return name


def _fan_in(tensor: Tensor) -> int:
    # Experts are stacked in front of (out, in); a convolution's inputs are channels times taps.
    return math.prod(tensor.shape[1:]) if "conv" in tensor.name and len(tensor.shape) > 2 else tensor.shape[-1]


def _deviates(key: str, count: int) -> Iterator[NDArray[np.float32]]:
    """`count` float32 numbers of mean 0 and variance 1, exact sums of integers times one constant."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    stream = np.random.Philox(key=seed)
    for first in range(0, count, _PIECE):
        halves = stream.random_raw(min(_PIECE, count - first)).view(np.uint16).reshape(-1, 4)
        sums = halves.sum(axis=1, dtype=np.int64)
        yield (sums - 2 * 65535).astype(np.float32) * np.float32(1 / _SUM_STD)
