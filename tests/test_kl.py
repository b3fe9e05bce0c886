"""P6: KL over the full vocabulary, by hand, against a direct softmax, and with every wrong that must show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.comparators import Comparison, Context, Limits, Side, kl, logprobs
from harness.comparators.kl import Divergence, OutputHead, diverge, realised_logprobs
from harness.schema import Observation, Verdict
from harness.spec import MediaTokens

Floats = npt.NDArray[np.float32]

BOI, IMAGE, EOI = 10, 11, 12
IDS = np.array([2, 5, BOI, IMAGE, IMAGE, EOI, 7])
VOCABULARY, HIDDEN = 50, 8


def _halves(rows: int, columns: int, seed: int) -> Floats:
    """Multiples of one half up to 2: products and their sums are exact in float32, so only the method is tested."""
    drawn: Floats = (np.random.default_rng(seed).integers(-4, 5, (rows, columns)) / 2).astype(np.float32)
    return drawn


HEAD = OutputHead(torch.from_numpy(_halves(VOCABULARY, HIDDEN, 1)), cap=3.0)
CONTEXT = Context(MediaTokens(BOI, IMAGE, EOI), HEAD, Limits.of("float32"))


def _of_probabilities(*rows: Sequence[float]) -> Floats:
    """Hidden states that an identity head turns into these distributions."""
    states: Floats = np.log(np.array(rows)).astype(np.float32)
    return states


def _pair(left: Floats, right: Floats, head: OutputHead) -> Divergence:
    return diverge([left, right], head, ("text_before",) * len(left))[0, 1]


IDENTITY = OutputHead(torch.eye(3), cap=None)


def test_three_vocabulary_entries_by_hand() -> None:
    """P = (1/2, 1/4, 1/4) against Q = (1/4, 1/4, 1/2), worked by hand.

    KL(P||Q) = 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 = 1/4 ln 2. Their mean is M = (3/8, 1/4, 3/8), so KL(P||M) =
    1/2 ln 4/3 + 1/4 ln 2/3; KL(Q||M) is the same by symmetry, and so is JS, their mean.
    """
    found = _pair(_of_probabilities((1 / 2, 1 / 4, 1 / 4)), _of_probabilities((1 / 4, 1 / 4, 1 / 2)), IDENTITY)
    assert found.kl_left_right[0] == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert found.js[0] == pytest.approx(math.log(4 / 3) / 2 + math.log(2 / 3) / 4, rel=1e-6)
    assert not found.same_top1[0]


def test_the_direction_is_left_to_right() -> None:
    """KL((1/2, 1/4, 1/4) || uniform) = ln 3 - 3/2 ln 2; the other way round it is (ln 2/3 + 2 ln 4/3) / 3."""
    peaked, uniform = _of_probabilities((1 / 2, 1 / 4, 1 / 4)), _of_probabilities((1 / 3, 1 / 3, 1 / 3))
    forward, backward = _pair(peaked, uniform, IDENTITY), _pair(uniform, peaked, IDENTITY)
    assert forward.kl_left_right[0] == pytest.approx(math.log(3) - 1.5 * math.log(2), rel=1e-5)
    assert backward.kl_left_right[0] == pytest.approx((math.log(2 / 3) + 2 * math.log(4 / 3)) / 3, rel=1e-5)
    assert forward.js[0] == pytest.approx(backward.js[0], rel=1e-9)


def _log_softmax(hidden: Floats, head: OutputHead) -> Any:
    logits = hidden.astype(np.float64) @ head.weight.numpy().astype(np.float64).T
    if head.cap is not None:
        logits = head.cap * np.tanh(logits / head.cap)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 51, 16_384])
def test_chunks_give_what_a_direct_softmax_gives(
    monkeypatch: pytest.MonkeyPatch, chunk: int, cap: float | None
) -> None:
    """Whatever the chunk, KL, JS and top-1 are those of the whole vocabulary in float64, with and without soft cap."""
    monkeypatch.setattr(kl, "VOCABULARY_CHUNK", chunk)
    head = OutputHead(HEAD.weight, cap)
    left, right = _halves(6, HIDDEN, 2), _halves(6, HIDDEN, 3)
    found = _pair(left, right, head)
    p, q = _log_softmax(left, head), _log_softmax(right, head)
    m = np.log((np.exp(p) + np.exp(q)) / 2)
    np.testing.assert_allclose(found.kl_left_right, (np.exp(p) * (p - q)).sum(1), rtol=1e-11)
    np.testing.assert_allclose(found.js, (np.exp(p) * (p - m) + np.exp(q) * (q - m)).sum(1) / 2, rtol=1e-11)
    np.testing.assert_array_equal(found.same_top1, p.argmax(1) == q.argmax(1))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_top_1_is_found_in_every_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Each entry in turn is ranked first on both sides, then on one only: the offset of a chunk is not lost."""
    monkeypatch.setattr(kl, "VOCABULARY_CHUNK", chunk)
    states = np.eye(3, dtype=np.float32)
    assert _pair(states, states, IDENTITY).same_top1.tolist() == [True] * 3
    assert _pair(states, np.roll(states, 1, axis=0), IDENTITY).same_top1.tolist() == [False] * 3


