"""Prompts, counts and outcomes: what agrees must pass, and every small wrong must show. Nothing may be dropped.

The prompt of every test here holds two images, of two and of three soft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.comparators import Context, Limits, Side, compare, counts, load_side, outcomes, prompts
from harness.comparators.base import judge
from harness.comparators.kl import OutputHead
from harness.schema import Case, Counts, ImageSpec, Observation, OutcomeKind, Part, Property, Verdict
from harness.spec import MediaTokens

BOI, IMAGE, EOI, TEXT = 10, 11, 12, 5
IDS = [2, TEXT, BOI, IMAGE, IMAGE, EOI, BOI, IMAGE, IMAGE, IMAGE, EOI, TEXT]
COUNTS = (Counts(2, 2, 70), Counts(3, 3, 70))
CASE = Case("tiny", (Part(text="a"), Part(image=ImageSpec(48, 48)), Part(image=ImageSpec(154, 220))), 70)
VOCABULARY, HIDDEN = 16, 4
CONTEXT = Context(
    MediaTokens(BOI, IMAGE, EOI),
    OutputHead(torch.linspace(-1, 1, VOCABULARY * HIDDEN).reshape(VOCABULARY, HIDDEN), cap=None),
    Limits.of("float32"),
)


def _ran(name: str, ids: Sequence[int] = IDS, counted: tuple[Counts, ...] = COUNTS) -> Side:
    return Side(Observation("case", name, "ok", counts=counted), {"prompt_ids": np.array(ids, dtype=np.int64)})


def _with(values: Sequence[int], index: int, value: int) -> list[int]:
    return [*values[:index], value, *values[index + 1 :]]


def test_equal_prompts_agree() -> None:
    """The same ids on both sides agree, with nothing measured."""
    (verdict,) = prompts.compare(_ran("a"), _ran("b"), CONTEXT)
    assert verdict == Verdict("P1", "prompt_ids", "a", "b", "agree", 0, 0, "tokens", "")


@pytest.mark.parametrize("index", range(len(IDS)))
def test_one_changed_token_id_differs(index: int) -> None:
    """One other id is seen wherever it stands, and counts as one token."""
    (verdict,) = prompts.compare(_ran("a"), _ran("b", _with(IDS, index, 1)), CONTEXT)
    assert (verdict.verdict, verdict.measured, verdict.unit) == ("differ", 1, "tokens")


def test_one_placeholder_more_differs_and_says_where() -> None:
    """A longer run differs even at the end of the prompt; the reason shows both sides' runs and lengths."""
    shorter, longer = IDS[:-2], [*IDS[:-2], IMAGE]
    (verdict,) = prompts.compare(_ran("a", shorter), _ran("b", longer), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("differ", 1)
    assert verdict.reason == "a: 10 tokens, placeholders [2, 3]; b: 11 tokens, placeholders [2, 4]"


def test_every_position_that_one_side_lacks_counts() -> None:
    """A prompt that stops early differs by all that is missing: nothing is compared up to the shorter end only."""
    (verdict,) = prompts.compare(_ran("a"), _ran("b", IDS[:4]), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("differ", len(IDS) - 4)


def test_counts_within_one_subject_agree() -> None:
    """Predicted = placeholders = rows <= declared maximum gives one verdict of the subject with itself."""
    (verdict,) = counts.check(CASE, _ran("a"), CONTEXT)
    assert verdict == Verdict("P2", "counts", "a", "a", "agree", 0, 0, "soft tokens", "")


WRONG_COUNTS = {
    "predicts one more": (COUNTS[0], Counts(4, 3, 70)),
    "predicts one less": (COUNTS[0], Counts(2, 3, 70)),
    "one row more": (COUNTS[0], Counts(3, 4, 70)),
    "one row less": (COUNTS[0], Counts(3, 2, 70)),
    "one row over the declared maximum": (COUNTS[0], Counts(3, 3, 2)),
    "wrong in the first image only": (Counts(2, 1, 70), COUNTS[1]),
}


@pytest.mark.parametrize("counted", WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_each_wrong_count_differs_by_one(counted: tuple[Counts, ...]) -> None:
    """Each of the four numbers can break P2 by itself, in each image, and the reason names all of them."""
    (verdict,) = counts.check(CASE, _ran("a", counted=counted), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("differ", 1)
    for words in ("predicted", "placeholders", "feature rows", "declared maximum", "reference rule", "exact contract"):
        assert words in verdict.reason


def test_one_placeholder_more_than_rows_differs() -> None:
    """A prompt with a placeholder that no row fills breaks P2 in the subject that made it."""
    longer = [*IDS[:4], IMAGE, *IDS[4:]]
    (verdict,) = counts.check(CASE, _ran("a", longer), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("differ", 1)
    assert verdict.reason.startswith("image 0: predicted 2, placeholders 3, feature rows 2")


@pytest.mark.parametrize("ids", [IDS[:6], [*IDS, IMAGE], [TEXT]], ids=["a run less", "a run more", "no run"])
def test_another_number_of_runs_than_images_differs(ids: list[int]) -> None:
    """Runs are matched with images one to one, or not at all: the reason gives both."""
    (verdict,) = counts.check(CASE, _ran("a", ids), CONTEXT)
    assert verdict.verdict == "differ"
    assert verdict.reason.startswith("2 images, placeholder runs")


def test_an_uncounted_image_differs_though_the_sums_agree() -> None:
    """Two images' rows reported as one differ by at least 1, although as many rows as placeholders exist."""
    (verdict,) = counts.check(CASE, _ran("a", counted=(Counts(5, 5, 70),)), CONTEXT)
    assert (verdict.verdict, verdict.measured) == ("differ", 1)


def test_a_text_with_no_placeholder_agrees_and_with_one_differs() -> None:
    """Without an image there is nothing to count, and a placeholder is one too many."""
    case = replace(CASE, parts=(Part(text="a"),))
    assert counts.check(case, _ran("a", [2, TEXT], ()), CONTEXT)[0].verdict == "agree"
    assert counts.check(case, _ran("a", [2, IMAGE], ()), CONTEXT)[0].verdict == "differ"


def test_equal_predictions_agree_and_another_differs_with_both_answers() -> None:
    """Two subjects' predictions are compared image by image; both right answers stand beside a disagreement."""
    assert counts.compare(CASE, _ran("a"), _ran("b"))[0].verdict == "agree"
    (verdict,) = counts.compare(CASE, _ran("a"), _ran("b", counted=(COUNTS[0], Counts(5, 3, 70))))
    assert (verdict.verdict, verdict.measured) == ("differ", 2)
    assert verdict.reason == "a 3, b 5; 154 x 220 px at budget 70: reference rule 63, exact contract 70"


def test_predictions_for_another_number_of_images_differ() -> None:
    """A subject that counts fewer images than another differs by images, and nothing is paired up wrongly."""
    (verdict,) = counts.compare(CASE, _ran("a"), _ran("b", counted=COUNTS[:1]))
    assert (verdict.verdict, verdict.measured, verdict.unit) == ("differ", 1, "images")


def test_lost_tokens_are_reported_under_the_reference_rule() -> None:
    """A rounding-sensitive size is a finding about the rule, never about a subject; others say nothing."""
    (verdict,) = counts.check_rounding(CASE)
    assert (verdict.left, verdict.right, verdict.stage) == ("reference", "reference", "rounding")
    assert (verdict.verdict, verdict.measured) == ("differ", 7)
    assert counts.check_rounding(replace(CASE, parts=CASE.parts[:2])) == []


@pytest.mark.parametrize("measured", [float("nan"), float("inf"), 1.0000001])
def test_what_is_not_within_the_limit_differs(measured: float) -> None:
    """Neither NaN nor infinity nor a hair over the limit passes; the limit itself does."""
    assert judge("P6", "hidden", ("a", "b"), measured, 1.0, "nats").verdict == "differ"
    assert judge("P6", "hidden", ("a", "b"), 1.0, 1.0, "nats").verdict == "agree"


def _observed(name: str, outcome: OutcomeKind) -> Side:
    return load_side(Observation("case", name, outcome, message=f"why {name}"))


PAIRS: dict[tuple[OutcomeKind, OutcomeKind], tuple[list[str], str, str]] = {
    ("ok", "ok"): ([], "agree", ""),
    ("rejected", "rejected"): ([], "agree", ""),
    ("ok", "rejected"): ([], "differ", "b rejected: why b"),
    ("rejected", "ok"): ([], "differ", "a rejected: why a"),
    ("ok", "crashed"): (["b"], "not comparable", "b crashed: why b"),
    ("rejected", "timeout"): (["b"], "not comparable", "b timeout: why b"),
    ("crashed", "timeout"): (["a", "b"], "not comparable", "a crashed: why a; b timeout: why b"),
    ("unavailable", "ok"): ([], "not comparable", "a unavailable: why a"),
    ("ok", "failed"): ([], "not comparable", "b failed: why b"),
}


@pytest.mark.parametrize(("kinds", "expected"), PAIRS.items(), ids=[" and ".join(kinds) for kinds in PAIRS])
def test_outcomes_of_two(kinds: tuple[OutcomeKind, OutcomeKind], expected: tuple[list[str], str, str]) -> None:
    """The dead differ from what they promised; a refusal differs from acceptance; the absent compare with nobody."""
    *own, pair = outcomes.check_all([_observed("a", kinds[0]), _observed("b", kinds[1])])
    assert [verdict.left for verdict in own] == expected[0]
    assert all(verdict.verdict == "differ" and verdict.left == verdict.right for verdict in own)
    assert (pair.left, pair.right, pair.verdict, pair.reason) == ("a", "b", *expected[1:])


def _full(name: str, outcome: OutcomeKind) -> Side:
    """A side that recorded every stage, if it ran."""
    if outcome != "ok":
        return _observed(name, outcome)
    arrays: dict[str, Any] = {
        "prompt_ids": np.array(IDS, dtype=np.int64),
        "hidden": np.ones((len(IDS), HIDDEN), dtype=np.float32),
        "logprobs": np.zeros(len(IDS) - 1, dtype=np.float32),
    }
    for image in range(2):
        arrays |= {f"{stage}.{image}": np.ones((2, 3)) for stage in ("pixels", "positions", "mm_features")}
    return Side(Observation("case", name, outcome, counts=COUNTS), arrays)


OUTCOMES = st.lists(st.sampled_from(get_args(OutcomeKind)), min_size=2, max_size=4)
ASKED = st.sets(st.sampled_from(get_args(Property)))


@settings(max_examples=150)
@given(OUTCOMES, ASKED)
def test_no_pair_is_ever_dropped(kinds: list[OutcomeKind], asked: set[Property]) -> None:
    """Every pair has a verdict on its outcomes and on each property asked between two, whoever crashed or is absent."""
    sides = [_full(f"s{index}", kind) for index, kind in enumerate(kinds)]
    found = {(v.property, v.left, v.right) for v in compare(CASE, sides, CONTEXT, asked).verdicts}
    between: set[Property] = {"P1", *(asked & {"P6", "P7"})}
    for left, right in combinations([side.name for side in sides], 2):
        assert {(prop, left, right) for prop in between} <= found


@settings(max_examples=150)
@given(OUTCOMES, ASKED)
def test_only_sides_that_ran_are_compared(kinds: list[OutcomeKind], asked: set[Property]) -> None:
    """A pair with a side that did not run is `not comparable` with a reason, at every stage but the outcome."""
    sides = [_full(f"s{index}", kind) for index, kind in enumerate(kinds)]
    ran = {side.name for side in sides if side.observation.outcome == "ok"}
    for verdict in compare(CASE, sides, CONTEXT, asked).verdicts:
        if verdict.left != verdict.right and verdict.stage != "outcome" and not {verdict.left, verdict.right} <= ran:
            assert (verdict.verdict, bool(verdict.reason)) == ("not comparable", True)


@pytest.mark.parametrize("outcome", [kind for kind in get_args(OutcomeKind) if kind != "ok"])
def test_a_subject_that_did_not_run_keeps_its_p2_verdict(outcome: OutcomeKind) -> None:
    """P2 is asked of each subject by itself, so one that did not run is `not comparable`, never absent."""
    verdicts = compare(CASE, [_full("a", outcome), _full("b", "ok")], CONTEXT, {"P2"}).verdicts
    assert [v.verdict for v in verdicts if (v.property, v.left, v.right) == ("P2", "a", "a")] == ["not comparable"]


@pytest.mark.parametrize("prop", ["P1", "P2", "P6", "P7"])
def test_what_was_not_asked_is_not_answered(prop: Property) -> None:
    """Beside outcomes, verdicts are of the property that was asked alone."""
    verdicts = compare(CASE, [_full("a", "ok"), _full("b", "ok")], CONTEXT, {prop}).verdicts
    assert {verdict.property for verdict in verdicts if verdict.stage != "outcome"} == {prop}
