"""What is run again is what was run: the run's types and subjects, a suspect's stand-in, a checkpoint elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from harness.bounds import RANGES
from harness.campaign import Result
from harness.cli_capsule import _readable
from harness.errors import UserError
from harness.export import issue
from harness.media import MAX_PIXELS
from harness.replay import measured_limit, not_asked, replayed, target, with_models, with_suspect
from harness.schema import (
    SCHEMA_VERSION,
    AudioSpec,
    Capsule,
    Case,
    Continuation,
    Finding,
    ImageSpec,
    Observation,
    Part,
    Probe,
    ToolUse,
    VideoSpec,
)
from harness.session import Plan, locate
from harness.store import RunStore, read_capsule, write_json
from harness.wording import in_words

IMAGE = ImageSpec(64, 48)
CASE = Case("tiny-e2b", (Part("a"), Part(image=IMAGE)))
FINDING = Finding("id", "P6/hidden/hf", "P6", "hidden", ("hf", "vllm"), "hf", "tiny-e2b", CASE.id, 1.0, 0.1, "nats", "")


def capsule(path: Path, case: Case = CASE, /, **changes: Any) -> Path:
    ran = {name: {"engine": name} for name in ("hf", "vllm", "native")}
    write_json(path, replace(Capsule(SCHEMA_VERSION, FINDING, case, ran, "bfloat16", "cpu"), **changes))
    return path


def test_a_case_of_a_run_is_run_as_it_was(tmp_path: Path) -> None:
    """By its id a case has the compute type, the device, the subjects and the limit of the run that it was in."""
    plan = Plan(subjects=("native", "hf@5.17.0"), dtype="bfloat16", device="cuda")
    run = RunStore.create(tmp_path, {"plan": plan}, [CASE])
    judged = {"case_id": CASE.id, "model": CASE.model, "property": "P6", "stage": "hidden", "limit": 0.125}
    run.append({"verdicts": [judged, judged | {"stage": "logprobs", "limit": 1e-9}]})
    entry = target(CASE.id, tmp_path)
    assert (entry.case, entry.dtype, entry.device) == (CASE, "bfloat16", "cuda")
    assert entry.subjects == ("native", "hf@5.17.0")
    assert measured_limit(entry) == {("tiny-e2b", "bfloat16"): 0.125}


def test_a_subject_that_is_not_known_here_is_named(tmp_path: Path) -> None:
    """A case whose run had a subject that is none here is not clean for want of it, unless others were asked for."""
    RunStore.create(tmp_path, {"plan": Plan(subjects=("native", "my-hf"))}, [CASE])
    entry = target(CASE.id, tmp_path)
    assert (entry.subjects, entry.unknown) == (("native",), ("my-hf",))
    clean = Result(CASE, (Observation(CASE.id, "native", "ok"),), (), (), {}, {})
    answer = replayed(entry, clean)
    assert (answer.status, answer.failed) == ("NOT COMPARABLE", True)
    assert answer.detail.startswith("my-hf ran it and is no subject here")
    assert replayed(replace(entry, unknown=()), clean).status == "NO FINDING"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "no valid capsule"),
        ({"schema": "9"}, "schema 9, newer"),
        ({"signature": "x"}, r"finding\.signature 'x': must be PROPERTY/STAGE/SUSPECT"),
        ({"limit": -5.0}, r"finding\.limit -5\.0: must not be negative"),
        ({"id": "../x"}, r"finding\.id '\.\./x'"),
    ],
    ids=["nested", "a version as text", "no signature", "a negative limit", "an id that is a path"],
)
def test_a_capsule_that_makes_no_sense_is_one_line(tmp_path: Path, text: Any, words: str) -> None:
    """Whatever a stranger writes into a capsule is named in one line, and keeps no other from running."""
    path = capsule(tmp_path / "bad.json")
    if isinstance(text, dict):
        whole = json.loads(path.read_text())
        whole |= text if "schema" in text else {"finding": whole["finding"] | text}
        text = json.dumps(whole)
    path.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        read_capsule(path)
    assert len(str(refused.value).splitlines()) == 1
    good = capsule(tmp_path / "good.json")
    assert [entry.name for entry in _readable([str(path), str(good)], tmp_path, "", None)[0]] == [str(good)]


def test_a_newer_capsule_is_told_so_before_its_fields(tmp_path: Path) -> None:
    """A capsule of a schema that is newer has fields that we do not know: that it is newer is what helps."""
    path = capsule(tmp_path / "new.json")
    for schema, words in ((SCHEMA_VERSION + 1, "newer .* update the harness"), (1, "older .* release that wrote it")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema, "colour": "red"}))
        with pytest.raises(UserError, match=words):
            read_capsule(path)


def _of(part: Part, **changes: Any) -> Case:
    return replace(CASE, parts=(part,), **changes)


WRONG: dict[str, tuple[Case, str]] = {
    "a huge image": (_of(Part(image=ImageSpec(20_000, 20_000))), r"case\.parts\.0\.image is 20000 x 20000 px"),
    "a wide image": (_of(Part(image=ImageSpec(20_001, 1))), r"image\.width_px 20001: must be between 1 and 20,000"),
    "no height": (_of(Part(image=ImageSpec(9, 0))), r"image\.height_px 0: must be"),
    "orientation 9": (
        _of(Part(image=ImageSpec(9, 9, orientation=9))),
        r"image\.orientation 9: must be between 1 and 8",
    ),
    "a negative seed": (_of(Part(image=ImageSpec(9, 9, seed=-1))), r"image\.seed -1: must be"),
    "-1 samples": (_of(Part(audio=AudioSpec(-1))), r"audio\.samples -1: must be"),
    "many samples": (_of(Part(audio=AudioSpec(10**9))), r"audio\.samples 1000000000: must be"),
    "rate 0": (_of(Part(audio=AudioSpec(9, 0))), r"audio\.rate_hz 0: must be"),
    "no frame": (_of(Part(video=VideoSpec(0, 9, 9))), r"video\.frames 0: must be"),
    "fps 0": (_of(Part(video=VideoSpec(1, 9, 9, fps=0.0))), r"video\.fps 0\.0: must be"),
    "large frames": (_of(Part(video=VideoSpec(9, 2000, 2000))), r"video has 36,000,000 px in all its frames"),
    "negative indices": (
        _of(Part(video=VideoSpec(1, 9, 9, indices=(-1,)))),
        r"video\.indices \(-1,\): must be 1 numbers",
    ),
    "a far index": (_of(Part(video=VideoSpec(1, 9, 9, indices=(10**30,)))), r"indices \(10+,\): must be 1 numbers"),
    "a long recording": (_of(Part(audio=AudioSpec(1_500_000, 1))), r"audio is 1500000 samples at 1 Hz: at most 3600 s"),
    "much sound": (replace(CASE, parts=(Part(audio=AudioSpec(1_500_000)),) * 17), r"25,500,000 samples in all"),
    "a tool's name": (replace(CASE, tool=ToolUse("n" * 10**6 + "n")), r"case\.tool\.name has 1000001 characters"),
    "too few indices": (_of(Part(video=VideoSpec(2, 9, 9, indices=(1,)))), r"video\.indices"),
    "two in one": (_of(Part("a", image=IMAGE)), r"case\.parts\.0 is several things"),
    "a companion": (
        replace(CASE, probe=Probe("batch", companion=(Part(audio=AudioSpec(-5)),))),
        r"probe\.companion\.0",
    ),
    "a probe nowhere": (replace(CASE, probe=Probe("visibility", at=-1)), r"case\.probe\.at -1"),
    "no continuation": (replace(CASE, continuation=Continuation(0)), r"case\.continuation\.tokens 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_out_of_range_is_named_and_the_others_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with file, field, value and range; a good capsule beside it is run all the same."""
    case, words = WRONG[name]
    bad, good = capsule(tmp_path / "bad.json", case), capsule(tmp_path / "good.json")
    with pytest.raises(UserError, match=rf"bad\.json: .*{words}"):
        read_capsule(bad)
    readable, unreadable = _readable([str(bad), str(good)], tmp_path, "", None)
    assert [entry.name for entry in readable] == [str(good)]
    assert [entry["name"] for entry in unreadable] == [str(bad)]
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("field", "value"), [("dtype", "int4"), ("device", "tpu"), ("dtype", "")])
def test_a_type_or_device_that_nothing_computes_in_is_named(field: str, value: str, tmp_path: Path) -> None:
    """A capsule whose compute type or device is none is refused with those that there are."""
    with pytest.raises(UserError, match=f"{field} '{value}': must be one of"):
        read_capsule(capsule(tmp_path / "bad.json", CASE, **{field: value}))


