"""Whole cases: each aims at one property, and every other property is checked on it as well.

A case carries at most one probe. Lengths are bounded so that a case always fits the context that the engines are
started with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.render import has_rule
from harness.schema import PROPERTIES, Case, ModelType, Part, ProbeKind, Property, SoftTokenBudget
from harness.strategies.audio import audio_specs, plain_recordings, ragged_pairs
from harness.strategies.images import image_specs, plain_images
from harness.strategies.lengths import PROMPT_TOKENS, USUAL_TOKENS, parts_tokens_at_most
from harness.strategies.mix import weighted
from harness.strategies.models import abilities, applies
from harness.strategies.probes import kinds, probes_of
from harness.strategies.prompts import (
    MAX_IMAGES,
    MAX_SOFT_TOKENS_PER_PROMPT,
    Item,
    fitting,
    forms,
    items,
    media,
    parts_of,
    spellings,
    tools,
)
from harness.strategies.texts import perhaps_texts, texts
from harness.strategies.video import two_rates, video_specs

EVERY_CASE: tuple[Property, ...] = ("P1", "P2", "P6", "P7")
"""Checked on whatever runs; their aim is a case without a probe, by the name of P1."""

WEIGHTS: dict[Property, int] = {
    "P1": 30, "P3": 9, "P4": 12, "P5": 24, "P8": 12, "P9": 17, "P10": 10, "P11": 34, "P12": 9,
}  # fmt: skip
"""How often each property is aimed at. P4, P5 and P9 have several kinds of probe, of which no subject has all, and P11
only some models; so that 3,840 cases over the zoo give each at least 200 comparisons a subject or pair."""

_REDUCED: tuple[ModelType, ...] = ("bfloat16", "float16")

# Large budgets cost seconds on a CPU, so they are drawn less often; every budget is drawn in any long run.
_BUDGETS: tuple[SoftTokenBudget, ...] = (70,) * 20 + (140,) * 8 + (280,) * 6 + (560, 1120)


def aims(model: str, properties: Collection[Property]) -> dict[Property, int]:
    """The properties that a model's cases aim at, with their weights; those of every case are aimed at together."""
    asked = [prop for prop in properties if applies(model, prop)]
    named = {"P1" if prop in EVERY_CASE else prop for prop in asked}
    return {prop: weight for prop, weight in WEIGHTS.items() if prop in named}


@st.composite
def cases(
    draw: DrawFn,
    *,
    models: Sequence[str],
    properties: Collection[Property] = tuple(PROPERTIES),
    min_images: int = 0,
) -> Case:
    """Cases that exercise one of the properties or more; shrinks to one word, no image, budget 70, no probe.

    Raises:
        ValueError: no model that a property applies to, or more images than fit any budget.
    """
    weights = {model: aims(model, properties) for model in models}
    able = [model for model in models if weights[model] and (not min_images or "image" in abilities(model))]
    budgets = [budget for budget in _BUDGETS if min_images * budget <= MAX_SOFT_TOKENS_PER_PROMPT]
    if not able or not budgets:
        raise ValueError(
            f"cases over models {list(models)} for {', '.join(properties)} with {min_images} images: nothing to draw"
        )
    model = draw(st.sampled_from(able), label="model")
    aim = draw(st.sampled_from([prop for prop, weight in weights[model].items() for _ in range(weight)]), label="aim")
    own = kinds([aim], model)
    kind = draw(st.sampled_from(own), label="kind of probe") if own else None
    needed = [Part(image=image) for image in draw(st.lists(image_specs(), min_size=min_images, max_size=min_images))]
    needed += draw(_needed(model, aim, kind, with_media=not {"P1", "P2", "P6"} & {*properties}), label="needed media")
    case = draw(_prompts(model, kind, needed, budgets), label="prompt")
    dtype: ModelType = draw(st.sampled_from(_REDUCED)) if aim == "P12" else ""
    probe = draw(probes_of(kind, case)) if kind else None
    return replace(case, dtype=dtype, probe=probe)


