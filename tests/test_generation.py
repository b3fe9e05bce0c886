"""Stage `generation`: continuations are scored by every subject, never compared token against token."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from harness.checkpoint import Checkpoint
from harness.comparators import Comparison, Context, Limits
from harness.comparators.generation import Round, compare
from harness.comparators.kl import OutputHead
from harness.engines.base import Array, Rejected
from harness.engines.hf import HfEngine
from harness.engines.native import NativeEngine
from harness.generation import play
from harness.media import arrays as media_arrays
from harness.native import Gemma4
from harness.render import texts
from harness.schema import Case, Continuation, ImageSpec, Observation, Part, Request, Verdict, case_of, to_json
from harness.session import Plan, generated, locate
from harness.worker import Server

MODEL = "tiny-31b"
CASE = Case(MODEL, (Part(text="look"), Part(image=ImageSpec(60, 90)), Part(text=" what is this?")), 70)
AGREED = [Verdict("P6", "hidden", *pair, "agree") for pair in (("hf", "native"), ("hf", "other"), ("native", "other"))]

Subjects = dict[str, Any]


@pytest.fixture(name="engines", scope="module")
def _engines() -> Iterator[Subjects]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engines: Subjects = {"hf": HfEngine(), "native": NativeEngine(), "other": NativeEngine()}
    for engine in engines.values():
        engine.load(locate(MODEL), dtype="float32", device="cpu")
    yield engines
    torch.set_num_threads(threads)


@pytest.fixture(name="context", scope="module")
def _context() -> Context:
    checkpoint = Checkpoint.open(locate(MODEL))
    return Context(checkpoint.media_tokens, OutputHead.of(checkpoint), Limits.of("float32"))


def _played(engines: Subjects, directory: Path, seed: int | None, tokens: int = 5) -> list[Round]:
    """Rounds of real engines in this process, through the worker's own server."""
    case = replace(CASE, continuation=Continuation(tokens, seed))
    media = str(directory / "media")
    save_file(media_arrays(case.parts), media)
    request = Request(case, media_path=media, arrays_path=str(directory / "arrays"), **texts(case, ""))

    def ask(name: str, asked: Request) -> Future[Observation]:
        future: Future[Observation] = Future()
        future.set_result(Server(name, engines[name])._run(asked))
        return future

    return play(request, list(engines), ask)


def _judged(rounds: list[Round], context: Context, told: list[Verdict] | None = None) -> dict[tuple[str, ...], Verdict]:
    comparison = Comparison(verdicts=AGREED if told is None else told)
    return {(v.stage, v.left, v.right): v for v in compare(rounds, context, comparison)}


@pytest.mark.parametrize("seed", [None, 3])
def test_real_engines_agree_on_each_others_continuations(
    engines: Subjects, context: Context, tmp_path: Path, seed: int | None
) -> None:
    """Greedy or sampled, in one pass or token by token, hf and native agree on what each of them wrote."""
    rounds = _played(engines, tmp_path, seed)
    assert all(side.observation.outcome == "ok" for round_ in rounds for side in round_.sides)
    authors = [name for round_ in rounds if round_.way == "decode" for name in round_.authors]
    assert sorted(authors) == ["hf", "native", "other"]
    assert all(len(round_.tokens) == 5 for round_ in rounds if round_.way != "write")
    verdicts = _judged(rounds, context)
    assert len(verdicts) == 6
    assert {v.verdict for v in verdicts.values()} == {"agree"}
    assert all(v.measured is not None and v.measured < 1e-9 for v in verdicts.values())


def test_a_seed_draws_the_same_tokens_again_and_others_than_greedy(engines: Subjects, tmp_path: Path) -> None:
    """The native sampler is seeded: the same tokens twice, other tokens greedily; equal texts are scored once."""
    written = [
        {side.name: side.arrays["continuation"].tolist() for side in _played(engines, tmp_path, seed)[0].sides}
        for seed in (3, 3, None)
    ]
    assert written[0] == written[1] != written[2]
    assert written[0]["native"] == written[0]["other"] != written[2]["native"]
    assert len(_played(engines, tmp_path, None)) <= 1 + 2 * 2


def test_a_planted_fault_of_decoding_is_found(engines: Subjects, context: Context, tmp_path: Path) -> None:
    """Negative control: one subject that decodes wrongly differs in `decode` from both others, and in `prefill` not."""
    decode = Gemma4.decode

    def forgetful(model: Gemma4, token_ids: Any, cache: Any) -> torch.Tensor:
        return decode(model, token_ids, cache) * (0.97 if model is engines["other"].model else 1.0)

    with mock.patch.object(Gemma4, "decode", forgetful):
        verdicts = _judged(_played(engines, tmp_path, 3), context)
    assert {key for key, verdict in verdicts.items() if verdict.verdict == "differ"} == {
        ("generation.decode", "hf", "other"),
        ("generation.decode", "native", "other"),
    }


def test_a_pair_that_differs_in_the_prompt_is_not_judged_again(
    engines: Subjects, context: Context, tmp_path: Path
) -> None:
    """Without an agreement at `hidden` the continuation's verdict is `not comparable`, and counted."""
    verdicts = _judged(_played(engines, tmp_path, None, tokens=1), context, told=[])
    assert {v.verdict for v in verdicts.values()} == {"not comparable"}


class _Refusing(NativeEngine):
    def go_on(self, request: Request, arrays: Any) -> Any:
        if request.generate:
            raise Rejected("ValueError: no continuation today")
        raise RuntimeError("index 5 is out of bounds")


def test_who_dies_over_a_continuation_differs(engines: Subjects, context: Context, tmp_path: Path) -> None:
    """A subject that breaks where another scores is a finding; one that only refuses to write is counted."""
    broken = _Refusing()
    broken.model = engines["native"].model
    verdicts = _judged(_played({"hf": engines["hf"], "other": broken}, tmp_path, None, tokens=2), context)
    assert verdicts["generation.write", "other", "other"].verdict == "not comparable"
    assert verdicts["generation.decode", "hf", "other"].verdict == "differ"
    assert "out of bounds" in verdicts["generation.decode", "hf", "other"].reason


def test_a_subject_that_cannot_write_is_unavailable(tmp_path: Path) -> None:
    """An adapter without `go_on` says so, and is not run as if nothing had been asked."""

    class Silent:
        def versions(self) -> dict[str, str]:
            return {}

        def run(self, request: Request, arrays: dict[str, Array]) -> Any:
            raise AssertionError("asked for a plain run")

    request = Request(CASE, "look", "", str(tmp_path / "arrays"), generate=3)
    observation = Server("silent", Silent())._run(request)  # type: ignore[arg-type]
    assert (observation.outcome, observation.message) == ("unavailable", "this subject writes no continuation")


def test_a_continuation_is_part_of_a_case() -> None:
    """It survives the way to a worker, has an id of its own, and changes no id of a case without one."""
    import json

    case = replace(CASE, continuation=Continuation(4, 9))
    assert case_of(json.loads(to_json(case))) == case
    assert case.id != CASE.id
    drawn = [generated(Plan(models=(MODEL,), cases=4, properties=("P6",), continuation_tokens=n)) for n in (0, 3)]
    assert [replace(case, continuation=None).id for case in drawn[1]] == [case.id for case in drawn[0]]
    assert [case.continuation and case.continuation.seed for case in drawn[1]] == [None, 1, None, 3]
    assert np.all([case.continuation == Continuation(3, k if k % 2 else None) for k, case in enumerate(drawn[1])])
