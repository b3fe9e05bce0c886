"""Strategies reach what they aim at, stay in their bounds, and shrink to what a person wants to see."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings, target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.media import MAX_PIXELS
from harness.render import is_expanded, render
from harness.schema import Case, ImageSpec, Part
from harness.spec import IMAGE, SOFT_TOKEN_BUDGETS, soft_tokens
from harness.strategies import cases, generate, image_specs, sizes
from harness.strategies.cases import MAX_IMAGES, MAX_SOFT_TOKENS_PER_PROMPT
from harness.strategies.images import MAX_SIDE_PX

T = TypeVar("T")
MODELS = ("one", "two")
CONTEXT_TOKENS = 4096
"""What engines are started with."""


def _found(strategy: SearchStrategy[T], wanted: Callable[[T], bool], *phases: Phase) -> T:
    """An example that is wanted, among at most 5,000; the same one in every run."""
    searching = settings(
        max_examples=5_000,
        database=None,
        deadline=None,
        phases=phases or (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    return find(strategy, wanted, settings=searching, random=random.Random(0))


@pytest.mark.parametrize("size", [(900, 3), (3, 900)])
def test_the_published_failure_can_be_drawn(size: tuple[int, int]) -> None:
    """Exactly 900 x 3 px and 3 x 900 px are among the sizes: a search that is told how near it is arrives there."""

    def there(drawn: tuple[int, int]) -> bool:
        target(-sum(abs(math.log(a / b)) for a, b in zip(drawn, size, strict=True)))
        return drawn == size

    assert _found(sizes(), there, Phase.generate, Phase.target) == size


def _ratio_just_over(size: tuple[int, int]) -> bool:
    longer, shorter = max(size), min(size)
    return any(budget * shorter < longer <= budget * shorter + 2 for budget in SOFT_TOKEN_BUDGETS)


def _ratio_just_under(size: tuple[int, int]) -> bool:
    longer, shorter = max(size), min(size)
    return any(budget * shorter - 2 <= longer < budget * shorter for budget in SOFT_TOKEN_BUDGETS)


AIMS: dict[str, Callable[[tuple[int, int]], bool]] = {
    "the rules part": lambda size: any(soft_tokens(*size, b).rounding_sensitive for b in SOFT_TOKEN_BUDGETS),
    "ratio just over a budget": _ratio_just_over,
    "ratio just under a budget": _ratio_just_under,
    "ratio equal to a budget": lambda size: any(max(size) == b * min(size) for b in SOFT_TOKEN_BUDGETS),
    "upright, equal to a budget": lambda size: size[0] > 1 and any(size[1] == b * size[0] for b in SOFT_TOKEN_BUDGETS),
    "a side of 1 px": lambda size: min(size) == 1 < max(size),
    "1 x 1 px": lambda size: size == (1, 1),
    "a side of 20,000 px": lambda size: max(size) == MAX_SIDE_PX,
    "long strip": lambda size: size[0] > 1000 * size[1],
    "tall strip": lambda size: size[1] > 1000 * size[0],
    "nearly the largest area": lambda size: math.prod(size) > 0.9 * MAX_PIXELS,
    "whole units of 48 px": lambda size: size[0] % 48 == size[1] % 48 == 0 and size[0] != size[1],
}


@pytest.mark.parametrize("aim", AIMS)
def test_each_aim_is_reached(aim: str) -> None:
    """Every boundary that a family is named after is met within 5,000 sizes."""
    assert AIMS[aim](_found(sizes(), AIMS[aim]))


@settings(max_examples=500)
@given(sizes())
def test_sizes_stay_in_their_bounds(size: tuple[int, int]) -> None:
    """Sides are 1 to 20,000 px and the area is bounded, whatever the family."""
    assert min(size) >= 1
    assert max(size) <= MAX_SIDE_PX
    assert math.prod(size) <= MAX_PIXELS


def _expanded_part(case: Case) -> bool:
    return any(part.expanded for part in case.parts)


def _has_images(count: int, case: Case) -> bool:
    return len(case.images) == count


def _has_budget(budget: int, case: Case) -> bool:
    return case.max_soft_tokens == budget


CASE_AIMS: dict[str, Callable[[Case], bool]] = {
    **{f"{count} images": partial(_has_images, count) for count in range(MAX_IMAGES + 1)},
    **{f"budget {budget}": partial(_has_budget, budget) for budget in SOFT_TOKEN_BUDGETS},
    "media first": lambda case: case.parts[0].image is not None and len(case.parts) > 1,
    "media last": lambda case: case.parts[-1].image is not None and len(case.parts) > 1,
    "media alone": lambda case: len(case.parts) == 1 and case.parts[0].image is not None,
    "media adjacent": lambda case: any(a.image and b.image for a, b in zip(case.parts, case.parts[1:], strict=False)),
    "media repeated": lambda case: len(set(case.images)) < len(case.images),
    "expanded": _expanded_part,
    "bare": lambda case: bool(case.images) and not _expanded_part(case),
    "several expanded": lambda case: _expanded_part(case) and len(case.images) >= 3,
    "a turn": lambda case: case.form == "turn",
    "another model": lambda case: case.model == MODELS[1],
    "text beyond ASCII": lambda case: any(not part.text.isascii() for part in case.parts),
    "RGBA": lambda case: any(image.mode == "RGBA" for image in case.images),
    "one channel": lambda case: any(image.mode == "L" for image in case.images),
}


@pytest.mark.parametrize("aim", CASE_AIMS)
def test_each_kind_of_case_is_reached(aim: str) -> None:
    """Every count of images, position, form, budget and spelling of placeholders is met."""
    assert CASE_AIMS[aim](_found(cases(models=MODELS), CASE_AIMS[aim]))


@settings(max_examples=150)
@given(cases(models=MODELS))
def test_a_prompt_fits_the_context(case: Case) -> None:
    """Soft tokens stay at or below 1,120 (the bound is 1,500), and with a token a byte of text all fits 4,096.

    Budget times images is at most 1,120 (1 x 1,120, 2 x 560, 4 x 280), and no text is longer than 24 words.
    """
    soft = sum(soft_tokens(i.width_px, i.height_px, case.max_soft_tokens).contract for i in case.images)
    assert soft <= case.max_soft_tokens * len(case.images) <= 1_120 <= MAX_SOFT_TOKENS_PER_PROMPT
    text = sum(len(part.text.encode()) for part in case.parts)
    framing = 2 * len(case.images) + len("<bos>user\nmodel\n") + 4
    assert soft + text + framing <= CONTEXT_TOKENS // 2


@settings(max_examples=150)
@given(cases(models=MODELS))
def test_a_prompt_has_the_placeholders_of_its_images(case: Case) -> None:
    """Expanded, an image has one placeholder a soft token; bare, it has one; text holds none."""
    answers = [soft_tokens(i.width_px, i.height_px, case.max_soft_tokens).reference for i in case.images]
    assert render(case).count(IMAGE) == (sum(answers) if is_expanded(case) else len(answers))


def test_more_images_than_fit_do_not_pass_the_bound() -> None:
    """Asking for at least four images leaves out the budgets at which four do not fit."""

    def too_long(case: Case) -> bool:
        return case.max_soft_tokens * len(case.images) > MAX_SOFT_TOKENS_PER_PROMPT

    found = [case for case in generate(cases(models=MODELS, min_images=4), count=60, seed=0) if too_long(case)]
    assert not found


@settings(max_examples=100)
@given(st.data())
def test_bounds_on_images_hold(data: st.DataObject) -> None:
    """A case has at least `min_images` and at most `max_images`, repetition included."""
    least, most = sorted(data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    case = data.draw(cases(models=MODELS, min_images=least, max_images=most))
    assert least <= len(case.images) <= most


@pytest.mark.parametrize("bounds", [{"min_images": 2, "max_images": 1}, {"min_images": -1}, {"models": ()}])
def test_impossible_bounds_are_refused(bounds: dict[str, Any]) -> None:
    """Bounds that leave nothing raise when the strategy is drawn from, with what was given."""
    with pytest.raises(ValueError, match="nothing to draw"):
        _found(cases(**{"models": MODELS} | bounds), lambda _: True)


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
    module = importlib.import_module("harness.strategies.cases")
    draws: list[int] = []
    original = module._draw

    def counted(strategy: SearchStrategy[Case], seed: int) -> Case:
        draws.append(seed)
        drawn: Case = original(strategy, seed)
        return drawn

    monkeypatch.setattr(module, "_draw", counted)
    generate(cases(models=MODELS), count=60, seed=1)
    assert 60 <= len(draws) <= 72


def _shrunk(wanted: Callable[[Case], bool]) -> Case:
    return _found(cases(models=MODELS), wanted, Phase.generate, Phase.shrink)


def test_the_simplest_case_is_one_word() -> None:
    """With nothing required, one word remains: no image, budget 70, the first model, no turn."""
    assert _shrunk(lambda _: True) == Case(MODELS[0], (Part(text="The"),), 70)


def test_a_case_with_an_image_shrinks_to_one_pixel() -> None:
    """If only an image matters, one bare image of 1 x 1 px remains, and no text."""
    case = _shrunk(lambda case: bool(case.images))
    (part,) = case.parts
    assert (case.max_soft_tokens, case.form, part.text, part.expanded) == (70, "raw", "", False)
    assert part.image is not None
    assert (part.image.width_px, part.image.height_px, part.image.mode) == (1, 1, "RGB")


def _strip(size: tuple[int, int]) -> bool:
    return size[0] > 280 * size[1]


def test_a_strip_shrinks_to_one_pixel_and_within_an_octave() -> None:
    """If only the ratio matters, the thinnest strip remains, its length below twice the smallest that is wanted."""
    width_px, height_px = _found(sizes(), _strip, Phase.generate, Phase.shrink)
    assert height_px == 1
    assert 281 <= width_px < 2 * 281


def test_images_that_do_not_matter_are_shrunk_away() -> None:
    """If one image matters, the others go."""
    case = _shrunk(lambda case: any(_strip((image.width_px, image.height_px)) for image in case.images))
    assert len(case.images) == 1


@settings(max_examples=50)
@given(image_specs())
def test_image_specs_keep_the_bounds_of_sizes(spec: ImageSpec) -> None:
    """A whole spec keeps the bounds of its size and a seed of one byte."""
    assert spec.width_px * spec.height_px <= MAX_PIXELS
    assert 0 <= spec.seed <= 255
