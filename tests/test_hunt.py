"""The shrinker finds the smallest case, is not steered by noise, and keeps what it has; replay judges what it can."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from harness import cli, suite
from harness.campaign import Result
from harness.environments import SUBJECTS, Subject
from harness.errors import UserError
from harness.fleet import Options
from harness.hunt import Search, Shrunk, Step, capsule_name, counts, keep, least_that_counts, subjects_needed
from harness.reductions import REDUCTIONS, size
from harness.replay import Target, replayed, same_finding
from harness.schema import (
    SCHEMA_VERSION,
    AudioSpec,
    Capsule,
    Case,
    Finding,
    ImageSpec,
    Observation,
    OutcomeKind,
    Part,
    Probe,
    Verdict,
    VideoSpec,
)
from harness.store import read_capsule, validated, write_json
from harness.strategies import cases

ROOT = Path(__file__).parent.parent
LIMIT = 1e-5
Measure = Callable[[Case], float]


def finding(measured: float | None, **other: Any) -> Finding:
    base = Finding(
        "f", "P6/hidden/vllm", "P6", "hidden", ("hf", "vllm"), "vllm", "tiny-31b", "c", measured, LIMIT, "nats", ""
    )
    return replace(base, **other)


def result(case: Case, *found: Finding, verdicts: tuple[Verdict, ...] = (), **outcomes: OutcomeKind) -> Result:
    observed = tuple(Observation(case.id, name, outcome, "why") for name, outcome in outcomes.items())
    return Result(case, observed, verdicts, found, {}, {})


class FakeCampaign:
    """Judges cases by a function, and answers as late as a campaign with cases in flight does."""

    def __init__(self, measure: Measure, deviation: Callable[[Case], str] = lambda _: "") -> None:
        """Give each case the measured value that the function says."""
        self.measure, self.deviation, self.ran = measure, deviation, 0
        self.workers = SimpleNamespace(described={}, options=Options())

    def run(self, wanted: Iterable[Case]) -> Iterator[Result]:
        """Results in order, two cases behind."""
        flying: deque[Case] = deque()
        for case in wanted:
            flying.append(case)
            if len(flying) >= 3:
                yield self._judged(flying.popleft())
        while flying:
            yield self._judged(flying.popleft())

    def _judged(self, case: Case) -> Result:
        self.ran += 1
        measured = self.measure(case)
        found = finding(measured, case_id=case.id, deviation=self.deviation(case))
        return result(case, *([found] if not measured <= LIMIT else []), hf="ok", vllm="ok")


LARGE = Case(
    "tiny-31b",
    (
        Part(text="The image shows a red square"),
        Part(image=ImageSpec(1_234, 777, "RGBA", "noise", 17, 6)),
        Part(text="and two xylophones near the sea"),
        Part(image=ImageSpec(640, 480, "L", "checker", 3)),
    ),
    560,
    form="turn",
    system="Be brief.",
)


def search(measure: Measure, case: Case = LARGE, *, given: Finding | None = None, **options: Any) -> Shrunk:
    campaign: Any = FakeCampaign(measure)
    return Search(campaign, Target("large", case, given), **options).run()


def wide_image_and_x(case: Case) -> float:
    """A made-up bug: an image more than 100 px wide, and an x in the text."""
    return 5.0 * any(i.width_px > 100 for i in case.images) * any("x" in part.text for part in case.parts)


def test_the_smallest_case_is_found() -> None:
    """From a large case to exactly what the bug needs, the width to a pixel and the text to a letter."""
    shrunk = search(wide_image_and_x)
    case = shrunk.capsule.case
    assert sorted(part.text for part in case.parts) == ["", "x"]
    assert [(i.width_px, i.height_px, i.mode, i.seed, i.orientation) for i in case.images] == [(101, 1, "RGB", 0, 1)]
    assert (case.max_soft_tokens, case.form, case.system) == (70, "raw", "")
    assert shrunk.capsule.finding.case_id == case.id
    assert shrunk.tried < 200


def test_a_shrunk_case_shrinks_no_further() -> None:
    """What a search ends with is a fixed point: a second search accepts nothing."""
    case = search(wide_image_and_x).capsule.case
    assert search(wide_image_and_x, case).accepted == 0


MEDIA = Case(
    "tiny-31b",
    (
        Part(audio=AudioSpec(16_001, 8_000, "chirp", 5)),
        Part(text="hear"),
        Part(video=VideoSpec(17, 96, 48, 30.0, tuple(range(17)), "noise", 4)),
    ),
    form="chat",
    probe=Probe("batch", 77, (Part(text="other words"), Part(image=ImageSpec(99, 98)))),
)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda case: 5.0 * (sum(a.samples for a in case.audios) > 5_000), [Part(audio=AudioSpec(5_001, 16_000))]),
        (lambda case: 5.0 * (sum(v.frames for v in case.videos) > 2), [Part(video=VideoSpec(3, 1, 1))]),
    ],
    ids=["audio", "video"],
)
def test_recordings_and_videos_shrink(measure: Measure, expected: list[Part]) -> None:
    """Samples and frames come down to what is needed; looks and the probe go."""
    case = search(measure, MEDIA).capsule.case
    plain = [replace(part, audio=part.audio and replace(part.audio, pattern="noise")) for part in case.parts]
    plain = [replace(part, video=part.video and replace(part.video, pattern="gradient")) for part in plain]
    assert plain == expected
    assert case.probe is None


def test_what_a_probe_needs_stays() -> None:
    """A finding of a probe keeps the probe; its companion and number come down."""
    needs = search(lambda case: 5.0 * (case.probe is not None and len(case.probe.companion) > 0), MEDIA)
    probe = needs.capsule.case.probe
    assert probe is not None
    assert (probe.at, len(probe.companion)) == (0, 1)


def test_noise_near_the_limit_does_not_steer() -> None:
    """Smaller cases that are above the limit by less than its double are passed over; ones that are clear count."""
    kept = search(lambda case: 1.0 if len(case.images) == 2 else 1.5 * LIMIT).capsule.case
    assert len(kept.images) == 2
    kept = search(lambda case: 1.0 if len(case.images) == 2 else 2.5 * LIMIT).capsule.case
    assert len(kept.images) < 2


@pytest.mark.parametrize(
    ("measured", "limit", "least"),
    [(5.0, 1e-5, 2e-5), (1.2e-5, 1e-5, 1.1e-5), (7.0, 0.0, 0.0), (1.0, None, 0.0), (None, 1e-5, None)],
)
def test_what_counts_is_clear_of_the_limit(measured: float | None, limit: float | None, least: float | None) -> None:
    """Twice the limit, or half of the excess where that is less; anything where the limit is exact equality."""
    assert least_that_counts(finding(measured, limit=limit)) == pytest.approx(least)


def test_what_is_no_number_stays_none() -> None:
    """A NaN is not shrunk into a small difference, and a difference not into a NaN."""
    assert least_that_counts(finding(float("nan"))) is None
    assert counts(finding(float("inf")), None)
    assert not counts(finding(3.0), None)
    assert not counts(finding(None), 2e-5)


def test_chance_gives_way() -> None:
    """A smaller case that showed the finding once and not again is not kept."""
    seen: set[str] = set()

    def measure(case: Case) -> float:
        first = case.id not in seen
        seen.add(case.id)
        return 5.0 if len(case.images) == 2 or first else 0.0

    assert len(search(measure).capsule.case.images) == 2


def test_another_cause_is_another_finding() -> None:
    """An unexplained finding is not shrunk into a known deviation of the same signature."""
    campaign: Any = FakeCampaign(lambda _: 5.0, lambda case: "" if len(case.images) == 2 else "known")
    assert len(Search(campaign, Target("large", LARGE)).run().capsule.case.images) == 2


def test_ctrl_c_keeps_the_best_so_far() -> None:
    """Stopped in the middle, a search gives what it has and says so."""

    def watch(step: Step) -> None:
        if step.accepted == 2:
            raise KeyboardInterrupt

    shrunk = search(wide_image_and_x, watch=watch)
    assert (shrunk.accepted, shrunk.interrupted) == (2, True)
    assert size(shrunk.capsule.case) < size(LARGE)


def test_the_time_limit_ends_a_search() -> None:
    """No further case is tried after the limit; the result says that it was one."""
    shrunk = search(wide_image_and_x, timeout_s=0.0)
    assert (shrunk.tried, shrunk.accepted, shrunk.why) == (1, 0, "stopped after 0 s")


def test_nothing_to_shrink_is_said() -> None:
    """A finding that is not there cannot be shrunk."""
    with pytest.raises(UserError, match="large does not have finding P6/hidden/vllm here"):
        search(lambda _: 0.0, given=finding(5.0))


def test_one_subject_is_enough_for_what_it_does_alone() -> None:
    """A subject that differs from itself is run alone; a pair needs the others for their votes."""
    three = ("hf", "vllm", "native")
    assert subjects_needed(finding(7.0, subjects=("reference",)), three) == ("native",)
    assert subjects_needed(finding(1.0, subjects=("vllm",)), three) == ("vllm",)
    assert subjects_needed(finding(1.0), three) == three
    assert subjects_needed(None, three) == three


def test_a_smaller_capsule_is_not_replaced(tmp_path: Path) -> None:
    """The name says signature and model; a capsule of that name stays unless the new one is smaller."""
    small = search(wide_image_and_x)
    large = replace(small, capsule=replace(small.capsule, case=LARGE))
    path, written = keep(large, tmp_path)
    assert (path.name, written) == ("P6-hidden-vllm-tiny-31b.json", True)
    assert keep(small, tmp_path) == (path, True)
    assert keep(large, tmp_path) == (path, False)
    assert read_capsule(path).case == small.capsule.case


def test_names_of_capsules_are_file_names() -> None:
    """Whatever an engine's error says, no path comes of it."""
    name = capsule_name(finding(None, signature="P1/outcome/vllm/../../etc: 'x' \n#", model="/some/where/tiny"))
    assert "/" not in name
    assert name[0].isalnum()


