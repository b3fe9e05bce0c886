"""What comparators are given and what they give back."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness.schema import Observation, Property, Verdict
from harness.spec import LayerRule, MediaTokens

if TYPE_CHECKING:
    from harness.comparators.kl import Divergence, OutputHead

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Side:
    """One subject's observation, its arrays in memory."""

    observation: Observation
    arrays: Mapping[str, Array]

    @property
    def name(self) -> str:
        """The subject's name."""
        return self.observation.subject


def load_side(observation: Observation) -> Side:
    """An observation with its arrays read back; none where the subject recorded none.

    One whose arrays are not there any more is `failed`: the subject wrote them.
    """
    try:
        return Side(observation, load_file(observation.arrays_path) if observation.arrays_path else {})
    except (OSError, SafetensorError, MemoryError) as error:
        message = f"cannot read its arrays: {type(error).__name__}: {error}"
        return Side(replace(observation, outcome="failed", message=message, counts=(), digests={}), {})


@dataclass(frozen=True)
class Limits:
    """The largest difference that still counts as agreement, by what is measured.

    Provisional until calibration measures each engine's own noise: docs/decisions/0003-limits.md says what these
    numbers rest on.
    """

    kl_nats: float
    logprob_nats: float
    feature_relative: float
    pixel_absolute: float
    audio_absolute: float = 0.002
    """Of log-mel frames: a window in float32 alone moves the logarithm of a quiet bin by 4e-4."""
    tie_nats: float = math.inf
    ties_every: int = 10
    """In a mixture of experts one position in so many may be off by up to so much: rounding chose another expert."""

    @classmethod
    def of(cls, dtype: str) -> Limits:
        """Limits for a compute type."""
        return _LIMITS[dtype]


_LIMITS = {
    "float32": Limits(
        kl_nats=1e-5, logprob_nats=1e-4, feature_relative=1e-5, pixel_absolute=0.0, tie_nats=0.05, ties_every=200
    ),
    # vLLM rounds pixels to the compute type: half a unit in the last place of [0.5, 1].
    "bfloat16": Limits(
        kl_nats=2.0, logprob_nats=0.25, feature_relative=0.06, pixel_absolute=2**-9, audio_absolute=0.03
    ),
    "float16": Limits(
        kl_nats=0.7, logprob_nats=0.032, feature_relative=0.004, pixel_absolute=2**-12, audio_absolute=0.005
    ),
}


@dataclass(frozen=True)
class Context:
    """What every comparison over one model shares."""

    tokens: MediaTokens
    head: OutputHead
    limits: Limits
    layers: tuple[LayerRule, ...] = ()
    unified: bool = False
    experts: bool = False
    read: Callable[[Sequence[int]], str] = str
    """Token ids -> the text that they stand for."""


@dataclass
class Comparison:
    """Everything found out about one case. Divergences are keyed by (left, right)."""

    verdicts: list[Verdict] = field(default_factory=list)
    divergences: dict[tuple[str, str], Divergence] = field(default_factory=dict)


def absent(prop: Property, stage: str, side: Side) -> Verdict:
    """What is said of a subject by itself that did not run: nothing, but counted."""
    return Verdict(prop, stage, side.name, side.name, "not comparable", reason=why(side))


OUR_FAILURE = "our comparator failed"
"""How the reason of a verdict starts that says so; the run is then told of loudly, with exit status 4."""


def guarded(
    prop: Property, stage: str, pairs: Iterable[tuple[str, str]], made: Callable[[], Iterable[Verdict]]
) -> list[Verdict]:
    """What a comparator says; where it raises, a verdict a pair that it could not, so that the campaign goes on."""
    try:
        return list(made())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return [Verdict(prop, stage, *pair, "not comparable", reason=f"{OUR_FAILURE}: {told}") for pair in pairs]


def is_ours(verdict: Verdict) -> bool:
    """Whether it says that a comparator of ours failed."""
    return verdict.reason.startswith(OUR_FAILURE)


def why(side: Side) -> str:
    """Why a subject has no result: in full where the harness failed, since no other verdict tells it."""
    told = f"{side.name} {side.observation.outcome}"
    return f"{told}: {side.observation.message}" if side.observation.outcome == "failed" else told


def lacking(prop: Property, stage: str, pair: tuple[str, str], *needed: tuple[Side, str]) -> Verdict | None:
    """What is said where a subject recorded no array of a stage that a comparison needs: which subject, which stage.

    An engine that never records it and one that lost it look the same here, so it is counted and its reason shown.
    """
    absent = [f"{side.name} recorded no {name}" for side, name in needed if name not in side.arrays]
    return Verdict(prop, stage, *pair, "not comparable", reason=", ".join(absent)) if absent else None


def judge(
    prop: Property, stage: str, pair: tuple[str, str], measured: float, limit: float, unit: str, reason: str = ""
) -> Verdict:
    """`differ` if `measured` exceeds `limit` or is not a number, else `agree`."""
    verdict: Verdict = Verdict(prop, stage, *pair, "agree", measured, limit, unit, reason)
    if measured <= limit:  # False for NaN, which must never pass.
        return verdict
    return Verdict(prop, stage, *pair, "differ", measured, limit, unit, reason)
