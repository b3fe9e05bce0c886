"""An explanation names the stage where a difference enters, and its page needs nothing and trusts nobody."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from harness.campaign import Result
from harness.comparators import Side
from harness.evidence import Evidence
from harness.explain import Explanation, explain
from harness.replay import Target, target, warm
from harness.schema import ROLES, Case, Counts, Finding, ImageSpec, Observation, Part, Probe, Verdict
from harness.store import plain
from harness.transplant import Graft, Transplant
from reports import explanation

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example/x.png> {{ 7*7 }}"
FINDING = Finding(
    "f", "P6/hidden/vllm", "P6", "hidden", ("hf", "vllm"), "vllm", "tiny-31b", "c", 4.0, 1e-5, "nats", HOSTILE
)
CASE = Case("tiny-31b", (Part(text=HOSTILE), Part(image=ImageSpec(3, 2))), 70)


def side(name: str, scale: float = 1.0, *, probe: bool = False, **arrays: Any) -> Side:
    """Arrays as an adapter records them, equal on both sides but for the rows of the image times `scale`."""
    recorded = {
        "prompt_ids": np.arange(4),
        "pixels.0": np.ones((9, 4), np.float32),
        "positions.0": np.zeros((9, 2), np.int64),
        "mm_features.0": np.full((1, 4), scale, np.float32),
        "hidden": np.full((4, 4), 1 + 10 * (scale - 1), np.float32),
        "logprobs": np.array([-1.0, -np.inf, -2.0], np.float32),
    }
    observation = Observation(CASE.id, name, "ok", counts=(Counts(1, 1, 70),), probe=probe)
    return Side(observation, recorded | arrays)


def explained(
    *sides: Side, verdicts: tuple[Verdict, ...] = (), case: Case = CASE, beside: tuple[Side, ...] = ()
) -> Explanation:
    arrays = {"kl/hf/vllm": np.array([0.0, 1e-3, 2.0, 4.0]), "roles": np.array([0, 2, 2, 5], np.int8)}
    observations = tuple(entry.observation for entry in sides)
    found = Result(case, observations, verdicts, (), {}, arrays, sides, beside)
    workers = SimpleNamespace(versions={})
    campaign: Any = SimpleNamespace(run=lambda _: iter([found]), workers=workers, context=None)
    return explain(Target("capsule.json", case, FINDING), campaign)


def test_the_first_stage_that_differs_is_named() -> None:
    """Inputs are equal, rows differ by 1 %, states by ten times that: `mm_features` is first, and growth is 10."""
    hidden = Verdict("P6", "hidden", "hf", "vllm", "differ", 4.0, 1e-5, "nats", "largest at 3")
    (pair,) = explained(side("hf"), side("vllm", 1.01), verdicts=(hidden,)).pairs
    rows = {row.stage: row for row in pair.stages}
    assert pair.first == "mm_features"
    assert list(rows) == ["prompt_ids", "counts", "pixels", "positions", "mm_features", "hidden", "logprobs"]
    assert rows["mm_features"].max_relative == pytest.approx(0.01, rel=1e-4)
    assert rows["hidden"].growth == pytest.approx(10, rel=1e-4)
    assert (rows["hidden"].measured, rows["hidden"].unit) == (4.0, "nats")
    assert rows["logprobs"].verdict == "agree"
    assert [(role.role, role.positions, role.largest) for role in pair.roles] == [
        (ROLES[0], 1, 0.0),
        (ROLES[2], 2, 2.0),
        (ROLES[5], 1, 4.0),
    ]


def test_equal_sides_have_no_first_stage() -> None:
    """Negative control: nothing differs, infinities on both sides included."""
    (pair,) = explained(side("hf"), side("vllm")).pairs
    assert pair.first == ""
    assert {row.verdict for row in pair.stages} == {"agree"}


def test_recordings_and_videos_have_their_stages() -> None:
    """Arrays of other media are compared where they are recorded; one that a side lacks differs and says so."""
    extra: dict[str, Any] = {"audio_input.0": np.ones((5, 8)), "audio_features.0": np.ones((2, 4))}
    louder = extra | {"audio_input.0": 2 * extra["audio_input.0"]}
    (pair,) = explained(side("hf", **extra), side("vllm", **louder)).pairs
    assert pair.first == "audio_input"
    (pair,) = explained(side("hf", **extra), side("vllm")).pairs
    assert "vllm has no audio_input.0" in {row.detail for row in pair.stages}


def test_what_runs_no_model_differs_nowhere_behind_its_processor() -> None:
    """A side without states lacks `logprobs`, which is not comparable; one with states has lost them, and differs."""
    alone, lost = side("sglang"), side("vllm")
    gone = {name: a for name, a in alone.arrays.items() if name not in ("hidden", "logprobs", "mm_features.0")}
    (pair,) = explained(side("hf"), Side(alone.observation, gone)).pairs
    assert pair.first == ""
    assert {row.stage for row in pair.stages if row.verdict == "not comparable"} == {
        "mm_features",
        "hidden",
        "logprobs",
    }
    (pair,) = explained(side("hf"), Side(lost.observation, gone | {"hidden": lost.arrays["hidden"]})).pairs
    assert pair.first == "mm_features"


def test_a_probe_is_compared_with_its_plain_run() -> None:
    """A prefix that was found in a cache has no states: the last positions of both are compared."""
    case = Case(CASE.model, CASE.parts, 70, probe=Probe("prefix_cache"))
    short = side("hf", probe=True, hidden=np.ones((2, 4), np.float32), logprobs=np.array([-2.0], np.float32))
    (pair,) = explained(side("hf"), short, case=case).pairs
    assert pair.first == ""


def _page(tmp_path: Path) -> str:
    result = explained(side("hf"), side("vllm", 1.01))
    document = plain({name: value for name, value in vars(result).items() if name != "arrays"})
    json.dumps(document, allow_nan=False)
    picture = Image.new("RGB", (3, 2))
    return explanation.build(document, result.arrays, [picture], tmp_path / "x" / "page.html").read_text()


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """One file: the picture, the figures and plotly are in it, and it may load nothing."""
    text = _page(tmp_path)
    own = text.replace(str(get_plotlyjs()), "")
    assert "default-src 'none'" in own
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", own)
    assert own.count('class="plot"') == 2
    assert "data:image/png;base64," in own
    assert "First beyond its limit: <b>mm_features</b>" in own


def test_noise_says_where_a_difference_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native's own distance from float64, times four, is what rounding explains: rows 1 % off are beyond it or not."""
    monkeypatch.setattr("harness.explain.distances", lambda *_: [])
    for rounding, enters in ((1e-4, "mm_features"), (0.004, "")):
        anchor = side("native-float64"), side("native", 1 + rounding)
        (pair,) = explained(side("hf"), side("vllm", 1.01), beside=anchor).pairs
        rows = {row.stage: row for row in pair.stages}
        assert rows["mm_features"].noise == pytest.approx(4 * rounding, rel=1e-3)
        assert pair.enters == enters
        assert pair.first == "mm_features", "its limit stays what it is"


