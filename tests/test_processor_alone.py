"""A subject that runs no model, such as SGLang's processor: what it cannot record is never agreed with, nor dropped.

The prompt of every test holds one image of two soft tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.comparators import Comparison, Context, Limits, Side, compare
from harness.comparators.kl import OutputHead
from harness.schema import PROPERTIES, Case, Counts, ImageSpec, Observation, Part, Probe, ProbeKind, Verdict
from harness.spec import MediaTokens

CASE = Case("tiny", (Part(text="a"), Part(image=ImageSpec(96, 48))), 70)
IDS = np.array([2, 5, 10, 11, 11, 12])
CONTEXT = Context(
    MediaTokens(10, 11, 12), OutputHead(torch.linspace(-1, 1, 64).reshape(16, 4), cap=None), Limits.of("float32")
)
STATES = np.random.default_rng(0).normal(size=(len(IDS), 4)).astype(np.float32)
INPUTS = {"prompt_ids": IDS, "pixels.0": np.ones((18, 4), np.float32), "positions.0": np.zeros((18, 2), np.int64)}
BEHIND = ("mm_features.0", "hidden", "logprobs")


def engine(name: str, *lost: str, probe: bool = False) -> Side:
    """A subject with a model, without the stages that it lost."""
    logits = torch.from_numpy(STATES) @ CONTEXT.head.weight.T
    own = torch.log_softmax(logits, dim=-1)[:-1].gather(1, torch.from_numpy(IDS[1:, None]))[:, 0].numpy()
    arrays = {**INPUTS, "mm_features.0": np.ones((2, 4), np.float32), "hidden": STATES, "logprobs": own}
    observation = Observation(CASE.id, name, "ok", counts=(Counts(2, 2, 70),), probe=probe)
    return Side(observation, {stage: array for stage, array in arrays.items() if stage not in lost})


def judged(*sides: Side, case: Case = CASE) -> list[Verdict]:
    found: Comparison = compare(case, sides, CONTEXT, tuple(PROPERTIES))
    return [verdict for verdict in found.verdicts if verdict.left != "reference"]


def by_stage(verdicts: list[Verdict], left: str, right: str) -> dict[str, tuple[str, str]]:
    return {v.stage: (v.verdict, v.reason) for v in verdicts if (v.left, v.right) == (left, right)}


def test_two_engines_agree_on_everything() -> None:
    """Negative control: with every stage recorded nothing is left open."""
    assert {v.verdict for v in judged(engine("hf"), engine("vllm"))} == {"agree"}


def test_a_processor_agrees_on_what_it_has_and_on_nothing_else() -> None:
    """Prompt, counts, pixels and positions agree; rows and states are `not comparable`, each with who lacks what."""
    verdicts = judged(engine("hf"), engine("sglang", *BEHIND))
    pair = by_stage(verdicts, "hf", "sglang")
    agreed = {stage for stage, (verdict, _) in pair.items() if verdict == "agree"}
    assert agreed == {"outcome", "prompt_ids", "counts", "pixels", "positions"}
    assert pair["hidden"] == ("not comparable", "sglang recorded no hidden")
    assert pair["mm_features"] == ("not comparable", "sglang recorded no mm_features and no hidden")
    own = by_stage(verdicts, "sglang", "sglang")
    assert own["logprobs"] == ("not comparable", "sglang recorded no hidden, sglang recorded no logprobs")
    assert own["counts"][0] == "agree"
    assert not any(v.verdict == "differ" for v in verdicts)


def test_a_processor_is_still_found_out() -> None:
    """Negative control: another prompt or other pixels of a subject without a model differ."""
    wrong = engine("sglang", *BEHIND)
    arrays = {**wrong.arrays, "pixels.0": wrong.arrays["pixels.0"] * 2, "prompt_ids": IDS[:-1]}
    pair = by_stage(judged(engine("hf"), Side(wrong.observation, arrays)), "hf", "sglang")
    assert (pair["pixels"][0], pair["prompt_ids"][0]) == ("differ", "differ")


def test_an_engine_that_lost_its_states_is_named() -> None:
    """States that vLLM should have are missed in so many words, in the pair and in the subject by itself."""
    verdicts = judged(engine("hf"), engine("vllm", "hidden"))
    assert by_stage(verdicts, "hf", "vllm")["hidden"] == ("not comparable", "vllm recorded no hidden")
    assert by_stage(verdicts, "vllm", "vllm")["logprobs"] == ("not comparable", "vllm recorded no hidden")


def test_an_engine_that_lost_its_rows_differs() -> None:
    """Where a model ran, feature rows that nobody recorded are lost: a difference."""
    pair = by_stage(judged(engine("hf"), engine("vllm", "mm_features.0")), "hf", "vllm")
    assert pair["mm_features"] == ("differ", "vllm has no mm_features.0")


def test_two_processors_leave_the_model_open() -> None:
    """Two sides that lack the same stage do not agree on it."""
    pair = by_stage(judged(engine("a", *BEHIND), engine("b", *BEHIND)), "a", "b")
    assert pair["hidden"] == ("not comparable", "a recorded no hidden, b recorded no hidden")
    assert pair["mm_features"][0] == "not comparable"


@pytest.mark.parametrize("kind", ["expanded", "repeat", "visibility", "batch", "chunked"])
def test_a_probe_of_a_processor_is_compared_by_its_prompt(kind: ProbeKind) -> None:
    """Equal ids leave the states open, other ids differ, by whatever probe."""
    case = replace(CASE, probe=Probe(kind))
    plain, probed = engine("sglang", *BEHIND), engine("sglang", *BEHIND, probe=True)
    own = by_stage(judged(plain, probed, case=case), "sglang", "sglang")
    assert own[kind] == ("not comparable", "sglang recorded no hidden, sglang recorded no hidden")
    other = Side(probed.observation, {**probed.arrays, "prompt_ids": IDS[:-1]})
    own = by_stage(judged(plain, other, case=case), "sglang", "sglang")
    assert own[f"prompt_ids.{kind}"][0] == "differ"


def test_a_processor_says_nothing_of_finite_values() -> None:
    """P12 is about what enters and leaves the decoder: without one it is open, though the pixels are finite."""
    case = replace(CASE, dtype="float16")
    own = by_stage(judged(engine("sglang", *BEHIND), case=case), "sglang", "sglang")
    assert own["finite"] == ("not comparable", "sglang recorded no hidden")
    assert by_stage(judged(engine("hf"), case=case), "hf", "hf")["finite"][0] == "agree"
