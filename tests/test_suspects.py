"""From verdicts to findings: who is suspected, what a finding is called, and that its name is stable."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from harness.comparators.suspects import UNDECIDED, findings, suspect_of
from harness.schema import Case, Finding, Part, Verdict, VerdictKind, error_signature

CASE = Case("tiny-31b", (Part(text="a"),))
NAMES = ("hf", "vllm", "native")


def _verdict(left: str, right: str, kind: VerdictKind, measured: float | None = 1.0) -> Verdict:
    return Verdict("P1", "prompt_ids", left, right, kind, measured, 0, "tokens", f"{left} and {right}")


def _all_pairs(*agreeing: tuple[str, str]) -> list[Verdict]:
    """Every pair of three subjects, differing except where named."""
    return [_verdict(*pair, "agree" if pair in agreeing else "differ") for pair in combinations(NAMES, 2)]


@pytest.mark.parametrize(
    ("agreeing", "suspect"), [(("hf", "native"), "vllm"), (("vllm", "native"), "hf"), (("hf", "vllm"), "native")]
)
def test_the_odd_one_out_of_three_is_the_suspect(agreeing: tuple[str, str], suspect: str) -> None:
    """Two that agree with each other and not with the third accuse it, whoever it is: hf has no privilege."""
    (finding,) = findings(CASE, _all_pairs(agreeing))
    assert finding.suspect == suspect
    assert finding.signature == f"P1/prompt_ids/{suspect}"


RELEASES = {"hf": "hf", "hf@5.8.0": "hf", "vllm": "vllm", "vllm@0.20.0": "vllm", "native": "native"}


def _pairs_of(names: tuple[str, ...], odd: set[str]) -> list[Verdict]:
    """Every pair, differing where exactly one of the two is odd."""
    return [_verdict(*pair, "differ" if len(odd & {*pair}) == 1 else "agree") for pair in combinations(names, 2)]


@pytest.mark.parametrize(
    ("names", "odd", "suspect"),
    [
        (("hf", "vllm@0.20.0", "vllm"), {"vllm@0.20.0"}, "vllm@0.20.0"),
        (("hf", "vllm@0.20.0", "vllm"), {"hf"}, UNDECIDED),
        (("hf", "hf@5.8.0", "vllm"), {"vllm"}, UNDECIDED),
        (("hf", "native", "vllm@0.20.0", "vllm"), {"vllm", "vllm@0.20.0"}, "vllm"),
        (("hf", "hf@5.8.0", "native", "vllm"), {"hf"}, "hf"),
        (("vllm@0.20.0", "vllm"), {"vllm"}, UNDECIDED),
    ],
)
def test_releases_of_one_engine_have_one_vote(names: tuple[str, ...], odd: set[str], suspect: str) -> None:
    """Two releases that agree accuse nobody; one release alone can be the odd one, and so can all of an engine's."""
    (finding,) = findings(CASE, _pairs_of(names, odd), RELEASES)
    assert finding.suspect == suspect


def test_two_subjects_cannot_decide() -> None:
    """One word against another accuses nobody; both stand in the signature."""
    (finding,) = findings(CASE, [_verdict("hf", "vllm", "differ")])
    assert (finding.suspect, finding.signature) == (UNDECIDED, "P1/prompt_ids/hf+vllm")


@pytest.mark.parametrize(
    ("apart", "who"),
    [((), "hf+vllm"), (("hf", "hf@5.8.0"), "hf+hf@5.8.0+vllm"), (("vllm", "vllm@0.20.0"), "hf+vllm+vllm@0.20.0")],
)
def test_releases_that_are_one_stand_under_the_name_of_their_engine(apart: tuple[str, str], who: str) -> None:
    """Two engines, two releases of each: an engine whose releases agree is one who differs, else each of them is."""
    verdicts = [
        _verdict(*pair, "agree" if RELEASES[pair[0]] == RELEASES[pair[1]] and pair != apart else "differ")
        for pair in combinations(("hf", "hf@5.8.0", "vllm", "vllm@0.20.0"), 2)
    ]
    (finding,) = findings(CASE, verdicts, RELEASES)
    assert (finding.suspect, finding.signature) == (UNDECIDED, f"P1/prompt_ids/{who}")


def test_three_answers_cannot_decide() -> None:
    """Three different answers accuse nobody; all three stand in the signature, in the order of the subjects."""
    (finding,) = findings(CASE, _all_pairs())
    assert (finding.suspect, finding.signature) == (UNDECIDED, "P1/prompt_ids/hf+vllm+native")
    assert finding.subjects == NAMES


def test_two_disagreements_out_of_three_accuse_nobody_who_agrees_twice() -> None:
    """If only one pair differs, each of the two agrees with the third, and neither can be told from the other."""
    (finding,) = findings(CASE, _all_pairs(("hf", "native"), ("vllm", "native")))
    assert (finding.suspect, finding.subjects) == (UNDECIDED, ("hf", "vllm"))


