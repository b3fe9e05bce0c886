"""Cases of a run: different ones, the same for the same seed, and of every asked property its share."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from harness.schema import Case, ModelType, Property
from harness.strategies.cases import EVERY_CASE, aims, cases

K = TypeVar("K")

_STEP = 1_000_003
_GOLDEN = 0.618_034
"""Steps by this part of a whole fall evenly, so that over many models each property gets its share of few cases."""

_ONE_TYPE = 8
"""Fewer cases than this of a model keep to one reduced type: engines load a checkpoint again for each."""


def generate(strategy: SearchStrategy[Case], *, count: int, seed: int, known: Collection[str] = ()) -> list[Case]:
    """`count` different cases, none with a known id; the same ones for the same seed and Hypothesis version.

    Each case is drawn by a run of its own, whose first example is always the simplest and is left out: a single
    long run would vary what it has drawn before, and a small campaign would try one idea many times.

    Raises:
        ValueError: the strategy has fewer different cases than asked for.
    """
    drawn: dict[str, Case] = {}
    for attempt in range(4 * count + 20):
        if len(drawn) == count:
            break
        case = _draw(strategy, seed * _STEP + attempt)
        if case.id not in known:
            drawn.setdefault(case.id, case)
    if len(drawn) < count:
        raise ValueError(f"asked for {count} different cases, but the strategy gave {len(drawn)}")
    return list(drawn.values())


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


def shares(count: int, weights: Mapping[K, int], start: float = 0.5) -> dict[K, int]:
    """`count` split in proportion to the weights, each share off by less than one.

    The shares are what `count` points catch that stand at even distances along the weights, the first of them at
    `start` of a distance: with another start, another key gets what is left over.
    """
    whole = sum(weights.values())
    split, passed, caught = {}, 0, 0
    for key, weight in weights.items():
        passed += weight
        before = caught
        caught = min(count, math.ceil(count * passed / whole - start))
        split[key] = caught - before
    return split


def stratified(model: str, properties: Collection[Property], *, count: int, seed: int) -> list[Case]:
    """`count` different cases of a model, each property that is aimed at getting its share; by compute type.

    Raises:
        ValueError: none of the properties applies to the model.
    """
    weights = aims(model, properties)
    if not weights:
        raise ValueError(f"none of {', '.join(properties)} applies to {model}")
    drawn: dict[str, Case] = {}
    for number, (prop, share) in enumerate(shares(count, weights, seed * _GOLDEN % 1).items()):
        # What is checked on every case is aimed at as one, under the first of its names.
        asked = [own for own in properties if own in EVERY_CASE] if prop in EVERY_CASE else [prop]
        strategy = cases(models=[model], properties=asked)
        found = generate(strategy, count=share, seed=seed * len(weights) + number, known=drawn.keys())
        if prop == "P12" and share < _ONE_TYPE:
            one: ModelType = "bfloat16" if seed % 2 else "float16"
            found = [replace(case, dtype=one) for case in found]
        drawn |= {case.id: case for case in found}
    # Sorting keeps the order within a type; a run then loads each checkpoint once a type.
    return sorted(drawn.values(), key=lambda case: case.dtype)