def test_opposite_certainties_reach_ln_2_and_stay_finite() -> None:
    """Two sides sure of different tokens have JS = ln 2, its largest value, and a finite KL of their logit gap."""
    sure = np.diag([60.0, 60.0, 60.0]).astype(np.float32)
    found = _pair(sure, np.roll(sure, 1, axis=0), IDENTITY)
    assert found.js == pytest.approx([math.log(2)] * 3)
    assert found.js.max() <= math.log(2) + 1e-12
    assert found.kl_left_right == pytest.approx([60.0] * 3)


STATES = st.lists(st.tuples(*[st.integers(-40, 40).map(lambda n: n / 2)] * 3), min_size=1, max_size=5)


@settings(max_examples=200)
@given(STATES, st.data())
def test_kl_is_never_negative_and_js_never_above_ln_2(left: list[Any], data: st.DataObject) -> None:
    """For any two sides KL >= 0 and 0 <= JS <= ln 2, up to rounding in float64."""
    right = data.draw(st.lists(STATES.map(lambda rows: rows[0]), min_size=len(left), max_size=len(left)))
    found = _pair(np.array(left, dtype=np.float32), np.array(right, dtype=np.float32), IDENTITY)
    assert found.kl_left_right.min() >= -1e-12
    assert found.js.min() >= -1e-12
    assert found.js.max() <= math.log(2) + 1e-12


@settings(max_examples=100)
@given(STATES)
def test_equal_sides_have_no_divergence(rows: list[Any]) -> None:
    """The same states on both sides give exactly 0 nats and the same top-1 everywhere."""
    states = np.array(rows, dtype=np.float32)
    found = _pair(states, states.copy(), IDENTITY)
    assert found.kl_left_right.tolist() == [0.0] * len(rows)
    assert np.abs(found.js).max() <= 1e-12
    assert found.same_top1.all()


def _side(name: str, hidden: Floats, ids: Any = IDS) -> Side:
    own = realised_logprobs(hidden, ids, HEAD).astype(np.float32) if len(hidden) == len(ids) else np.zeros(len(ids) - 1)
    return Side(Observation("case", name, "ok"), {"prompt_ids": ids, "hidden": hidden, "logprobs": own})


HIDDEN_STATES = _halves(len(IDS), HIDDEN, 4)


def _compared(*sides: Side) -> tuple[list[Verdict], Comparison]:
    comparison = Comparison()
    return kl.compare(sides, CONTEXT, comparison), comparison