def test_stages_inside_the_decoder_stand_between_features_and_states() -> None:
    """Layers stand in their order; a side that shows none of them makes them not comparable and loses nothing."""
    inside: dict[str, Any] = {f"layer.{k}": np.ones((4, 4), np.float32) for k in (0, 2, 10)}
    inside["merged_embeddings"] = np.ones((4, 4), np.float32)
    (pair,) = explained(side("hf", **inside), side("vllm", **inside | {"layer.2": 2 * inside["layer.2"]})).pairs
    stages = [row.stage for row in pair.stages]
    assert stages[-6:] == ["merged_embeddings", "layer.0", "layer.2", "layer.10", "hidden", "logprobs"]
    assert pair.first == "layer.2"
    (pair,) = explained(side("hf", **inside), side("vllm")).pairs
    assert {row.verdict for row in pair.stages if row.stage.startswith("layer.")} == {"not comparable"}


def test_the_page_shows_who_is_wrong_and_where_the_kl_enters(tmp_path: Path) -> None:
    """Evidence in words, escaped, and the share that each stage removes."""
    grafts = Graft("pixels", 4.4, 0.0, 0.0), Graft("mm_features", 0.1, 0.977, 0.977)
    evidence = Evidence("hf", (HOSTILE,), ())
    found = explained(side("hf"), side("vllm", 1.01))
    found = dataclasses.replace(found, evidence=evidence, transplants=(Transplant("vllm", 4.4, grafts),))
    document = plain({name: value for name, value in vars(found).items() if name != "arrays"})
    text = explanation.build(document, found.arrays, [], tmp_path / "page.html").read_text()
    assert "Who is wrong: hf" in text
    assert "97.7" in text
    assert "<script>alert(1)" not in text


def test_what_strangers_wrote_is_escaped(tmp_path: Path) -> None:
    """A prompt that holds a script is shown, not run."""
    text = _page(tmp_path)
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.engines
def test_a_missing_mask_enters_in_the_decoder() -> None:
    """vLLM on CPU ignores the image mask: all stages before `hidden` agree with hf."""
    entry = target(str(ROOT / "cases" / "regressions" / "vllm-cpu-ignores-vision-mask.json"), Path("none"))
    with warm([entry], ["hf", "vllm"]) as campaign:
        found = explain(entry, campaign)
    (pair,) = found.pairs
    assert (found.status, pair.first) == ("FAILED", "hidden")
    assert max(role.largest for role in pair.roles if role.role == "soft") > 1
