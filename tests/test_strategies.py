"""Strategies reach what they aim at, stay in their bounds, and shrink to what a person wants to see."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise, product
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.data import Status
from hypothesis.strategies import SearchStrategy

from harness.checkpoint import Checkpoint
from harness.render import has_rule, is_expanded, render
from harness.schema import (
    PROBES,
    PROPERTIES,
    Case,
    ColourMode,
    Part,
    ProbeKind,
    PromptForm,
    Property,
)
from harness.session import PROFILES, Plan, generated, locate
from harness.spec import AUDIO, IMAGE, SOFT_TOKEN_BUDGETS, VIDEO, VIDEO_BUDGET, audio_tokens, soft_tokens
from harness.strategies import (
    aims,
    applies,
    applies_to,
    cases,
    generate,
    probes,
    shares,
    stratified,
)
from harness.strategies.lengths import CONTEXT_TOKENS, tokens_at_most
from harness.strategies.prompts import MAX_SOFT_TOKENS_PER_PROMPT, MOST
from harness.strategies.texts import SPECIAL_TOKENS
from harness.zoo import NAMES
from tests.drawing import MODELS, many

EVERY: tuple[Property, ...] = tuple(PROPERTIES)


def _expanded_parts(case: Case) -> int:
    return sum(part.expanded for part in case.parts)


def _has(medium: str, count: int, case: Case) -> bool:
    return sum(part.medium == medium for part in case.parts) == count


def _says(field: str, value: object, case: Case) -> bool:
    return bool(getattr(case, field) == value)


def _has_mode(mode: ColourMode, case: Case) -> bool:
    return any(image.mode == mode for image in case.images)


def _has_orientation(tag: int, case: Case) -> bool:
    return any(image.orientation == tag for image in case.images)


def _has_probe(kind: ProbeKind, case: Case) -> bool:
    return case.probe is not None and case.probe.kind == kind


def _says_token(token: str, case: Case) -> bool:
    return any(token in part.text for part in case.parts)


CASE_AIMS: dict[str, Callable[[Case], bool]] = {
    **{f"{n} of {medium}": partial(_has, medium, n) for medium, most in MOST.items() for n in range(most + 1)},
    **{f"budget {budget}": partial(_says, "max_soft_tokens", budget) for budget in SOFT_TOKEN_BUDGETS},
    **{f"form {form}": partial(_says, "form", form) for form in get_args(PromptForm)},
    **{f"type {dtype}": partial(_says, "dtype", dtype) for dtype in ("", "bfloat16", "float16")},
    **{f"mode {mode}": partial(_has_mode, mode) for mode in get_args(ColourMode)},
    **{f"orientation {tag}": partial(_has_orientation, tag) for tag in range(1, 9)},
    **{f"probe {kind}": partial(_has_probe, kind) for kind in PROBES},
    **{f"text with {token}": partial(_says_token, token) for token in SPECIAL_TOKENS},
    "media first": lambda case: len(case.parts) > 1 and case.parts[0].medium is not None,
    "media last": lambda case: len(case.parts) > 1 and case.parts[-1].medium is not None,
    "media alone": lambda case: len(case.parts) == 1 and case.parts[0].medium is not None,
    "media adjacent": lambda case: any(a.medium and b.medium for a, b in pairwise(case.parts)),
    "media repeated": lambda case: len(set(case.images)) < len(case.images),
    "three kinds of media": lambda case: bool(case.images and case.audios and case.videos),
    "nothing": lambda case: not case.parts,
    "expanded": lambda case: is_expanded(case),
    "several expanded": lambda case: _expanded_parts(case) >= 3,
    "expanded sound": lambda case: any(part.audio and part.expanded for part in case.parts),
    "expanded video": lambda case: any(part.video and part.expanded for part in case.parts),
    "sound written out by a probe": lambda case: bool(case.audios) and _has_probe("expanded", case),
    "video written out by a probe": lambda case: bool(case.videos) and _has_probe("expanded", case),
    "a tool in a turn": lambda case: case.form == "turn" and case.tool is not None,
    "a tool in a chat by its messages": lambda case: case.tool is not None and _has_probe("chat", case),
    "a tool and a medium": lambda case: case.tool is not None and any(part.medium for part in case.parts),
    "mixed": lambda case: 0 < _expanded_parts(case) < len(case.images),
    "a system turn": lambda case: case.form == "turn" and bool(case.system),
    "a system message": lambda case: case.form == "chat" and bool(case.system),
    "another model": lambda case: case.model == MODELS[1],
    "text beyond ASCII": lambda case: any(not part.text.isascii() for part in case.parts),
    "right to left": lambda case: any("\u05dc" in part.text for part in case.parts),
    "emoji of several code points": lambda case: any("\u200d" in part.text for part in case.parts),
    "a companion with an image": lambda case: bool(case.probe and any(part.image for part in case.probe.companion)),
    "videos of two rates": lambda case: len({video.fps for video in case.videos}) == 2,
    "recordings of two lengths": lambda case: len({audio.samples for audio in case.audios}) == 2,
}


@pytest.fixture(name="many_cases", scope="module")
def _many_cases() -> list[Case]:
    return many(cases(models=MODELS), 4_000)


@pytest.mark.parametrize("aim", CASE_AIMS)
def test_each_kind_of_case_is_reached(aim: str, many_cases: list[Case]) -> None:
    """Every number and kind of media, position, form, budget, mode, spelling, probe and type is met."""
    assert any(map(CASE_AIMS[aim], many_cases))


@settings(max_examples=300)
@given(cases(models=MODELS))
def test_a_prompt_fits_the_context(case: Case) -> None:
    """By an upper bound on every part, a prompt and its companion fit 4,096 tokens; images stay at 1,500."""
    assert tokens_at_most(case) <= CONTEXT_TOKENS
    soft = sum(soft_tokens(i.width_px, i.height_px, case.max_soft_tokens).contract for i in case.images)
    assert soft <= case.max_soft_tokens * len(case.images) <= MAX_SOFT_TOKENS_PER_PROMPT


def _placeholders(part: Part, budget: int) -> int:
    """Of an expanded part, of a model that hears by log-mel."""
    if part.audio:
        return audio_tokens(part.audio.samples)
    if part.video:
        return part.video.frames * soft_tokens(part.video.width_px, part.video.height_px, VIDEO_BUDGET).reference
    assert part.image
    return soft_tokens(part.image.width_px, part.image.height_px, budget).reference


@settings(max_examples=200)
@given(cases(models=MODELS))
def test_a_prompt_has_the_placeholders_of_its_media(case: Case) -> None:
    """Expanded, a medium has one placeholder a soft token; bare, it has one; text holds none."""
    budget = case.max_soft_tokens
    counts = Counter[str]()
    for part in case.parts:
        counts[str(part.medium)] += _placeholders(part, budget) if part.expanded else 1
    prompt = render(case, Checkpoint.open(locate(case.model)).chat_template)
    assert [prompt.count(token) for token in (IMAGE, AUDIO, VIDEO)] == [counts[m] for m in ("image", "audio", "video")]


@settings(max_examples=300)
@given(cases(models=MODELS))
def test_a_case_has_only_what_its_model_can_be_given(case: Case) -> None:
    """No recording without audio; a probe applies to its case; expanded parts have a rule and are in no chat."""
    assert not case.audios or applies(case.model, "P11")
    assert case.probe is None or (applies_to(case.probe.kind, case) and not case.dtype)
    assert all(has_rule(part) and case.form != "chat" for part in case.parts if part.expanded)
    assert case.form != "raw" or not (case.system or case.tool)


_OF: dict[Property, Callable[[Case], bool]] = {
    "P7": lambda case: any(part.medium for part in case.parts),
    "P10": lambda case: bool(case.videos),
    "P11": lambda case: bool(case.audios),
    "P12": lambda case: case.dtype in ("bfloat16", "float16"),
}


@pytest.mark.parametrize("prop", EVERY)
def test_a_property_alone_gets_cases_that_exercise_it(prop: Property) -> None:
    """Asked for one property, every case has what it is about: its probe, a video, a recording, a reduced type."""
    model = "tiny-e2b"
    drawn = stratified(model, [prop], count=25, seed=1)
    kinds = [case.probe and PROBES[case.probe.kind] for case in drawn]
    assert set(kinds) == {prop if prop in PROBES.values() else None}
    assert all(_OF.get(prop, bool)(case) for case in drawn)


def test_a_property_that_no_model_has_is_refused() -> None:
    """P11 of a model without audio raises, with both names, and is not asked of it."""
    assert aims("tiny-31b", ["P11"]) == {}
    with pytest.raises(ValueError, match="none of P11 applies to tiny-31b"):
        stratified("tiny-31b", ["P11"], count=1, seed=0)
    with pytest.raises(ValueError, match=r"tiny-31b.*P11.*nothing to draw"):
        generate(cases(models=["tiny-31b"], properties=["P11"]), count=1, seed=0)


@settings(max_examples=100)
@given(st.data())
def test_a_probe_can_be_drawn_for_a_given_case(data: st.DataObject) -> None:
    """`probes(case)` draws kinds that apply, of the properties that are asked for."""
    case = data.draw(cases(models=MODELS, properties=["P1"]))
    probe = data.draw(probes(case, ["P4", "P5"]))
    assert PROBES[probe.kind] in ("P4", "P5")
    assert applies_to(probe.kind, case)


def test_hardly_anything_is_filtered_away() -> None:
    """At most 3 % of draws are given up by a filter; what Hypothesis itself cuts short is not counted."""
    statuses = Counter[Status]()

    @settings(max_examples=400, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def draw_one(data: st.DataObject) -> None:
        inner = data.conjecture_data
        try:
            data.draw(cases(models=MODELS))
        finally:
            statuses[inner.status] += 1

    draw_one()
    assert statuses[Status.INVALID] <= 0.03 * statuses[Status.VALID]
    assert statuses[Status.VALID] >= 400


def test_shares_are_proportional_and_whole() -> None:
    """Shares add up to the count and differ from proportion by less than one; another start serves another key."""
    weights = {"a": 3, "b": 3, "c": 1}
    for count, start in product(range(40), (0.0, 0.25, 0.5, 0.99)):
        split = shares(count, weights, start)
        assert sum(split.values()) == count
        assert all(abs(split[key] - count * weight / 7) < 1 for key, weight in weights.items())
    assert {key for start in (0.0, 0.9) for key, share in shares(1, weights, start).items() if share} == {"a", "c"}


def test_a_run_of_all_properties_is_a_mix() -> None:
    """Of all cases about half have a probe, most have only images and text, and no model has two loads in turn."""
    drawn = generated(Plan(cases=500))
    assert len({case.id for case in drawn}) == 500
    assert 0.4 <= sum(case.probe is not None for case in drawn) / 500 <= 0.6
    assert sum(bool(case.audios or case.videos) for case in drawn) < 250
    loads = [key for key, _ in groupby(drawn, key=lambda case: (case.model, case.dtype))]
    assert len(loads) == len(set(loads))
    assert generated(Plan(cases=500)) == drawn


def test_the_smoke_profile_reloads_few_checkpoints() -> None:
    """A short run of five models loads a reduced type for two of them at most, and asks every property."""
    drawn = generated(Plan(cases=PROFILES["smoke"]))
    assert len({(case.model, case.dtype) for case in drawn}) <= 7
    aimed = {PROBES[case.probe.kind] for case in drawn if case.probe}
    assert aimed == {"P3", "P4", "P5", "P8", "P9"}
    for medium in ("audios", "videos", "dtype"):
        assert any(getattr(case, medium) for case in drawn)


def test_the_nightly_profile_gives_each_property_its_cases() -> None:
    """Split over the five models, nightly's count has at least 220 cases that aim at each property."""
    per_model = shares(PROFILES["nightly"], dict.fromkeys(NAMES, 1))
    total = Counter[Property]()
    for model, count in per_model.items():
        total.update(shares(count, aims(model, EVERY)))
    assert min(total.values()) >= 220
    # Kinds of probe are drawn alike, and each subject has at least half of a property's kinds.
    assert min(total["P5"], total["P9"]) >= 400
    assert total["P4"] >= 300


