"""Families drawn with given weights. `st.one_of` drops repeated strategies, so repeating one there weighs nothing."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def weighted(*families: tuple[int, SearchStrategy[T]]) -> SearchStrategy[T]:
    """One of (weight, strategy) pairs; shrinks towards the first."""
    strategies = [strategy for _, strategy in families]
    chances = [number for number, (weight, _) in enumerate(families) for _ in range(weight)]
    return st.sampled_from(chances).flatmap(strategies.__getitem__)
