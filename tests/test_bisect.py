"""Bisection: the search over releases, what is remembered, and a real one over environments that uv builds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import bisect as bisecting
from harness import environments, replay
from harness.bisect import Asked, Asking, Status, between, published, search, status_of
from harness.cli import app
from harness.environments import Recipe, Subject
from harness.errors import UserError
from harness.replay import Replayed, renamed
from harness.schema import SCHEMA_VERSION, Capsule, Case, Finding, Part
from harness.store import read_capsule, write_json

ROOT = Path(__file__).parent.parent
FINDING = Finding(
    "id", "P1/outcome/vllm@0.20.0/vllm crashed: X", "P1", "outcome", ("vllm@0.20.0", "hf"), "vllm@0.20.0", "m", "c",
    None, None, "", "",
)  # fmt: skip


def _answers(statuses: dict[str, Status]) -> tuple[Callable[[str], Asked], list[str]]:
    """An engine whose releases answer as the table says, and the list of what was asked."""
    asked: list[str] = []

    def ask(version: str) -> Asked:
        asked.append(version)
        return Asked(version, statuses[version], "")

    return ask, asked


@given(count=st.integers(2, 60), data=st.data(), later=st.booleans())
def test_the_step_is_found_in_few_questions(count: int, data: st.DataObject, later: bool) -> None:
    """Wherever the step is, and whichever end is the good one: its two releases, in log2(n) + 2 questions."""
    versions = [f"1.{k}" for k in range(count)]
    step = data.draw(st.integers(1, count - 1))
    words: tuple[Status, Status] = ("bad", "good") if later else ("good", "bad")
    ask, asked = _answers({version: words[k >= step] for k, version in enumerate(versions)})
    good, bad = (versions[-1], versions[0]) if later else (versions[0], versions[-1])
    before, since, _ = search(versions, good, bad, ask)
    assert (before, since) == (versions[step - 1], versions[step])
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count)) + 2


def test_what_cannot_be_asked_is_stepped_over() -> None:
    """A release without an answer is asked once; what is said is the nearest pair that answered."""
    statuses: dict[str, Status] = {"1": "good", "2": "unknown", "3": "unknown", "4": "bad", "5": "bad"}
    ask, asked = _answers(statuses)
    before, since, _ = search(list(statuses), "1", "5", ask)
    assert (before, since) == ("1", "4")
    assert len(asked) == len(set(asked))


def test_another_failure_is_not_the_finding() -> None:
    """A release that fails in another way counts as one without the finding."""
    statuses: dict[str, Status] = {"1": "bad", "2": "bad", "3": "another", "4": "good"}
    before, since, _ = search(list(statuses), "4", "1", _answers(statuses)[0])
    assert (before, since) == ("2", "3")


@pytest.mark.parametrize(("good", "bad", "message"), [("2", "1", "--good 2 is bad"), ("1", "0", "--good 1 is bad")])
def test_an_end_that_is_not_as_said_is_refused(good: str, bad: str, message: str) -> None:
    """Both ends are asked before anything else; a wrong one is named with what it is."""
    with pytest.raises(UserError, match=message):
        search(["0", "1", "2"], good, bad, _answers({"0": "bad", "1": "bad", "2": "bad"})[0])


def test_only_published_releases_between_the_ends_are_asked() -> None:
    """Either order of the ends gives the same list; an end that was never published is named."""
    listed = ["0.9", "0.10", "0.11", "0.12"]
    assert between(listed, "0.12", "0.10") == between(listed, "0.10", "0.12") == ["0.10", "0.11", "0.12"]
    with pytest.raises(UserError, match=r"0\.13 was never published"):
        between(listed, "0.13", "0.9")
    with pytest.raises(UserError, match="latest"):
        between(listed, "latest", "0.9")


def test_a_finding_is_sought_under_the_name_of_each_release() -> None:
    """The subject is renamed wherever the finding names it, and nowhere else."""
    found = renamed(FINDING, "vllm@0.20.0", "vllm@0.21.0")
    assert found.signature == "P1/outcome/vllm@0.21.0/vllm crashed: X"
    assert (found.subjects, found.suspect) == (("vllm@0.21.0", "hf"), "vllm@0.21.0")


@pytest.mark.parametrize(
    ("stage", "words", "status"),
    [
        ("outcome.expanded", "ok plainly, crashed by probe expanded: RuntimeError: 64 for 1", "bad"),
        ("outcome.expanded", "ok plainly, rejected by probe expanded: ValueError: 64 for 1", "another"),
        ("prompt_ids", "ValueError: 64 for 1", "bad"),
    ],
)
def test_a_probe_that_fails_with_another_error_fails_another_way(stage: str, words: str, status: Status) -> None:
    """The signature of a probe's outcome has no error, so its error is compared too; numbers in it do not count."""
    sought = replace(
        FINDING, stage=stage, detail="fake@1 ok plainly, crashed by probe expanded: RuntimeError: 280 for 1"
    )
    found = replace(sought, detail=f"fake@2 {words}")
    assert status_of(Replayed("fake@2", "FAILED", "", (found,)), sought, "fake@2") == status