def test_more_images_than_fit_do_not_pass_the_bound() -> None:
    """Asking for at least four images leaves out the budgets at which four do not fit."""

    def too_long(case: Case) -> bool:
        return case.max_soft_tokens * len(case.images) > MAX_SOFT_TOKENS_PER_PROMPT

    found = [case for case in generate(cases(models=MODELS, min_images=4), count=60, seed=0) if too_long(case)]
    assert not found


@pytest.mark.parametrize(("models", "min_images"), [([], 0), (["tiny-31b"], 100)], ids=["no model", "too many images"])
def test_impossible_wishes_are_refused(models: list[str], min_images: int) -> None:
    """No model, or more images than any budget lets in, raises with both numbers instead of drawing for ever."""
    with pytest.raises(ValueError, match=rf"{min_images} images: nothing to draw"):
        generate(cases(models=models, min_images=min_images), count=1, seed=0)


def test_generated_cases_are_distinct_and_repeatable() -> None:
    """A seed gives exactly `count` different cases, the same again, and another seed gives others."""
    drawn = generate(cases(models=MODELS), count=25, seed=3)
    assert len({case.id for case in drawn}) == 25
    assert generate(cases(models=MODELS), count=25, seed=3) == drawn
    others = generate(cases(models=MODELS), count=25, seed=4)
    assert len({case.id for case in others} - {case.id for case in drawn}) >= 22


