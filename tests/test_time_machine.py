"""The table of founding failures is sound, and what was found is what was looked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from packaging.version import Version

from benchmarks.time_machine import CAPSULES, Failure, read_failures
from harness.environments import resolve
from harness.schema import Finding
from harness.store import read_capsule

FAILURES = {failure.name: failure for failure in read_failures()}
FINDING = Finding(
    "id", "P1/outcome/vllm@0.20.0/vllm crashed: ValueError: #", "P1", "outcome", ("vllm@0.20.0",), "vllm@0.20.0", "m",
    "c", None, None, "", "ValueError: Attempted to assign 280 = 280 multimodal tokens to 289 placeholders",
)  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_each_failure_names_subjects_that_exist(failure: Failure) -> None:
    """Its subject at the bad release and the others resolve; releases stand in order, or the failure is planted."""
    assert len(resolve([f"{failure.subject}@{failure.bad}", *failure.others])) == 1 + len(failure.others)
    walked = [failure.earliest, failure.bad, failure.good]
    assert bool(failure.absent) != all(walked)
    assert failure.absent or all(Version(a) <= Version(b) for a, b in pairwise(walked))


def test_only_the_failure_itself_counts() -> None:
    """Another message, another stage or another engine is not the failure."""
    clamp = FAILURES["soft-token-clamp"]
    assert clamp.is_it(FINDING)
    assert not clamp.is_it(replace(FINDING, detail="ValueError: something else"))
    assert not clamp.is_it(replace(FINDING, signature="P1/prompt_ids/vllm@0.20.0"))
    assert not clamp.is_it(replace(FINDING, signature=FINDING.signature.replace("vllm", "hf")))


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_each_failure_was_found_by_what_it_says(failure: Failure) -> None:
    """The capsule that the time machine kept is of that subject and release, and shows that failure."""
    capsule = read_capsule(CAPSULES / f"{failure.name}.json")
    assert failure.is_it(capsule.finding)
    assert f"{failure.subject}@{failure.bad}" in capsule.finding.subjects
    assert capsule.case.model in failure.models
