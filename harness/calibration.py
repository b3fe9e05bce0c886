"""What rounding does here: each subject twice, in a batch, in chunks; native beside itself in float64. Layer 3.

Calibration cases are generated as those of a run are, from a seed of their own. Each is given to the workers twice,
with a probe `batch` and with a probe `chunked`, so that every subject also runs it plainly twice. docs/verdicts.md says
what is made of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from harness.campaign import Campaign, Result
from harness.comparators import Limits, Side, noise
from harness.environments import Subject, resolve
from harness.schema import Case, Probe
from harness.strategies import cases, generate, probes_of, shortest_chunk
from harness.strategies.cases import EVERY_CASE

ROUNDING, ANCHOR = "native", "native-float64"
"""The subject whose rounding is measured, and the one by which: the same code in float64."""

FACTOR = 4.0
"""Two sides that are each sqrt(d) from the truth may be 2 sqrt(d), so 4 d, apart: KL is like a squared distance."""

SPARE = 8.0
"""How far beyond the floor a reduced type's limit lets one case be: it is one of thousands, not of twenty.

The largest KL of a case has a long tail: over 180 cases in bfloat16 it was up to 7 times that of six calibration cases.
"""

_CHUNK = 16
"""Tokens of a chunk; long prompts get longer ones."""

_SEED = 500_009
"""Between seeds of a run and of its calibration, which must not be the same inputs."""


def beside() -> list[Subject]:
    """The subjects that calibration needs beside those of a run."""
    return resolve((ROUNDING, ANCHOR))


@st.composite
def _with_batch(draw: DrawFn, model: str) -> Case:
    case = draw(cases(models=[model], properties=EVERY_CASE))
    return replace(case, probe=draw(probes_of("batch", case)))


def drawn(model: str, count: int, seed: int, known: Collection[str]) -> list[Case]:
    """Calibration cases of a model, each with probe `batch` and then with `chunked`. None has a known id."""
    found: list[Case] = []
    for case in generate(_with_batch(model), count=count, seed=seed + _SEED, known=known):
        chunked = replace(case, probe=Probe("chunked", max(_CHUNK - 1, shortest_chunk(case))))
        if chunked.id not in known:
            found += [case, chunked]
    return found


def key(case: Case) -> str:
    """What the rows of a calibration case are kept by: the id of the case without its probe."""
    return replace(case, probe=None).id


def before(run: Sequence[Case], calibrations: Mapping[str, Sequence[Case]]) -> Iterator[Case]:
    """The cases of a run, those that calibrate a model in front of its first."""
    waiting = dict(calibrations)
    for case in run:
        yield from waiting.pop(case.model, ())
        yield case


class Calibrator:
    """Makes rows of the table `noise` of results that come in pairs, and limits of the rows."""

    def __init__(self, campaign: Campaign, known: Iterable[Mapping[str, Any]] = ()) -> None:
        """Measure for a campaign, which gets limits from what is `known` already and from what is measured."""
        self.campaign, self.rows = campaign, list(known)
        self._first: Result | None = None
        self._limit()

    def take(self, result: Result) -> list[dict[str, Any]]:
        """The rows of a pair of results once its second is there."""
        if self._first is None:
            self._first = result
            return []
        first, self._first = self._first, None
        options = self.campaign.workers.options
        keys = {
            "case_id": key(first.case),
            "model": first.case.model,
            "dtype": options.dtype,
            "device": options.device,
        }
        made = [
            keys | {"subject": other.name, "kind": kind} | numbers
            for kind, one, other in _paired(first, result)
            if (numbers := noise.measured(one, other, self.campaign.context))
        ]
        self.rows += made
        self._limit()
        return made

    def _limit(self) -> None:
        for model, dtype in {(row["model"], row["dtype"]) for row in self.rows}:
            own = [row for row in self.rows if (row["model"], row["dtype"]) == (model, dtype)]
            if (measured := kl_limit(own, dtype)) is not None:
                self.campaign.kl_limits[model, dtype] = measured


def _paired(batch: Result, chunked: Result) -> Iterator[tuple[str, Side, Side]]:
    """What is laid side by side, by kind of noise: the truth or the plain run first."""
    plain, again = ({s.name: s for s in r.sides if not s.observation.probe} for r in (batch, chunked))
    probed = {"batch": batch, "chunked": chunked}
    by_probe = {kind: {s.name: s for s in r.sides if s.observation.probe} for kind, r in probed.items()}
    for name, side in plain.items():
        yield "repeat", side, again[name]
        yield "batch", side, by_probe["batch"][name]
        yield "chunked", again[name], by_probe["chunked"][name]
    every = {side.name: side for side in (*batch.beside, *batch.sides) if not side.observation.probe}
    if ROUNDING in every and ANCHOR in every:
        yield "anchor", every[ANCHOR], every[ROUNDING]


def sound(rows: Iterable[Mapping[str, Any]], dtype: str) -> list[Mapping[str, Any]]:
    """Rows that are noise. One beyond the limit of decision 0003 is a finding of P4 or P5, and no noise."""
    return [row for row in rows if row["kl_max"] <= Limits.of(dtype).kl_nats]


def kl_limit(rows: Sequence[Mapping[str, Any]], dtype: str) -> float | None:
    """The largest KL of a position that counts as agreement in a reduced type; None where nothing better is known.

    It is never above the limit of decision 0003, unless the floor is: then that limit would call noise a finding. In
    float32 that limit stays: it is a thousand times above noise, and below any fault that we know.
    """
    usable = sound(rows, dtype)
    if dtype == "float32" or not any(row["kind"] == "anchor" for row in usable):
        return None
    largest = max(float(row["kl_max"]) for row in usable)
    return min(SPARE * FACTOR * largest, max(FACTOR * largest, Limits.of(dtype).kl_nats))