@settings(max_examples=40, deadline=None)
@given(st.one_of(cases(models=["tiny-31b"]), st.just(MEDIA)))
def test_reductions_are_valid_cases(case: Case) -> None:
    """Each is a case that a capsule can hold, with something in it, and none grows on the way to be tried."""
    for reduction in REDUCTIONS:
        for smaller in reduction(case):
            assert validated(Case, json.dumps(asdict(smaller)), "a reduction") == smaller
            assert smaller.parts
            assert all(min(i.width_px, i.height_px) >= 1 for i in smaller.images)


def verdict(kind: Any, left: str = "hf", right: str = "vllm") -> Verdict:
    return Verdict("P6", "hidden", left, right, kind, reason="prompt ids differ")


@pytest.mark.parametrize(
    ("again", "status"),
    [
        (result(LARGE, finding(3.0), hf="ok", vllm="ok"), "FAILED"),
        (result(LARGE, verdicts=(verdict("agree"),), hf="ok", vllm="ok"), "FIXED"),
        (result(LARGE, verdicts=(verdict("not comparable"),), hf="ok", vllm="ok"), "NOT COMPARABLE"),
        (result(LARGE, verdicts=(verdict("agree", "hf", "native"),), hf="ok", native="ok"), "NOT COMPARABLE"),
        (result(LARGE, verdicts=(verdict("agree"),), hf="ok", vllm="unavailable"), "NOT COMPARABLE"),
        (result(LARGE, hf="ok", vllm="ok"), "NOT COMPARABLE"),
    ],
)
def test_a_finding_is_fixed_only_if_its_suspect_ran(again: Result, status: str) -> None:
    """A suspect that was left out, could not run or could not be compared proves nothing."""
    assert replayed(Target("x", LARGE, finding(5.0)), again).status == status


