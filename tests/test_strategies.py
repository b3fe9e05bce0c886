"""Strategies reach what they aim at, stay in their bounds, and shrink to what a person wants to see."""

from __future__ import annotations

import importlib
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise, product
from typing import TypeVar, get_args

import pytest
from hypothesis import HealthCheck, Phase, find, given, seed, settings, target
from hypothesis import strategies as st
from hypothesis.internal.conjecture.data import Status
from hypothesis.strategies import SearchStrategy

from harness.checkpoint import Checkpoint
from harness.media import MAX_PIXELS, MAX_SAMPLES
from harness.render import has_rule, is_expanded, render
from harness.schema import (
    PROBES,
    PROPERTIES,
    AudioSpec,
    Case,
    ColourMode,
    ImageSpec,
    Part,
    ProbeKind,
    PromptForm,
    Property,
    VideoSpec,
)
from harness.session import PROFILES, Plan, generated, locate
from harness.spec import AUDIO, IMAGE, SOFT_TOKEN_BUDGETS, VIDEO, VIDEO_BUDGET, audio_tokens, soft_tokens
from harness.strategies import (
    aims,
    applies,
    applies_to,
    audio_specs,
    cases,
    generate,
    image_specs,
    probes,
    shares,
    sizes,
    stratified,
    video_specs,
)
from harness.strategies.audio import CAP_SAMPLES, LONGEST_SAMPLES, UNITS_SAMPLES
from harness.strategies.images import MAX_SIDE_PX, log_uniform_sides
from harness.strategies.lengths import CONTEXT_TOKENS, tokens_at_most
from harness.strategies.prompts import MAX_SOFT_TOKENS_PER_PROMPT, MOST
from harness.strategies.texts import SPECIAL_TOKENS
from harness.zoo import NAMES

T = TypeVar("T")
MODELS = ("tiny-e2b", "tiny-31b")
"""One that hears and one that does not."""

EVERY: tuple[Property, ...] = tuple(PROPERTIES)


def _many(strategy: SearchStrategy[T], count: int) -> list[T]:
    """Many examples, of which a test then looks for each kind: one search for all is faster than one for each."""
    drawn: list[T] = []

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: T) -> None:
        drawn.append(example)

    collect()
    return drawn


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


@pytest.fixture(name="many_sizes", scope="module")
def _many_sizes() -> list[tuple[int, int]]:
    return _many(sizes(), 5_000)


@pytest.mark.parametrize("aim", AIMS)
def test_each_aim_is_reached(aim: str, many_sizes: list[tuple[int, int]]) -> None:
    """Every boundary that a family is named after is met within 5,000 sizes."""
    assert any(map(AIMS[aim], many_sizes))


@settings(max_examples=500)
@given(sizes())
def test_sizes_stay_in_their_bounds(size: tuple[int, int]) -> None:
    """Sides are 1 to 20,000 px and the area is bounded, whatever the family."""
    assert min(size) >= 1
    assert max(size) <= MAX_SIDE_PX
    assert math.prod(size) <= MAX_PIXELS


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
    return _many(cases(models=MODELS), 4_000)


@pytest.mark.parametrize("aim", CASE_AIMS)
def test_each_kind_of_case_is_reached(aim: str, many_cases: list[Case]) -> None:
    """Every number and kind of media, position, form, budget, mode, spelling, probe and type is met."""
    assert any(map(CASE_AIMS[aim], many_cases))


AUDIO_AIMS: dict[str, Callable[[AudioSpec], bool]] = {
    **{
        f"{unit} samples x {count} {off:+d}": partial(lambda wanted, audio: audio.samples == wanted, count * unit + off)
        for unit in UNITS_SAMPLES
        for count in (1, 2)
        for off in (-1, 0, 1)
    },
    **{
        f"cap {off:+d}": partial(lambda wanted, audio: audio.samples == wanted, CAP_SAMPLES + off) for off in (-1, 0, 1)
    },
    "nothing": lambda audio: audio.samples == 0,
    "one sample": lambda audio: audio.samples == 1,
    "320 samples": lambda audio: audio.samples == 320,
    "another rate": lambda audio: audio.rate_hz == 44_100,
    "silence": lambda audio: audio.pattern == "silence" and audio.samples > 640,
}


@pytest.fixture(name="many_recordings", scope="module")
def _many_recordings() -> list[AudioSpec]:
    return _many(audio_specs(), 4_000)


@pytest.mark.parametrize("aim", AUDIO_AIMS)
def test_each_kind_of_recording_is_reached(aim: str, many_recordings: list[AudioSpec]) -> None:
    """Every boundary of the framing is met exactly, one below and one above."""
    assert any(map(AUDIO_AIMS[aim], many_recordings))


def _stamps(video: VideoSpec) -> list[float]:
    return [number / (video.fps or 24.0) for number in video.indices or ()]


