"""Stages put into native: planted faults are found at their stage, and what is inside is there when asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.transplant import GOAL, attribute, planted
from harness.campaign import Campaign, Result
from harness.comparators import Side
from harness.comparators.features import relative_row_errors
from harness.environments import SUBJECTS
from harness.explain import explain
from harness.fleet import Fleet, Options, fleet
from harness.replay import Target
from harness.schema import Case, ImageSpec, Part
from harness.session import locate
from harness.transplant import order, transplant

CASE = Case("tiny-e2b", (Part(text="in "), Part(image=ImageSpec(240, 96)), Part(text=" is what?")), 70)
QUICK = "second-layer-without-feed-forward"


def test_stages_are_put_in_in_the_order_of_the_computation() -> None:
    """Layers by number, not by name; what native cannot be given is left out."""
    names = [
        "hidden",
        "layer.10",
        "layer.9",
        "logprobs",
        "mm_features.0",
        "pixels.1",
        "merged_embeddings",
        "prompt_ids",
    ]
    arrays = dict.fromkeys(names, np.zeros(1))
    assert order(arrays) == ["pixels", "mm_features", "merged_embeddings", "layer.9", "layer.10", "hidden"]


@pytest.mark.engines
def test_a_fault_of_one_layer_is_found_there() -> None:
    """At least 90 % of the KL enters at the layer without its feed-forward, next to nothing before it."""
    found = attribute(QUICK)
    assert (found.found, found.share >= GOAL) == ("layer.1", True)
    before = [graft for graft in found.grafts if graft.stage in ("pixels", "positions", "mm_features", "layer.0")]
    assert len(before) == 4
    assert all(abs(graft.enters) < 1e-3 for graft in before)


@pytest.mark.releases
@pytest.mark.parametrize("fault", [name for name in planted() if name != QUICK])
def test_every_planted_fault_is_found_at_its_stage(fault: str) -> None:
    """As above, for every stage from pixels to final states."""
    found = attribute(fault)
    assert (found.found, found.share >= GOAL) == (planted()[fault].stage, True)


@pytest.fixture(name="deep", scope="module")
def _deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Campaign, Result]]:
    subjects = [SUBJECTS[name] for name in ("hf", "vllm", "native")]
    options = Options(properties=("P6", "P7"), deep=True)
    with fleet(subjects, options, tmp_path_factory.mktemp("logs"), [SUBJECTS["native-float64"]]) as workers:
        campaign = Campaign(workers, locate)
        (result,) = campaign.run([CASE])
        yield workers, campaign, result


@pytest.mark.engines
def test_all_engines_show_what_is_inside_their_decoder(deep: tuple[Fleet, Campaign, Result]) -> None:
    """hf, vllm and native record the same stages of the decoder, equal to a few roundings at each layer."""
    _, _, result = deep
    inside = [_inside(side) for side in (*result.sides, *result.beside)]
    assert "merged_embeddings" in inside[0]
    assert "layer.3" in inside[0]
    assert all(stages.keys() == inside[0].keys() for stages in inside)
    for stage, rows in inside[-1].items():
        for other in inside[:-1]:
            assert relative_row_errors(rows, other[stage]).max() < 1e-4, stage


def _inside(side: Side) -> dict[str, np.ndarray]:
    return {name: rows for name, rows in side.arrays.items() if name.startswith(("layer.", "merged_embeddings"))}


@pytest.mark.engines
def test_an_explanation_lays_noise_beside_each_stage_and_accuses_nobody(deep: tuple[Fleet, Campaign, Result]) -> None:
    """Engines that agree: each stage of the decoder is within its noise, nobody is wrong, distances are there."""
    _, campaign, _ = deep
    found = explain(Target(CASE.id, CASE), campaign)
    assert found.evidence.wrong == "undecided"
    assert {entry.subject for entry in found.evidence.distances} == {"hf", "vllm", "native"}
    for pair in found.pairs:
        rows = {row.stage: row for row in pair.stages}
        assert rows["layer.3"].noise is not None
        assert rows["layer.3"].verdict == "agree", pair
    assert found.transplants == (), "there is nothing to share out within noise"


@pytest.mark.engines
def test_nothing_is_left_to_attribute_between_equals(deep: tuple[Fleet, Campaign, Result]) -> None:
    """Negative control: native put into itself has no KL to share out; hf put into it whole leaves none."""
    workers, campaign, result = deep
    native = next(side for side in result.sides if side.name == "native")
    assert transplant(CASE, native, native, workers, campaign.context) is None
    moved = transplant(CASE, result.sides[0], native, workers, campaign.context)
    assert moved is not None
    assert moved.grafts[-1].removed == pytest.approx(1, abs=0.01)
    assert transplant(CASE, result.sides[0], native, workers, campaign.context, floor=1.0) is None
