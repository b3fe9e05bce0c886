"""Where a KL enters: stages of another engine are put into native, and what is left is measured. Layer 3.

    removed(stage) = 1 - KL(other || native with the other's stages up to this one) / KL(other || native)

KL is the mean over positions in nats. Stages are put in one upon another, in the order of the computation, so the
share grows from 0 to 1, and what it grows by at a stage is the share that enters there: a stage that both engines
compute alike adds nothing, whatever comes before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from safetensors.numpy import save_file

from harness.comparators import Context, Side, load_side
from harness.comparators.base import Array
from harness.comparators.kl import diverge
from harness.fleet import Fleet
from harness.schema import Case

NATIVE = "native"

PLANTED = ("pixels", "positions", "mm_features", "video_features", "audio_features", "merged_embeddings")
"""Stages that native can be given, before its layers and `hidden`, in the order of the computation."""


@dataclass(frozen=True)
class Graft:
    """One stage put into native: KL in nats that is left, the share that is gone, and the share that entered here."""

    stage: str
    kl_left: float
    removed: float
    enters: float


@dataclass(frozen=True)
class Transplant:
    """All stages of one subject, put into native. `kl` is KL(other || native) before, in nats, mean over positions."""

    other: str
    kl: float
    grafts: tuple[Graft, ...]

    @property
    def main(self) -> Graft | None:
        """The stage at which most of it enters."""
        return max(self.grafts, key=lambda graft: graft.enters, default=None)


def order(arrays: Mapping[str, Array]) -> list[str]:
    """The stages among recorded arrays that native can be given, in the order of the computation."""
    layers = sorted((name for name in arrays if name.startswith("layer.")), key=lambda name: int(name.split(".")[1]))
    named = {name.partition(".")[0] for name in arrays}
    return [*(stage for stage in PLANTED if stage in named), *layers, *(["hidden"] if "hidden" in arrays else [])]


def mean_kl(one: Side, other: Side, context: Context) -> float | None:
    """KL(one || other) in nats, mean over positions; None where their prompts or states cannot be laid side by side."""
    sides = one, other
    if any(side.observation.outcome != "ok" or "hidden" not in side.arrays for side in sides):
        return None
    ids, states = one.arrays["prompt_ids"], [side.arrays["hidden"] for side in sides]
    if not np.array_equal(ids, other.arrays["prompt_ids"]) or any(len(rows) != len(ids) for rows in states):
        return None
    return float(diverge(states, context.head, ("",) * len(ids))[0, 1].kl_left_right.mean())


def transplant(
    case: Case, other: Side, native: Side, workers: Fleet, context: Context, floor: float = 0.0
) -> Transplant | None:
    """Put each stage of `other` into native and measure; None where they are not comparable, or within `floor` nats."""
    whole = mean_kl(other, native, context)
    if whole is None or not np.isfinite(whole) or whole <= floor:
        return None
    request, grafts, given, before = workers.request(case), [], dict[str, Array](), 0.0
    path, arrays_path = (f"{request.arrays_path}.graft.{end}" for end in ("in", "out"))
    for stage in order(other.arrays):
        given |= _fitting(stage, other, native)
        if not any(name == stage or name.startswith(f"{stage}.") for name in given):
            continue
        save_file({name: np.ascontiguousarray(array) for name, array in given.items()}, path)
        asked = replace(request, grafts_path=path, arrays_path=arrays_path)
        left = mean_kl(other, load_side(workers.ask(NATIVE, asked).result()), context)
        if left is None:
            continue
        removed = 1 - left / whole
        grafts.append(Graft(stage, left, removed, removed - before))
        before = removed
    workers.discard(request)
    return Transplant(other.name, whole, tuple(grafts))


def _fitting(stage: str, other: Side, native: Side) -> dict[str, Array]:
    """The arrays of a stage that fit into native: those of the shape that it has itself."""
    names = [name for name in other.arrays if name == stage or name.partition(".")[0] == stage]
    shapes = {name: rows.shape for name, rows in native.arrays.items()}
    return {name: other.arrays[name] for name in names if shapes.get(name) == other.arrays[name].shape}


def all_of(
    case: Case, sides: Sequence[Side], native: Side, floor: float, workers: Fleet, context: Context
) -> list[Transplant]:
    """Every side put into native that is more than `floor` nats from it."""
    found = (transplant(case, side, native, workers, context, floor) for side in sides)
    return [entry for entry in found if entry is not None]