VIDEO_AIMS: dict[str, Callable[[VideoSpec], bool]] = {
    "one frame": lambda video: video.frames == 1 and video.indices is not None,
    "a whole video of 32": lambda video: video.frames == 32 and video.indices is None,
    "a whole video of 64": lambda video: video.frames == 64 and video.indices is None,
    "one frame too few to sample": lambda video: video.frames == 31 and video.indices is None,
    "32 frames with numbers": lambda video: video.frames == 32 and video.indices is not None,
    "no rate": lambda video: video.fps is None,
    "a fraction": lambda video: video.fps is not None and video.fps % 1 > 0,
    "just before a minute": lambda video: any(59 <= stamp < 60 for stamp in _stamps(video)),
    "on the minute": lambda video: any(stamp == 60 for stamp in _stamps(video)),
    "past an hour": lambda video: any(stamp >= 3_600 for stamp in _stamps(video)),
    "numbers with gaps": lambda video: video.indices is not None and video.indices[-1] > video.frames,
    "upright": lambda video: video.height_px > 4 * video.width_px,
}


@pytest.fixture(name="many_videos", scope="module")
def _many_videos() -> list[VideoSpec]:
    return _many(video_specs(), 3_000)


@pytest.mark.parametrize("aim", VIDEO_AIMS)
def test_each_kind_of_video_is_reached(aim: str, many_videos: list[VideoSpec]) -> None:
    """Every count of frames that matters, rates, and timestamps at the edges of a minute are met."""
    assert any(map(VIDEO_AIMS[aim], many_videos))


@settings(max_examples=300)
@given(audio_specs(), video_specs())
def test_recordings_and_videos_stay_in_their_bounds(audio: AudioSpec, video: VideoSpec) -> None:
    """Samples, frames and pixels are bounded; frame numbers rise, one a frame."""
    assert 0 <= audio.samples <= min(LONGEST_SAMPLES, MAX_SAMPLES)
    assert 1 <= video.frames <= 64
    assert video.frames * video.width_px * video.height_px <= MAX_PIXELS
    assert video.fps is None or video.fps > 0
    if video.indices is not None:
        assert len(video.indices) == video.frames
        assert list(video.indices) == sorted(set(video.indices))
        assert video.indices[0] >= 0


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


def test_a_strip_shrinks_to_the_smallest_one() -> None:
    """If only the ratio matters, the smallest strip of all remains, to the pixel."""
    assert _found(sizes(), _strip, Phase.generate, Phase.shrink) == (281, 1)


@pytest.mark.parametrize("least_px", [2, 47, 701, 9_999])
def test_a_side_shrinks_to_the_smallest_one(least_px: int) -> None:
    """If only a side's length matters, the smallest that is wanted remains; in a family of its own, the next there."""
    shrunk = _found(log_uniform_sides(), lambda side_px: side_px >= least_px, Phase.generate, Phase.shrink)
    assert shrunk == least_px
    width_px, height_px = _found(sizes(), lambda size: size[0] >= least_px, Phase.generate, Phase.shrink)
    assert least_px <= width_px < 2 * least_px
    assert height_px <= 9


def test_other_media_shrink_to_small_ones() -> None:
    """A recording shrinks to the shortest that is wanted, a video to one frame of one pixel."""
    audio = _found(audio_specs(), lambda audio: audio.samples > 640, Phase.generate, Phase.shrink)
    assert audio == AudioSpec(641)
    video = _found(video_specs(), lambda video: video.fps is None, Phase.generate, Phase.shrink)
    assert video == VideoSpec(1, 1, 1, None, (0,))


@pytest.mark.parametrize("kind", PROBES)
def test_a_case_with_a_probe_shrinks_to_a_small_prompt(kind: ProbeKind) -> None:
    """If only the kind of probe matters, at most the media that it needs remain, and `at` is 0."""
    case = _shrunk(lambda case: _has_probe(kind, case))
    assert case.probe is not None
    assert case.probe.at == 0
    needed = {"expanded": 1, "forward": 1, "processor_cache": 1, "tensor": 2}
    assert len([part for part in case.parts if part.medium]) <= needed.get(kind, 0)
    assert sum(len(part.text) for part in case.parts) <= len("The")


def test_images_that_do_not_matter_are_shrunk_away() -> None:
    """If one image matters, the others go; now and then the shrinker stops at one more."""
    case = _shrunk(lambda case: any(_strip((image.width_px, image.height_px)) for image in case.images))
    assert len(case.images) <= 2


@settings(max_examples=50)
@given(image_specs())
def test_image_specs_keep_the_bounds_of_sizes(spec: ImageSpec) -> None:
    """A whole spec keeps the bounds of its size and a seed of one byte."""
    assert spec.width_px * spec.height_px <= MAX_PIXELS
    assert 0 <= spec.seed <= 255