def test_equal_hidden_states_agree() -> None:
    """Equal states agree at 0 nats, and the divergence is kept with a role for each position."""
    (verdict,), comparison = _compared(_side("a", HIDDEN_STATES), _side("b", HIDDEN_STATES.copy()))
    assert (verdict.verdict, verdict.measured, verdict.unit) == ("agree", 0.0, "nats")
    roles = comparison.divergences["a", "b"].roles
    assert roles == ("text_before", "text_before", "boi", "soft", "soft", "eoi", "after_media")


@pytest.mark.parametrize("position", range(len(IDS)))
def test_one_wrong_position_differs_and_is_named(position: int) -> None:
    """A flipped sign at one position differs, wherever it is; the reason gives the position and its role."""
    wrong = HIDDEN_STATES.copy()
    wrong[position] *= -1
    (verdict,), comparison = _compared(_side("a", HIDDEN_STATES), _side("b", wrong))
    assert verdict.verdict == "differ"
    role = comparison.divergences["a", "b"].roles[position]
    assert verdict.reason.startswith(f"largest at position {position} ({role})")


@pytest.mark.parametrize("position", [0, 3, len(IDS) - 1])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_position_that_is_no_number_never_agrees(position: int, broken: float) -> None:
    """NaN or infinity at one position, on either side or both, differs: a maximum must not pass over it."""
    wrong = HIDDEN_STATES.copy()
    wrong[position, 0] = broken
    good, bad = _side("a", HIDDEN_STATES), _side("b", HIDDEN_STATES)
    bad = Side(bad.observation, {**bad.arrays, "hidden": wrong})
    for sides in ((good, bad), (bad, good), (bad, bad)):
        (verdict,), _ = _compared(*sides)
        assert verdict.verdict == "differ"


def test_prompts_of_unequal_length_are_not_comparable() -> None:
    """Where the prompts part, no position means the same: `not comparable`, with the reason."""
    (verdict,), comparison = _compared(_side("a", HIDDEN_STATES), _side("b", HIDDEN_STATES[:-1], IDS[:-1]))
    assert (verdict.verdict, verdict.reason, verdict.measured) == ("not comparable", "prompt ids differ", None)
    assert not comparison.divergences


def test_a_third_prompt_does_not_hide_the_two_that_agree() -> None:
    """One subject with another prompt leaves the others compared, and every pair has its verdict."""
    other = IDS.copy()
    other[1] = 6
    sides = [_side("a", HIDDEN_STATES), _side("b", HIDDEN_STATES, other), _side("c", HIDDEN_STATES)]
    verdicts, comparison = _compared(*sides)
    assert {(v.left, v.right): v.verdict for v in verdicts} == {
        ("a", "b"): "not comparable",
        ("a", "c"): "agree",
        ("b", "c"): "not comparable",
    }
    assert set(comparison.divergences) == {("a", "c")}


def test_too_few_hidden_states_are_not_comparable() -> None:
    """A subject that recorded fewer states than tokens is `not comparable` with the shapes, and no campaign ends."""
    (verdict,), _ = _compared(_side("a", HIDDEN_STATES), _side("b", HIDDEN_STATES[:-1]))
    assert (verdict.verdict, "shape" in verdict.reason) == ("not comparable", True)


def test_other_pixels_are_not_comparable() -> None:
    """Two models that were given different pixels are not judged by what they make of them."""
    pixels = np.full((9, 768), 0.5, dtype=np.float32)
    left = _side("a", HIDDEN_STATES)
    left = Side(left.observation, {**left.arrays, "pixels.0": pixels})
    for moved, kind in ((0.0, "agree"), (0.01, "not comparable"), (math.nan, "not comparable")):
        right = Side(_side("b", HIDDEN_STATES).observation, {**left.arrays, "pixels.0": pixels + np.float32(moved)})
        (verdict,), comparison = _compared(left, right)
        assert (verdict.verdict, bool(comparison.divergences)) == (kind, kind == "agree")
        assert verdict.reason == "media enter differently" or kind == "agree"