@st.composite
def _needed(draw: DrawFn, model: str, aim: Property, kind: ProbeKind | None, *, with_media: bool) -> list[Part]:
    """Media without which a case would not exercise what it aims at."""
    if aim == "P10":
        one = st.lists(video_specs(), min_size=1, max_size=1)
        return [Part(video=video) for video in draw(weighted((3, one), (1, two_rates())))]
    if aim == "P11":
        alone = st.lists(audio_specs(), min_size=1, max_size=1)
        return [Part(audio=audio) for audio in draw(weighted((3, alone), (1, ragged_pairs())))]
    if kind == "tensor":
        # Every tower must run, and on values that leave no weight without effect.
        towers = {"image": st.builds(Part, image=plain_images()), "audio": st.builds(Part, audio=plain_recordings())}
        return [draw(tower) for medium, tower in towers.items() if medium in abilities(model)]
    if kind in ("expanded", "processor_cache", "forward"):
        return [draw(_medium(model, kind))]
    return [draw(media(abilities(model)))] if aim == "P1" and with_media else []


def _medium(model: str, kind: ProbeKind) -> SearchStrategy[Part]:
    """A medium that a kind of probe is about: one that is written out, an image, a video."""
    image, video = st.builds(Part, image=image_specs()), st.builds(Part, video=video_specs(short=kind == "expanded"))
    if kind != "expanded":
        return video if kind == "forward" else image
    audio = st.builds(Part, audio=audio_specs()).filter(has_rule)
    return weighted((2, image), (1, video), *[(1, audio)] * ("audio" in abilities(model)))


@st.composite
def _prompts(
    draw: DrawFn,
    model: str,
    kind: ProbeKind | None,
    needed: Sequence[Part],
    budgets: Sequence[SoftTokenBudget],
) -> Case:
    """A case without its probe, in a form and with the media that a probe of this kind applies to."""
    has = abilities(model)
    budget = draw(st.sampled_from(budgets)) if kind != "tensor" else 70
    form = draw(st.sampled_from(forms(has))) if kind != "chat" else "chat"
    if kind == "expanded":
        form, has = draw(st.sampled_from(("raw", "turn"))), has - {"audio"}
    placed = draw(_placed(needed, has, budget)) if kind != "tensor" else [("", part) for part in needed]
    last = draw(perhaps_texts() if placed and (kind != "decode" or form != "raw") else texts())
    if not placed and kind is None:
        last = draw(st.sampled_from((last,) * 15 + ("",)))
    parts = parts_of(placed, last)
    system = draw(perhaps_texts()) if form != "raw" else ""
    tool = draw(st.sampled_from((False,) * 5 + (True,)), label="uses a tool") if form != "raw" else False
    case = Case(model, parts, budget, form, system, tool=draw(tools()) if tool else None)
    # A template writes bare placeholders, and these probes start from them.
    bare = form == "chat" or kind in ("ids", "expanded", "processor_cache", "tensor")
    return case if bare else replace(case, parts=draw(spellings(parts)))


@st.composite
def _placed(draw: DrawFn, needed: Sequence[Part], has: frozenset[str], budget: SoftTokenBudget) -> list[Item]:
    """Texts and media in prompt order: what is needed at any place among what is drawn freely."""
    rest = draw(items(has, MAX_IMAGES))
    repeated: bool = draw(st.booleans(), label="repeat the first medium")
    if rest and repeated:
        rest = [*rest, ("", rest[0][1])]
    wanted = [(draw(perhaps_texts()), part) for part in needed]
    kept = fitting([*wanted, *rest], budget, PROMPT_TOKENS)
    rest = kept[len(wanted) :]
    # Most prompts are short: otherwise half of a run goes to a tenth of its cases.
    room = draw(st.sampled_from((USUAL_TOKENS,) * 7 + (PROMPT_TOKENS,)))
    while rest and parts_tokens_at_most(parts_of([*kept[: len(wanted)], *rest], ""), budget) > room:
        rest.pop()
    for item in kept[: len(wanted)]:
        rest.insert(draw(st.integers(0, len(rest))), item)
    return rest