def test_votes_without_a_subject_are_other_votes() -> None:
    """With a voter absent, the same stage between some of the finding's subjects is the same finding."""
    split = finding(5.0, signature="P6/hidden/hf+vllm+native", subjects=("hf", "vllm", "native"), suspect="undecided")
    pair = finding(5.0, signature="P6/hidden/hf+vllm", suspect="undecided")
    assert same_finding(split, [pair], absent=["native"]) == pair
    assert same_finding(split, [pair]) is None


def capsule(text: str, dtype: str = "float32") -> Capsule:
    words = "tests.fake_engine:FakeEngine crashed: RuntimeError: index # is out of bounds at ADDR in PATH"
    signature = f"P1/outcome/fake/{words}"
    crash = finding(None, signature=signature, property="P1", stage="outcome", subjects=("fake",), suspect="fake")
    return Capsule(SCHEMA_VERSION, crash, Case("tiny-31b", (Part(text=text),)), {}, dtype, "cpu")


@pytest.fixture(name="call")
def _call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, with a subject `fake`."""
    fake = Subject("fake", "tests.fake_engine:FakeEngine", sys.executable, {"PYTHONPATH": str(ROOT)})
    monkeypatch.setitem(SUBJECTS, "fake", fake)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_capsules_of_several_dtypes_and_a_corrupted_file(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """Each is run in its own dtype; a file that is none is named, and the others run."""
    write_json(tmp_path / "a.json", capsule("raise"))
    write_json(tmp_path / "b.json", capsule("raise too", "bfloat16"))
    write_json(tmp_path / "good.json", capsule("fine"))
    (tmp_path / "bad.json").write_text("{")
    names = [str(tmp_path / f"{name}.json") for name in ("bad", "a", "b", "good")]
    status, printed, errors = call("replay", *names, "--subjects", "fake", "--json")
    by_name = {Path(entry["name"]).stem: entry["status"] for entry in json.loads(printed)}
    assert by_name == {"a": "FAILED", "b": "FAILED", "good": "FIXED", "bad": "UNREADABLE"}
    assert status == 1
    assert "bad.json is no valid capsule" in errors
    assert call("replay", *names[::3], "--subjects", "fake")[0] == 2
    assert call("replay", names[3], "--subjects", "fake")[0] == 0


def test_shrink_writes_a_capsule_that_replays(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """The command ends with a capsule and the command that replays it; the crash needs one word."""
    write_json(tmp_path / "long.json", capsule("it will raise when asked to"))
    out = tmp_path / "out"
    status, printed, _ = call("shrink", str(tmp_path / "long.json"), "--subjects", "fake", "--out", str(out))
    (path,) = out.glob("*.json")
    assert status == 0
    assert f"harness replay {path}" in printed
    assert read_capsule(path).case.parts == (Part(text="raise"),)
    assert call("replay", str(path), "--subjects", "fake")[0] == 1


@pytest.mark.usefixtures("call")
def test_a_failing_test_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of the suite ends in commands, and the capsule that they name is there and has the case."""
    monkeypatch.setattr(suite, "FAILURES", tmp_path / "failures")
    warm_suite = suite.Suite(["fake"], Options())
    try:
        examined = warm_suite.examine(capsule("raise").case)
        with pytest.raises(AssertionError) as failed:
            warm_suite.require(examined, "P1")
    finally:
        warm_suite.close()
    (path,) = (tmp_path / "failures").glob("*.json")
    for command in ("replay", "shrink", "explain"):
        assert f"harness {command} {path}" in str(failed.value)
    assert read_capsule(path).case == examined.case


