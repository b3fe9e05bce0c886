"""Prompts with images, as cases.

Prompts put media first, last, adjacent, repeated or nowhere, all placeholders bare or all expanded. Lengths
are bounded so that a case always fits the context that the engines are started with.
"""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.schema import Case, Part, SoftTokenBudget
from harness.strategies.images import image_specs

MAX_IMAGES = 4
MAX_SOFT_TOKENS_PER_PROMPT = 1_500

_WORDS = ("The", "image", "shows", "a", "red", "square", "and", "two", "cats", "near", "the", "sea", "in", "2026", "?")

# Large budgets cost seconds on a CPU, so they are drawn less often; every budget is drawn in any long run.
_BUDGETS: tuple[SoftTokenBudget, ...] = (70,) * 8 + (140,) * 5 + (280,) * 8 + (560,) * 2 + (1120,)


def texts() -> SearchStrategy[str]:
    """Text without special tokens: words, white space, any unicode; shrinks to a word."""
    words = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=24).map(" ".join)
    # "<" starts every special token of Gemma 4 and "|" ends one; what they do inside text is another property.
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="<>|")
    return st.one_of(words, words, st.text(characters, min_size=1, max_size=40))


@st.composite
def cases(draw: DrawFn, *, models: Sequence[str], min_images: int = 0, max_images: int = MAX_IMAGES) -> Case:
    """Cases over the given models; shrinks to one word, no image, budget 70.

    Raises:
        ValueError: no model, or image bounds that exclude everything.
    """
    budgets = [budget for budget in _BUDGETS if min_images * budget <= MAX_SOFT_TOKENS_PER_PROMPT]
    if not models or not budgets or not 0 <= min_images <= max_images:
        raise ValueError(f"cases over models {list(models)} with {min_images} to {max_images} images: nothing to draw")
    budget = draw(st.sampled_from(budgets), label="budget")
    most = min(max_images, MAX_SOFT_TOKENS_PER_PROMPT // budget)
    between = st.one_of(st.just(""), texts())
    # A text and the image behind it are one element, so that shrinking can take both out.
    placed = st.tuples(between, image_specs())
    items = draw(st.lists(placed, min_size=min_images, max_size=most), label="texts and images")
    repeated = draw(st.booleans(), label="repeat the first image")
    if items and repeated and len(items) < most:
        items = [*items, ("", items[0][1])]
    expanded = draw(st.sampled_from((False, False, False, True)), label="expanded") and bool(items)
    last = draw(between if items else texts(), label="last text")
    pieces = [Part(text=text) for text, _ in items], [Part(image=image, expanded=expanded) for _, image in items]
    parts = [part for pair in zip(*pieces, strict=True) for part in pair]
    return Case(
        model=draw(st.sampled_from(list(models)), label="model"),
        # Empty texts vanish, which puts media first, last or adjacent.
        parts=tuple(part for part in [*parts, Part(text=last)] if part != Part()),
        max_soft_tokens=budget,
        form=draw(st.sampled_from(("raw", "turn")), label="form"),
    )


def generate(strategy: SearchStrategy[Case], *, count: int, seed: int) -> list[Case]:
    """`count` different cases, the same ones for the same seed and Hypothesis version.

    Each case is drawn by a run of its own, whose first example is always the simplest and is left out: a single
    long run would vary what it has drawn before, and a small campaign would try one idea many times.

    Raises:
        ValueError: the strategy has fewer different cases than asked for.
    """
    drawn: dict[str, Case] = {}
    for attempt in range(4 * count + 20):
        case = _draw(strategy, seed * 1_000_003 + attempt)
        drawn.setdefault(case.id, case)
        if len(drawn) == count:
            return list(drawn.values())
    raise ValueError(f"asked for {count} different cases, but the strategy gave {len(drawn)}")


def _draw(strategy: SearchStrategy[Case], seed: int) -> Case:
    examples: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Case) -> None:
        examples.append(case)

    collect()
    return examples[-1]
