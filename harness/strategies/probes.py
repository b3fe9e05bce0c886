"""The same input taken another way: which kinds apply to a case, and where they aim."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.render import has_rule
from harness.schema import PROBES, Case, Part, Probe, ProbeKind, Property
from harness.strategies.lengths import COMPANION_TOKENS, tokens_at_most
from harness.strategies.models import abilities
from harness.strategies.prompts import fitting, items, parts_of
from harness.strategies.texts import texts

MOST_CHUNKS = 100
"""A prompt of 3,000 tokens read one by one would take minutes: long prompts get longer chunks."""

_PLACES = 64


def kinds(properties: Collection[Property], model: str) -> tuple[ProbeKind, ...]:
    """Kinds of probe that check one of these properties and that some prompt of the model can be given."""
    needed = {"expanded": "image", "processor_cache": "image", "chat": "chat", "forward": "video"}
    has = abilities(model)
    return tuple(kind for kind, prop in PROBES.items() if prop in properties and needed.get(kind) in (None, *has))


def applies_to(kind: ProbeKind, case: Case) -> bool:
    """Whether a kind of probe has a meaning for a case.

    `expanded` needs media that the rules write out, outside a chat; `chat` a chat; `decode` a text behind the last
    medium; `forward` a video; `processor_cache` an image, whose budget changes. `ids`, `expanded` and `processor_cache`
    start from the bare prompt.
    """
    media = [part for part in case.parts if part.medium]
    bare = not any(part.expanded for part in media)
    if kind == "expanded":
        return bool(media) and bare and all(map(has_rule, media)) and case.form != "chat"
    if kind == "processor_cache":
        return bool(case.images) and bare
    if kind == "decode":
        return case.form != "raw" or not media or case.parts[-1].medium is None
    return {"chat": case.form == "chat", "ids": bare, "forward": bool(case.videos)}.get(kind, True)


def shortest_chunk(case: Case) -> int:
    """The smallest `at` of a probe `chunked` that a case can be given."""
    return min(tokens_at_most(case) // MOST_CHUNKS, _PLACES - 1)


def _places(case: Case) -> dict[ProbeKind, SearchStrategy[int]]:
    """What `at` is drawn from, by kind; the kinds that are not there have none."""
    shortest = shortest_chunk(case)
    return {
        "visibility": st.one_of(st.integers(0, 12), st.integers(0, 400)),
        "padding": st.one_of(st.integers(0, 3), st.integers(0, _PLACES - 1)),
        "chunked": st.one_of(st.integers(shortest, min(shortest + 8, _PLACES - 1)), st.integers(shortest, _PLACES - 1)),
        "decode": st.integers(0, 7),
        "tensor": st.integers(0, 2_047),
    }


@st.composite
def companions(draw: DrawFn, case: Case) -> tuple[Part, ...]:
    """Another, usually shorter prompt for the same batch, in the case's own budget."""
    last = draw(texts())
    room = COMPANION_TOKENS - len(last.encode())
    placed = draw(items(abilities(case.model), 2))
    return parts_of(fitting(placed, case.max_soft_tokens, room), last)


@st.composite
def probes_of(draw: DrawFn, kind: ProbeKind, case: Case) -> Probe:
    """Probes of one kind for a case; `repeat` is without a companion half of the time."""
    # An expanded prompt cannot be run again at another budget.
    alone = kind == "repeat" and not any(part.expanded for part in case.parts) and draw(st.booleans())
    if kind in ("batch", "batch_last", "repeat") and not alone:
        return Probe(kind, companion=draw(companions(case)))
    places = _places(case)
    return Probe(kind, draw(places[kind]) if kind in places else 0)


@st.composite
def probes(draw: DrawFn, case: Case, properties: Collection[Property] = tuple(PROBES.values())) -> Probe:
    """Probes of the kinds that check one of these properties and apply to the case.

    Raises:
        ValueError: no kind does.
    """
    fitting_kinds = [kind for kind in kinds(properties, case.model) if applies_to(kind, case)]
    if not fitting_kinds:
        raise ValueError(f"no probe of {', '.join(sorted(set(properties)))} applies to case {case.id}")
    return draw(probes_of(draw(st.sampled_from(fitting_kinds)), case))
