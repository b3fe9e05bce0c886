"""Examples of a strategy, for the tests of strategies: many at once, or one that is searched for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")
MODELS = ("tiny-e2b", "tiny-31b")
"""One that hears and one that does not."""


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
    """An example that is wanted, among at most 5,000; the same one in every run."""
    searching = settings(
        max_examples=5_000,
        database=None,
        deadline=None,
        phases=phases or (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    return find(strategy, wanted, settings=searching, random=random.Random(0))
