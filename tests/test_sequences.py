"""P8, P10, P11, P12 and the probes: what agrees passes, and each small wrong shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.comparators import Context, Limits, Side, precision, probes, sequences, start_up
from harness.comparators.kl import OutputHead
from harness.schema import (
    AudioSpec,
    Case,
    Counts,
    LoadReport,
    Medium,
    Observation,
    OutcomeKind,
    Part,
    Probe,
    ProbeKind,
    Verdict,
    VideoSpec,
)
from harness.spec import MediaTokens, audio_tokens, shown_frames, timestamp, waveform_tokens

TOKENS = MediaTokens(boi=10, image=11, eoi=12, boa=13, audio=14, eoa=15, video=16)
WORDS = {20: "00:00", 21: "00:01", 22: " ", 10: "<|image>", 12: "<image|>"}


def read(ids: Sequence[int]) -> str:
    """The text of a made-up vocabulary."""
    return "".join(WORDS.get(token, "?") for token in ids)


CONTEXT = Context(
    TOKENS, OutputHead(torch.linspace(-1, 1, 64).reshape(16, 4), cap=None), Limits.of("float32"), read=read
)
VIDEO = Case("tiny", (Part(video=VideoSpec(2, 48, 48, fps=1.0, indices=(0, 1))),))
FRAMES = [2, 20, 22, 10, 16, 16, 12, 22, 21, 22, 10, 16, 16, 12]
AUDIO = Case("tiny", (Part(audio=AudioSpec(641)), Part(audio=AudioSpec(1281))))
RECORDINGS = [2, 13, 14, 15, 13, 14, 14, 15]


def side(ids: Sequence[int], counts: Sequence[int], medium: Medium, outcome: OutcomeKind = "ok") -> Side:
    """A subject that made these ids and counted so."""
    counted = tuple(Counts(count, count, 750, medium) for count in counts)
    return Side(Observation("case", "a", outcome, counts=counted), {"prompt_ids": np.array(ids)})


def judged(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Verdict by stage."""
    return {verdict.stage: verdict.verdict for verdict in verdicts}


def test_a_right_video_agrees() -> None:
    """Two frames of two tokens behind their times."""
    found = judged(list(sequences.check_video(VIDEO, side(FRAMES, [4], "video"), CONTEXT)))
    assert found == {"counts": "agree", "frames": "agree", "timestamps": "agree"}


@pytest.mark.parametrize(
    ("ids", "counts", "stage"),
    [
        (FRAMES, [5], "counts"),
        (FRAMES[:7], [2], "frames"),
        ([20 if token == 21 else token for token in FRAMES], [4], "timestamps"),
    ],
)
def test_a_wrong_video_is_seen(ids: list[int], counts: list[int], stage: str) -> None:
    """A count off by one, a missing frame, a time off by a frame."""
    assert judged(list(sequences.check_video(VIDEO, side(ids, counts, "video"), CONTEXT)))[stage] == "differ"


def test_right_recordings_agree() -> None:
    """641 and 1,281 samples are 1 and 2 tokens by the rule of the towers."""
    assert judged(list(sequences.check_audio(AUDIO, side(RECORDINGS, [1, 2], "audio"), CONTEXT))) == {"counts": "agree"}


@pytest.mark.parametrize(
    ("ids", "counts", "unified"),
    [(RECORDINGS, [2, 1], False), (RECORDINGS[:-3], [1, 2], False), (RECORDINGS, [1, 2], True)],
)
def test_wrong_recordings_are_seen(ids: list[int], counts: list[int], unified: bool) -> None:
    """Counts swapped, a token lost, the rule of the other kind of model."""
    context = replace(CONTEXT, unified=unified)
    assert judged(list(sequences.check_audio(AUDIO, side(ids, counts, "audio"), context))) == {"counts": "differ"}


@pytest.mark.parametrize("check", [sequences.check_audio, sequences.check_video])
def test_a_side_that_did_not_run_is_not_comparable(check: object) -> None:
    """Never absent, never in agreement."""
    assert callable(check)
    case = Case("tiny", (*VIDEO.parts, *AUDIO.parts))
    found = judged(list(check(case, side([], [], "audio", "crashed"), CONTEXT)))
    assert set(found.values()) == {"not comparable"}


def test_the_rules_by_hand() -> None:
    """Boundaries of both audio rules, of frame sampling and of times, written out."""
    assert [audio_tokens(n) for n in (0, 1, 160, 161, 640, 641, 800, 801, 480_000, 480_001, 10**9)] == [
        0, 0, 0, 1, 1, 1, 1, 2, 750, 750, 750,
    ]  # fmt: skip
    assert [waveform_tokens(n) for n in (0, 1, 640, 641)] == [0, 1, 1, 2]
    assert shown_frames(64, None) == list(range(0, 64, 2))
    assert shown_frames(3, (5, 9, 11)) == [5, 9, 11]
    assert [timestamp(*at) for at in ((23, None), (24, None), (90, 1.0), (7300, 2.0))] == [
        "00:00", "00:01", "01:30", "60:50",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="31 frames is too short"):
        shown_frames(31, None)