def test_examples_of_another_machine_are_read_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CI found is tried here; what is found here stays here."""
    monkeypatch.setattr(suite, "EXAMPLES", tmp_path / "own")
    DirectoryBasedExampleDatabase(tmp_path / "shared").save(b"test", b"from CI")
    database = suite.example_database(str(tmp_path / "shared"))
    database.save(b"test", b"from here")
    assert set(database.fetch(b"test")) == {b"from CI", b"from here"}
    assert set(DirectoryBasedExampleDatabase(tmp_path / "shared").fetch(b"test")) == {b"from CI"}


@pytest.mark.engines
def test_a_grown_capsule_shrinks_back(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """A real finding of vLLM, with text, noise and a turn around it, comes down to one image again."""
    known = read_capsule(ROOT / "cases" / "regressions" / "vllm-drops-a-feature-row.json")
    parts = (Part(text="The image shows"), *known.case.parts, Part(text="near the sea"))
    write_json(tmp_path / "grown.json", replace(known, case=replace(known.case, parts=parts, form="turn")))
    status, _, _ = call("shrink", str(tmp_path / "grown.json"), "--out", str(tmp_path))
    case = read_capsule(tmp_path / "P2-counts-vllm-tiny-e2b.json").case
    assert status == 0
    assert size(case) <= size(known.case)