def test_an_absent_third_does_not_vote() -> None:
    """`not comparable` is no agreement: without a third answer two still cannot decide."""
    pairs = [_verdict("hf", "vllm", "differ")] + [_verdict(n, "native", "not comparable", None) for n in NAMES[:2]]
    assert suspect_of(pairs) == UNDECIDED


def test_a_fault_within_one_subject_is_its_own() -> None:
    """What one subject breaks by itself is a finding of that subject, apart from every other's."""
    verdicts = [_verdict(name, name, "differ" if name != "hf" else "agree") for name in NAMES]
    found = findings(CASE, verdicts)
    assert [(f.suspect, f.subjects) for f in found] == [("vllm", ("vllm",)), ("native", ("native",))]


def test_agreement_is_no_finding() -> None:
    """Neither agreement nor what cannot be compared becomes a finding."""
    assert findings(CASE, _all_pairs(("hf", "vllm"), ("hf", "native"), ("vllm", "native"))) == []
    assert findings(CASE, [_verdict("hf", "vllm", "not comparable", None)]) == []


def test_a_finding_shows_the_worst_pair() -> None:
    """The measured number, the limit and the detail are those of the pair that is furthest apart."""
    pairs = [_verdict("hf", "vllm", "differ", 2.0), _verdict("hf", "native", "differ", 3.0)]
    (finding,) = findings(CASE, pairs)
    assert (finding.measured, finding.limit, finding.detail) == (3.0, 0, "hf and native")


def test_nan_is_worse_than_any_number() -> None:
    """A finding with a NaN in it shows the NaN: it must not look like a small difference."""
    (finding,) = findings(CASE, [_verdict("hf", "vllm", "differ", 2.0), _verdict("hf", "native", "differ", math.nan)])
    assert finding.measured is not None
    assert math.isnan(finding.measured)


def test_stages_and_properties_are_findings_of_their_own() -> None:
    """A subject that differs at two stages has two findings, each with its own id."""
    other = Verdict("P6", "hidden", "hf", "vllm", "differ", 1.0, 0.5, "nats")
    found = findings(CASE, [_verdict("hf", "vllm", "differ"), other])
    assert [f.signature for f in found] == ["P1/prompt_ids/hf+vllm", "P6/hidden/hf+vllm"]
    assert len({f.id for f in found}) == 2


def _crash(message: str, case: Case = CASE) -> Finding:
    (finding,) = findings(case, [Verdict("P1", "outcome", "vllm", "vllm", "differ", reason=f"vllm crashed: {message}")])
    return finding


def test_crashes_that_differ_in_numbers_and_paths_are_one() -> None:
    """Sizes, addresses and paths change from case to case; the signature and the id do not."""
    one = _crash("RuntimeError: shape [280, 16] at 0x7f00dead in /opt/a-1/lib/x.py")
    two = _crash("RuntimeError: shape [279, 32] at 0x7f11beef in /home/b/c/y.py")
    assert (one.signature, one.id) == (two.signature, two.id)
    assert one.signature == "P1/outcome/vllm/vllm crashed: RuntimeError: shape [#, #] at ADDR in PATH"


def test_crashes_of_an_engine_s_releases_have_one_name() -> None:
    """The words of a signature name the engine, whichever of its subjects it was; who is suspected says the subject."""
    reasons = ("vllm@0.20.0 crashed: ValueError: a", "vllm crashed: ValueError: a")
    names = ("vllm@0.20.0", "vllm")
    verdicts = [Verdict("P1", "outcome", n, n, "differ", reason=r) for n, r in zip(names, reasons, strict=True)]
    found = findings(CASE, verdicts, {"vllm": "vllm", "vllm@0.20.0": "vllm"})
    assert [f.signature for f in found] == [f"P1/outcome/{name}/vllm crashed: ValueError: a" for name in names]


def test_other_crashes_have_another_signature() -> None:
    """Another kind of error, or another subject, is another finding."""
    assert _crash("RuntimeError: shape").signature != _crash("ValueError: shape").signature


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        ("Traceback\n  line 3\nValueError: 3.5 > 2\n", "ValueError: # > #"),
        ("assign 64 + 70 + 64 = 198 tokens to 199", "assign # = # tokens to #"),
        ("", "no message"),
        ("  \n ", "no message"),
        ("x" * 500, "x" * 160),
    ],
)
def test_an_error_signature_is_its_last_line_in_bounds(text: str, signature: str) -> None:
    """A traceback counts by its last line; no message has a name too; a long one is cut."""
    assert error_signature(text) == signature


def test_ids_are_stable() -> None:
    """Ids are written into capsules and pages, so they may not change: eight digits over signature and model."""
    (finding,) = findings(CASE, _all_pairs(("hf", "native")))
    assert finding.id == "29400773"
    (elsewhere,) = findings(Case("tiny-12b", CASE.parts), _all_pairs(("hf", "native")))
    assert elsewhere.id != finding.id
    (again,) = findings(Case("tiny-31b", (Part(text="other"),)), _all_pairs(("hf", "native")))
    assert again.id == finding.id
