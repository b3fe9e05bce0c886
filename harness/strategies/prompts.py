"""Texts and media in prompt order, bounded so that a prompt always fits the context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.render import has_rule
from harness.schema import Part, PromptForm, ToolUse
from harness.strategies.audio import audio_specs
from harness.strategies.images import image_specs
from harness.strategies.lengths import parts_tokens_at_most
from harness.strategies.mix import weighted
from harness.strategies.texts import perhaps_texts, texts
from harness.strategies.video import video_specs

MAX_IMAGES = 8
MOST: dict[str, int] = {"image": MAX_IMAGES, "audio": 4, "video": 2}
"""Media of a kind in one prompt; engines are started with these limits."""

MAX_SOFT_TOKENS_PER_PROMPT = 1_500
"""Of images together. A whole video has more, and is rare."""

Item = tuple[str, Part]
"""A text and the medium behind it: one element, so that shrinking can take both out."""


@cache
def media(abilities: frozenset[str]) -> SearchStrategy[Part]:
    """Mostly images; now and then a short recording or a few frames of video."""
    made = {
        "image": (16, st.builds(Part, image=image_specs())),
        "audio": (2, st.builds(Part, audio=audio_specs(8_000))),
        "video": (1, st.builds(Part, video=video_specs(short=True))),
    }
    return weighted(*(made[medium] for medium in made if medium in abilities))


@cache
def items(abilities: frozenset[str], most: int) -> SearchStrategy[list[Item]]:
    """Texts and media; few as a rule, up to `most` now and then."""
    if not {"image", "audio", "video"} & abilities:
        return st.just([])
    placed = st.tuples(perhaps_texts(), media(abilities))
    return weighted((7, st.lists(placed, max_size=min(4, most))), (1, st.lists(placed, max_size=most)))


def fitting(wanted: Iterable[Item], max_soft_tokens: int, tokens: int) -> list[Item]:
    """The items, from the first on, that stay within the bounds on tokens, on images and on media of a kind."""
    kept: list[Item] = []
    counts = Counter[str]()
    most = MOST | {"image": min(MAX_IMAGES, MAX_SOFT_TOKENS_PER_PROMPT // max_soft_tokens)}
    for text, part in wanted:
        cost = parts_tokens_at_most((Part(text=text), part), max_soft_tokens)
        if cost <= tokens and counts[str(part.medium)] < most[str(part.medium)]:
            kept.append((text, part))
            counts[str(part.medium)] += 1
            tokens -= cost
    return kept


def parts_of(placed: Iterable[Item], last: str) -> tuple[Part, ...]:
    """Items and a last text as parts; empty texts vanish, which puts media first, last or adjacent."""
    parts = [part for text, medium in placed for part in (Part(text=text), medium)]
    return tuple(part for part in (*parts, Part(text=last)) if part != Part())


def forms(abilities: Collection[str]) -> tuple[PromptForm, ...]:
    """Raw and a turn, twice as often as a chat, which needs a template."""
    return ("raw", "turn", "raw", "turn", "chat") if "chat" in abilities else ("raw", "turn")


@st.composite
def spellings(draw: DrawFn, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts with their placeholders bare, all expanded, or, rarely, one of several images expanded.

    A medium that no rule writes out leaves all of them bare.
    """
    places = [place for place, part in enumerate(parts) if part.medium]
    if not places or not all(has_rule(parts[place]) for place in places):
        return parts
    several_images = len(places) > 1 and all(parts[place].image for place in places)
    styles = ("bare",) * 12 + ("expanded",) * 3 + ("mixed",) * several_images
    style = draw(st.sampled_from(styles))
    chosen = {"bare": [], "expanded": places, "mixed": places[:1]}[style]
    return tuple(replace(part, expanded=place in chosen) for place, part in enumerate(parts))


@st.composite
def tools(draw: DrawFn) -> ToolUse:
    """A tool by a name of letters and underscores, called with a text, and its answer; both hold no special token."""
    name = draw(st.text("abcdefgh_", min_size=1, max_size=12))
    said = st.one_of(st.just("a"), texts().filter(lambda text: "<" not in text))
    return ToolUse(name, draw(said), draw(said))