def run(name: str = "a", outcome: OutcomeKind = "ok", *, shift: float = 0.0, probe: bool = False) -> Side:
    """A subject with four hidden states; `shift` moves the last one."""
    hidden = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    hidden[3, 0] += shift
    arrays = {"prompt_ids": np.arange(4), "hidden": hidden, "processor_state": np.array([7], dtype=np.uint64)}
    return Side(Observation("case", name, outcome, message="why", probe=probe), arrays if outcome == "ok" else {})


def probed(kind: ProbeKind) -> Case:
    """A case with that probe."""
    return Case("tiny", (Part("a"),), probe=Probe(kind))


@pytest.mark.parametrize("kind", ["batch", "chunked", "decode", "repeat"])
def test_an_equal_probe_agrees_and_a_moved_one_differs(kind: ProbeKind) -> None:
    """A last hidden state that moved by a half is far outside the limit in float32."""
    assert set(judged(list(probes.check(probed(kind), run(), run(probe=True), CONTEXT))).values()) == {"agree"}
    found = judged(list(probes.check(probed(kind), run(), run(shift=0.5, probe=True), CONTEXT)))
    assert found[kind] == "differ"


def test_the_rest_behind_a_cached_prefix_is_compared_from_the_end() -> None:
    """A probe with the last two rows only agrees, and a moved last row still shows."""
    for shift, verdict in ((0.0, "agree"), (0.5, "differ")):
        whole = run(shift=shift, probe=True)
        rest = Side(whole.observation, {**whole.arrays, "hidden": whole.arrays["hidden"][2:]})
        assert judged(list(probes.check(probed("prefix_cache"), run(), rest, CONTEXT))) == {"prefix_cache": verdict}


def test_other_ids_by_a_probe_are_counted() -> None:
    """A chat that became other tokens differs before anything is computed with them."""
    other = run(probe=True)
    longer = Side(other.observation, {**other.arrays, "prompt_ids": np.arange(6)})
    (verdict,) = probes.check(probed("chat"), run(), longer, CONTEXT)
    assert (verdict.stage, verdict.verdict, verdict.measured) == ("prompt_ids.chat", "differ", 2)


def test_state_left_behind_is_seen() -> None:
    """A processor that changed while another prompt ran is a finding even where the numbers are the same."""
    other = run(probe=True)
    changed = Side(other.observation, {**other.arrays, "processor_state": np.array([8], dtype=np.uint64)})
    found = judged(list(probes.check(probed("repeat"), run(), changed, CONTEXT)))
    assert found == {"state.repeat": "differ", "repeat": "agree"}


@pytest.mark.parametrize(
    ("plain", "other", "verdict"),
    [("ok", "crashed", "differ"), ("ok", "rejected", "differ"), ("ok", "unavailable", "not comparable"),
     ("crashed", "crashed", "not comparable")],
)  # fmt: skip
def test_a_probe_that_dies_alone_is_a_finding(plain: OutcomeKind, other: OutcomeKind, verdict: str) -> None:
    """What a subject does not have is not comparable; what broke on the way is a finding."""
    found = judged(list(probes.check(probed("batch"), run(outcome=plain), run(outcome=other, probe=True), CONTEXT)))
    assert found == {"outcome.batch": verdict}


def test_loading_is_judged_by_what_is_wrong() -> None:
    """A missing tensor, a made-up one, and a refusal differ; a clean report agrees; unused tensors are no fault."""
    reports = {
        "clean": LoadReport(unused=("x",)),
        "missing": LoadReport(missing=("a",)),
        "invented": LoadReport(reinitialised=("b",)),
    }
    found = {v.left: v.verdict for v in start_up.check_loaded(reports, {"refused": "no such layer"})}
    assert found == {"clean": "agree", "missing": "differ", "invented": "differ", "refused": "differ"}


def test_what_has_no_weights_is_no_sound_load() -> None:
    """A subject that says why nothing can be said is `not comparable` with its words, whatever else it reports."""
    (verdict,) = start_up.check_loaded({"alone": LoadReport(unchecked=("no model runs",))}, {})
    assert (verdict.verdict, verdict.reason) == ("not comparable", "no model runs")


def test_a_tensor_that_one_engine_ignores_is_seen() -> None:
    """Both move: agree. One stays: differ. One cannot: not comparable."""
    plain = {"a": run("a"), "b": run("b")}
    both = [run("a", shift=1, probe=True), run("b", shift=1, probe=True)]
    assert [v.verdict for v in start_up.check_tensor(plain, both)] == ["agree"]
    assert [v.verdict for v in start_up.check_tensor(plain, [both[0], run("b", probe=True)])] == ["differ"]
    gone = run("b", "unavailable", probe=True)
    assert [v.verdict for v in start_up.check_tensor(plain, [both[0], gone])] == ["not comparable"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_seen(value: float) -> None:
    """One bad value of sixteen is a finding with its stage and count."""
    assert [v.verdict for v in precision.check(run())] == ["agree"]
    (verdict,) = precision.check(run(shift=value))
    assert (verdict.verdict, verdict.measured, verdict.reason) == ("differ", 1, "hidden has 1 of 16")