def test_own_log_probabilities_follow_from_the_states() -> None:
    """Log-probabilities of the realised tokens, taken from a direct softmax, agree with the engine's states."""
    expected = _log_softmax(HIDDEN_STATES, HEAD)[np.arange(len(IDS) - 1), IDS[1:]]
    np.testing.assert_allclose(realised_logprobs(HIDDEN_STATES, IDS, HEAD), expected, rtol=1e-11)
    assert logprobs.check(_side("a", HIDDEN_STATES), CONTEXT).verdict == "agree"


@pytest.mark.parametrize("wrong", [0.01, -math.inf, math.nan], ids=["off by 0.01", "masked", "NaN"])
def test_one_wrong_log_probability_differs(wrong: float) -> None:
    """One token scaled, masked or broken after the model differs by what it is off."""
    side = _side("a", HIDDEN_STATES)
    side.arrays["logprobs"][3] += wrong
    verdict = logprobs.check(side, CONTEXT)
    assert verdict.verdict == "differ"
    assert verdict.measured == pytest.approx(abs(wrong), abs=1e-5, nan_ok=True)


def test_log_probabilities_one_position_late_differ() -> None:
    """Entry t belongs to token t + 1: a shift by one does not pass."""
    side = _side("a", HIDDEN_STATES)
    shifted = Side(side.observation, {**side.arrays, "logprobs": np.roll(side.arrays["logprobs"], 1)})
    assert logprobs.check(shifted, CONTEXT).verdict == "differ"


def test_a_log_probability_too_many_differs_with_both_shapes() -> None:
    """Another number of log-probabilities than tokens to score is a finding with its reason."""
    side = _side("a", HIDDEN_STATES)
    longer = Side(side.observation, {**side.arrays, "logprobs": np.zeros(len(IDS))})
    verdict = logprobs.check(longer, CONTEXT)
    assert (verdict.verdict, verdict.reason) == ("differ", "7 tokens, but 7 hidden states and 7 log-probabilities")


def test_a_prompt_of_one_token_agrees() -> None:
    """With nothing to score there is nothing that can differ."""
    verdict = logprobs.check(_side("a", HIDDEN_STATES[:1], IDS[:1]), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("agree", 0.0)


def test_too_few_hidden_states_for_the_prompt_differ() -> None:
    """A subject whose states do not fit its own prompt is a finding, not the end of a campaign."""
    assert logprobs.check(_side("a", HIDDEN_STATES[:-2]), CONTEXT).verdict != "agree"


def test_a_tie_between_experts_is_passed_over_and_a_wrong_router_is_not() -> None:
    """One small outlier in 300 positions of a model with experts; not two, not a large one, not without experts."""
    mixture = replace(CONTEXT, experts=True)
    quiet = np.full(300, 1e-9)
    tie = quiet.copy()
    tie[7] = 1.5e-3
    assert kl.judged(tie, CONTEXT) == 7
    assert [kl.place(tie, kl.judged(tie, context)) == "largest" for context in (CONTEXT, mixture)] == [True, False]
    assert tie[kl.judged(tie, mixture)] == 1e-9
    twice = tie.copy()
    twice[9] = 1e-3
    assert kl.judged(twice, mixture) == 9
    large = quiet.copy()
    large[7] = 0.06
    assert kl.judged(large, mixture) == 7
    lost = tie.copy()
    lost[3] = np.nan
    assert kl.judged(lost, mixture) == 3


@pytest.mark.parametrize(("moved", "told"), [(30, 1e-4), (31, 0.9)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_of_a_reduced_type_one_position_in_ten_may_have_other_experts(moved: int, told: float, dtype: str) -> None:
    """30 of 300 positions far apart are passed over in a mixture, one more is not; a KL that is no number never is."""
    reduced = replace(CONTEXT, limits=Limits.of(dtype))
    mixture = replace(reduced, experts=True)
    values = np.full(300, 1e-4)
    values[:moved] = 0.9
    assert values[kl.judged(values, mixture)] == told
    assert values[kl.judged(values, reduced)] == 0.9
    for wrong in (np.nan, np.inf):
        values[100] = wrong
        assert kl.judged(values, mixture) == 100
