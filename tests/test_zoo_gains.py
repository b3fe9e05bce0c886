"""The zoo's random weights speak: distributions are neither flat nor saturated, and an image changes what follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.media import pixels
from harness.native import Gemma4
from harness.schema import ImageSpec
from harness.session import locate
from harness.zoo import NAMES

BEFORE, AFTER = "<bos>The image ", " shows a red square and two cats near the sea in 2026 ?"


def log_probabilities(model: Gemma4, prompt: str, images: list[ImageSpec]) -> torch.Tensor:
    """(T, V) in float64."""
    drawn = [np.asarray(pixels(image)) for image in images]
    prepared = model.prepare(prompt, drawn, max_soft_tokens=70)
    return torch.log_softmax(model.logits(model.forward(prepared)).double(), dim=-1)


@pytest.mark.parametrize("name", NAMES)
def test_distributions_are_neither_flat_nor_saturated(name: str) -> None:
    """The mean entropy of a next token is between 30 % and 85 % of that of a uniform choice; no logit nears the cap."""
    model = Gemma4.load(locate(name), dtype=torch.float32)
    logs = log_probabilities(model, f"{BEFORE}<|image|>{AFTER}", [ImageSpec(300, 200)])
    entropy_nats = -(logs.exp() * logs).sum(-1).mean().item()
    assert 0.30 < entropy_nats / math.log(logs.shape[1]) < 0.85
    assert logs.max().exp().item() < 0.99


@pytest.mark.parametrize("name", NAMES)
def test_an_image_changes_the_text_after_it(name: str) -> None:
    """Another image of the same size moves the tokens behind it by more than a tenth of a nat, on average."""
    model = Gemma4.load(locate(name), dtype=torch.float32)
    prompt = f"{BEFORE}<|image|>{AFTER}"
    one, other = (log_probabilities(model, prompt, [ImageSpec(300, 200, "RGB", "gradient", seed)]) for seed in (0, 9))
    behind = slice(-len(AFTER.split()), None)
    moved_nats = (one[behind].exp() * (one[behind] - other[behind])).sum(-1).mean().item()
    assert moved_nats > 0.1