def test_more_cases_begin_with_the_fewer() -> None:
    """A longer campaign of a seed tries first what a shorter one tried."""
    assert generate(cases(models=MODELS), count=20, seed=5)[:8] == generate(cases(models=MODELS), count=8, seed=5)


def test_more_cases_than_exist_are_refused() -> None:
    """Asking a strategy of three cases for nine raises, with both numbers, and does not search for ever."""
    three = st.sampled_from("abc").map(lambda letter: Case("m", (Part(text=letter),)))
    with pytest.raises(ValueError, match=r"asked for 9 different cases, but the strategy gave [23]"):
        generate(three, count=9, seed=0)


def test_hardly_any_draw_is_wasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign costs at most 1.2 draws a case: strategies build what they want, and throw nothing away."""
    module = importlib.import_module("harness.strategies.draws")
    draws: list[int] = []
    original = module._draw

    def counted(strategy: SearchStrategy[Case], seed: int) -> Case:
        draws.append(seed)
        drawn: Case = original(strategy, seed)
        return drawn

    monkeypatch.setattr(module, "_draw", counted)
    generate(cases(models=MODELS), count=60, seed=1)
    assert 60 <= len(draws) <= 72


def test_the_last_attempt_may_give_the_last_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cases as were asked for are enough, whenever the last of them is drawn; one fewer is refused."""
    tries, at_last = 4 * 1 + 20, Case("tiny-e2b", (Part("a"),))
    answers = iter([Case("tiny-e2b", (Part("known"),))] * (tries - 1) + [at_last])
    monkeypatch.setattr("harness.strategies.draws._draw", lambda *_: next(answers))
    known = [Case("tiny-e2b", (Part("known"),)).id]
    assert generate(cases(models=["tiny-e2b"]), count=1, seed=0, known=known) == [at_last]
    monkeypatch.setattr("harness.strategies.draws._draw", lambda *_: Case("tiny-e2b", (Part("known"),)))
    with pytest.raises(ValueError, match="asked for 1 different cases, but the strategy gave 0"):
        generate(cases(models=["tiny-e2b"]), count=1, seed=0, known=known)
