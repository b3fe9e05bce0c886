"""Stages of the native model read out and replaced without editing it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.native import Gemma4, Prepared, Recorder, Transplant
from harness.zoo import ensure

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
VARIANTS = ("tiny-e2b", "tiny-e4b", "tiny-26b-a4b", "tiny-31b", "tiny-12b")
STAGES = ("pixels.0", "positions.1", "mm_features.1", "merged_embeddings", "layer.0", "layer.3", "hidden")


@cache
def load(name: str) -> Gemma4:
    """A checkpoint, loaded once."""
    return Gemma4.load(ensure(name, ZOO), dtype=torch.float32)


def prepare(gemma: Gemma4, seed: int) -> Prepared:
    """Two images of noise in one prompt; the seed decides the noise only."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(2)]
    return gemma.prepare("<bos>left <|image|> right <|image|> end", images, max_soft_tokens=70)


def stages(gemma: Gemma4, prepared: Prepared) -> dict[str, Tensor]:
    """Every stage of one pass."""
    tap = Recorder()
    gemma.forward(prepared, tap=tap)
    return tap.tensors


@pytest.fixture(name="gemma", params=VARIANTS)
def _gemma(request: pytest.FixtureRequest) -> Gemma4:
    return load(request.param)


def test_reading_changes_nothing(gemma: Gemma4) -> None:
    """With a recorder, and with each stage replaced by itself, hidden states are the same bits."""
    prepared = prepare(gemma, 1)
    plain = gemma.forward(prepared)
    seen = stages(gemma, prepared)
    graft = Transplant(seen)
    assert torch.equal(seen["hidden"], plain)
    assert torch.equal(gemma.forward(prepared, tap=graft), plain)
    assert graft.unused == set()


def test_every_stage_can_be_read(gemma: Gemma4) -> None:
    """Pixels, positions, image rows, merged embeddings, each layer and the end are shown, in the order of the model."""
    prepared = prepare(gemma, 1)
    seen = stages(gemma, prepared)
    images = [f"{stage}.{index}" for index in range(2) for stage in ("pixels", "positions")]
    layers = [f"layer.{index}" for index in range(len(gemma.config.text.layers))]
    assert list(seen) == [*images, "mm_features.0", "mm_features.1", "merged_embeddings", *layers, "hidden"]
    assert torch.equal(seen["pixels.1"], prepared.images[1].patches)
    assert torch.equal(seen["positions.1"], prepared.images[1].positions)
    assert len(seen["mm_features.1"]) == prepared.images[1].soft_tokens
    assert {len(seen[name]) for name in ("merged_embeddings", *layers, "hidden")} == {len(prepared.token_ids)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_replaced_stage_is_what_the_model_goes_on_with(gemma: Gemma4, stage: str) -> None:
    """Stages before a replaced one keep their values, the replaced one is the given tensor, later ones move."""
    prepared = prepare(gemma, 1)
    before = stages(gemma, prepared)
    tap = Recorder(Transplant({stage: before[stage].flip(0)}))
    out = gemma.forward(prepared, tap=tap)
    names = list(before)
    assert list(tap.tensors) == names
    assert torch.equal(tap.tensors[stage], before[stage].flip(0))
    assert torch.equal(out, tap.tensors["hidden"])
    assert (out - before["hidden"]).norm() > 1e-3 * out.norm()
    if stage.startswith(("merged", "layer", "hidden")):
        for name in names[: names.index(stage)]:
            assert torch.equal(tap.tensors[name], before[name]), name


def test_a_stage_of_another_input_carries_all_of_it(gemma: Gemma4) -> None:
    """With the image rows of another picture in place, the model gives that picture's hidden states."""
    one, other = prepare(gemma, 1), prepare(gemma, 2)
    rows = {name: tensor for name, tensor in stages(gemma, other).items() if name.startswith("mm_features")}
    assert not torch.equal(gemma.forward(one), gemma.forward(other))
    assert torch.equal(gemma.forward(one, tap=Transplant(rows)), gemma.forward(other))


def test_a_pack_shows_and_takes_the_stages_of_each_sample(gemma: Gemma4) -> None:
    """Each stage of each prompt is shown with its number, as in a pass alone, and can be replaced there."""
    samples = [gemma.prepare("<bos>nothing to see", max_soft_tokens=70), prepare(gemma, 1), prepare(gemma, 2)]
    alone, tap = [stages(gemma, sample) for sample in samples], Recorder()
    packed = gemma.forward_packed(samples, tap=tap)
    expected = {f"sample.{number}.{name}": rows for number, seen in enumerate(alone) for name, rows in seen.items()}
    assert set(tap.tensors) == set(expected)
    assert torch.equal(tap.tensors["sample.2.hidden"], packed[2])
    for name, rows in expected.items():
        assert torch.allclose(tap.tensors[name], rows, rtol=1e-3, atol=1e-4), name
    other = {f"sample.1.{name}": alone[2][name] for name in ("mm_features.0", "mm_features.1")}
    swapped = gemma.forward_packed(samples, tap=(graft := Transplant(other)))
    assert graft.unused == set()
    assert torch.equal(swapped[0], packed[0])
    assert torch.allclose(swapped[1], alone[2]["hidden"], rtol=1e-3, atol=1e-4)


def test_wrong_replacements_are_refused() -> None:
    """A tensor of another shape is an error with both shapes; a name that fits no stage stays in `unused`."""
    gemma = load("tiny-31b")
    prepared = prepare(gemma, 1)
    with pytest.raises(ValueError, match=r"layer\.1 is \(\d+, \d+\) here, a \(3, 4\) cannot take its place"):
        gemma.forward(prepared, tap=Transplant({"layer.1": torch.zeros(3, 4)}))
    misspelt = Transplant({"layer1": torch.zeros(3, 4)})
    gemma.forward(prepared, tap=misspelt)
    assert misspelt.unused == {"layer1"}


def test_a_tap_and_chunks_exclude_each_other() -> None:
    """Chunks have no whole stages to show."""
    gemma = load("tiny-31b")
    with pytest.raises(ValueError, match="give either tap or chunk_tokens"):
        gemma.forward(prepare(gemma, 1), tap=Recorder(), chunk_tokens=8)
