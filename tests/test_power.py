"""Seeded faults: each still fits the source, each is another text, and one is found and shrunk end to end."""

from __future__ import annotations

import pytest

from benchmarks.faulty import SOURCE, STAGES, Fault, edited, read_faults
from benchmarks.power import Detected, detect, null, table
from harness.zoo import FEATURE_NAMES, NAMES

FAULTS = [*read_faults(), *read_faults(STAGES)]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_one_edit_of_the_source(fault: Fault) -> None:
    """The right text is there once, the wrong text is another one that still compiles, on models that exist."""
    text = edited(fault)
    assert text != (SOURCE / fault.file).read_text(encoding="utf-8")
    compile(text, fault.file, "exec")
    assert set(fault.models) <= {*NAMES, *FEATURE_NAMES}


def test_a_table_that_is_out_of_date_says_so() -> None:
    """A text that is no longer in the source is an error with its name, not a fault that nobody finds."""
    with pytest.raises(ValueError, match="fault gone: 'no such line' stands 0 times in vision"):
        edited(Fault("gone", "vision.py", "no such line", "", ("tiny-31b",)))


def test_what_was_not_found_is_said() -> None:
    """A fault that no case showed stands in the table as such."""
    assert "| lost |  | **not found** |" in table([Detected("lost", None)], [])


@pytest.mark.engines
def test_a_fault_is_found_and_made_small() -> None:
    """Swapped patch positions show within a few cases and shrink to one tiny image."""
    (fault,) = (fault for fault in FAULTS if fault.name == "positions-swapped")
    found = detect(fault, cases=40, seed=0)
    assert found.cases is not None
    assert "positions" in found.found
    assert found.smallest.startswith("1x1") or found.smallest.startswith(("1x2", "2x1"))


@pytest.mark.engines
@pytest.mark.parametrize(
    ("name", "stage"),
    [("pooled-by-a-width-that-is-no-multiple", "mm_features"), ("padding-pooled-into-token-0", "mm_features.first")],
)
def test_the_pooling_hazards_of_a_review_are_seen_in_the_features(name: str, stage: str) -> None:
    """Both mistakes that the review of vLLM PR 43440 names show in P7, the second in soft token 0 by itself."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    found = detect(fault, cases=40, seed=0)
    assert f"P7 {stage}" in found.found.split(", ")


@pytest.mark.engines
def test_the_engine_without_a_fault_raises_no_alarm() -> None:
    """Native beside native finds nothing."""
    alarms = null(["native", "native"], cases=30, seed=1)
    assert alarms["unexplained"] == {}
    assert alarms["verdicts"]["agree"] > 100
