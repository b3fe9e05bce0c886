"""Examples of a strategy, for the tests of strategies: many at once, or one that is searched for."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")
MODELS = ("tiny-e2b", "tiny-31b")
"""One that hears and one that does not."""

STARTS = 4


def many(strategy: SearchStrategy[T], count: int) -> list[T]:
    """Many examples, of which a test then looks for each kind: one search for all is faster than one for each."""
    drawn: list[T] = []

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: T) -> None:
        drawn.append(example)

    collect()
    return drawn


def found(strategy: SearchStrategy[T], wanted: Callable[[T], bool], *phases: Phase) -> T:
    """An example that is wanted, among at most 5,000, with another start if there is none; the same one in every run.

    Hypothesis draws from the constants of all modules that are loaded too: a search that a change elsewhere sends
    another way may end on a hill beside the one that is looked for.
    """
    searching = settings(
        max_examples=5_000,
        database=None,
        deadline=None,
        phases=phases or (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    for start in range(STARTS - 1):
        with contextlib.suppress(NoSuchExample):
            return find(strategy, wanted, settings=searching, random=random.Random(start))
    return find(strategy, wanted, settings=searching, random=random.Random(STARTS - 1))