def test_ranges_are_of_fields_that_there_are() -> None:
    """A range that no field has checks nothing; what is at its ends is accepted."""
    kinds = (ImageSpec, AudioSpec, VideoSpec, Probe, Continuation)
    assert {*RANGES} <= {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert MAX_PIXELS >= 20_000


def test_a_suspect_has_a_stand_in(tmp_path: Path) -> None:
    """The subject that is put in the place of the suspect is accused of its fault, and runs instead of it."""
    entry = with_suspect(target(str(capsule(tmp_path / "a.json")), tmp_path), "hf@5.17.0")
    assert entry.finding is not None
    assert (entry.finding.signature, entry.finding.suspect) == ("P6/hidden/hf@5.17.0", "hf@5.17.0")
    assert entry.subjects == ("hf@5.17.0", "vllm", "native")
    undecided = replace(FINDING, suspect="undecided", signature="P6/hidden/hf+vllm")
    with pytest.raises(UserError, match="has no suspect that hf-eager could stand for: undecided"):
        with_suspect(target(str(capsule(tmp_path / "b.json", finding=undecided)), tmp_path), "hf-eager")


def test_a_checkpoint_is_found_where_it_is_said_to_be(tmp_path: Path) -> None:
    """A directory that is not here is looked for by its name in another; a zoo model stays what it is."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(locate("tiny-e2b").resolve(), target_is_directory=True)
    entry = target(str(capsule(tmp_path / "a.json", replace(CASE, model="/gone/mine"))), tmp_path)
    for place in (tmp_path / "models", tmp_path / "models" / "mine"):
        assert with_models(entry, place).case.model == str(tmp_path / "models" / "mine")
    with pytest.raises(UserError, match="is no checkpoint and has none by the name of mine"):
        with_models(entry, tmp_path)
    assert _readable([entry.name], tmp_path, "", None)[1][0]["detail"].endswith(
        "--models DIR says where its checkpoint is"
    )
    zoo = target(str(capsule(tmp_path / "b.json")), tmp_path)
    assert with_models(zoo, tmp_path) == zoo


def test_a_finding_whose_suspect_did_not_run_is_not_gone() -> None:
    """Without its suspect nothing is known of a finding: the reason says who, and that it was left out."""
    ran = tuple(Observation(CASE.id, name, "ok") for name in ("vllm", "native"))
    assert not_asked(FINDING, Result(CASE, ran, (), (), {}, {})) == "hf did not run: left out"
    assert not_asked(FINDING, Result(CASE, (*ran, Observation(CASE.id, "hf", "ok")), (), (), {}, {})) == ""
    lost = Observation(CASE.id, "hf", "unavailable", "no such layer")
    assert not_asked(FINDING, Result(CASE, (*ran, lost), (), (), {}, {})) == "hf did not run: no such layer"


def _changed() -> Iterator[tuple[str, Case, Case]]:
    """Every field of every part of a case, once as it is and once otherwise."""
    wholes: dict[str, Any] = {
        "image": IMAGE, "audio": AudioSpec(700), "video": VideoSpec(2, 9, 9),
        "probe": Probe("batch", companion=(Part("b"),)), "tool": ToolUse(), "continuation": Continuation(),
    }  # fmt: skip
    kinds = {str: "other", int: 7, float: 7.0, bool: True, float | None: 7.0, int | None: 7}
    for name, whole in wholes.items():
        hints = get_type_hints(type(whole))
        for field in dataclasses.fields(whole):
            options = [value for value in get_args(hints[field.name]) if value != getattr(whole, field.name)]
            value = kinds.get(hints[field.name]) or (options[0] if isinstance(options[0], str) else None)
            if field.name == "companion":
                value = (Part("longer"),)
            if field.name == "indices":
                value = (0, 1)
            assert value is not None, field.name
            before, after = whole, replace(whole, **{field.name: value})
            if name in ("image", "audio", "video"):
                yield f"{name}.{field.name}", _of(Part(**{name: before})), _of(Part(**{name: after}))
            else:
                yield f"{name}.{field.name}", replace(CASE, **{name: before}), replace(CASE, **{name: after})
        bare = _of(Part(**{name: whole})) if name in Part.__dataclass_fields__ else CASE
        yield name, CASE, bare if bare != CASE else replace(CASE, **{name: whole})
    yield "expanded", CASE, replace(CASE, parts=(CASE.parts[0], replace(CASE.parts[1], expanded=True)))
    plain: dict[str, Any] = {"max_soft_tokens": 70, "form": "turn", "system": "s", "dtype": "float16"}
    yield from ((name, CASE, replace(CASE, **{name: value})) for name, value in plain.items())


CHANGED = {name: pair for name, *pair in _changed()}


@pytest.mark.parametrize("name", CHANGED)
def test_whatever_differs_is_said(name: str) -> None:
    """Two cases that differ in one field differ in words, on the terminal and in an issue's text."""
    before, after = CHANGED[name]
    assert in_words(before, texts=True) != in_words(after, texts=True)
    assert in_words(before) != in_words(after)


def test_every_field_of_a_case_is_among_those_changed() -> None:
    """A field that is added to a case later has to be said too: this list is the fields that there are."""
    said = {name.partition(".")[0] for name in CHANGED}
    assert {field.name for field in dataclasses.fields(Case)} - {"model", "parts"} <= said
    assert {field.name for field in dataclasses.fields(Part)} - {"text"} <= said


def test_the_cause_stands_in_the_issue(tmp_path: Path) -> None:
    """An orientation tag, a placeholder that is written out and the turn are in the input's sentence."""
    odd = _of(Part(image=replace(IMAGE, orientation=3), expanded=True), form="turn")
    text = issue(read_capsule(capsule(tmp_path / "a.json", odd)))
    assert "image 64 x 48 px orientation 3 written out already, budget 280 soft tokens, form turn" in text