def test_releases_come_from_the_package_index() -> None:
    """The index lists what was published, oldest first, without pre-releases; an engine without releases is named."""
    listed = published("hf")
    assert listed.index("5.8.0") < listed.index("5.19.0")
    assert not any("rc" in version for version in listed)
    with pytest.raises(UserError, match="native has no releases"):
        published("native")


@pytest.fixture(name="releases_of_fake")
def _releases_of_fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A fake engine with three published releases, of which the first raises; and a capsule of it."""
    monkeypatch.chdir(tmp_path)
    env = {"PYTHONPATH": str(ROOT)}
    fake = Subject("fake", "tests.fake_engine:ByToolz", sys.executable, env)
    rows = {"tests.fake_engine:ByToolz": {"0.12.0": Recipe(("toolz==0.12.0",))}}
    monkeypatch.setitem(environments.SUBJECTS, "fake", fake)
    monkeypatch.setattr(environments, "releases", lambda: rows)
    monkeypatch.setattr(bisecting, "releases", lambda: rows)
    monkeypatch.setattr(replay, "load_deviations", list)
    case = Case("tiny-31b", (Part(text="a"),))
    signature = "P1/outcome/fake/tests.fake_engine:ByToolz crashed: RuntimeError: toolz is too old"
    finding = Finding("1", signature, "P1", "outcome", ("fake",), "fake", case.model, case.id, None, None, "", "")
    path = tmp_path / "capsule.json"
    write_json(path, Capsule(SCHEMA_VERSION, finding, case, {"fake": {"engine": fake.engine}}, "float32", "cpu"))
    return path


def test_a_bisection_over_real_environments(releases_of_fake: Path) -> None:
    """Environments are built, the step is found, and the second time everything is remembered."""
    command = ["bisect", str(releases_of_fake), "--subject", "fake", "--good", "1.0.0", "--bad", "0.12.0", "--json"]
    first, second = (CliRunner().invoke(app, command, catch_exceptions=False) for _ in range(2))
    result = json.loads(first.stdout)
    assert (result["change"], result["before"], result["since"]) == ("fixed", "0.12.1", "1.0.0")
    assert [(entry["version"], entry["status"]) for entry in result["asked"]] == [
        ("1.0.0", "good"), ("0.12.0", "bad"), ("0.12.1", "bad"),
    ]  # fmt: skip
    assert not any(entry["remembered"] for entry in result["asked"])
    assert all(entry["remembered"] for entry in json.loads(second.stdout)["asked"])


def test_a_release_that_cannot_be_installed_is_unknown_and_asked_again(releases_of_fake: Path) -> None:
    """What could not be asked has uv's reason and is not kept; a subject that the capsule lacks is refused."""
    capsule = read_capsule(releases_of_fake)
    asking = Asking(capsule, "fake")
    answer = asking.ask("0.99.0")
    assert (answer.status, "0.99.0" in answer.detail, asking.memory.exists()) == ("unknown", True, False)
    with pytest.raises(UserError, match="no subject vllm; it has fake"):
        Asking(capsule, "vllm")
