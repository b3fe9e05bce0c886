"""Frames: every stored column has its words, and a notebook gets at them in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.comparators import Comparison
from harness.records import _arrays
from harness.schema import ROLES
from harness.store import TABLES, RunStore, roles_of
from reports import load
from reports.columns import COLUMNS, TABLE_MEANINGS

KINDS = {"text": "string", "whole": "int64", "real": "double", "flag": "bool"}


@pytest.mark.parametrize("table", TABLES)
def test_the_dictionary_has_every_column_of_the_store(table: str) -> None:
    """Names and types are those that the store writes, and each column says what it means."""
    assert {c.name: KINDS[c.kind] for c in COLUMNS[table]} == {name: str(kind) for name, kind in TABLES[table].items()}
    assert all(column.meaning for column in COLUMNS[table])
    assert TABLE_MEANINGS[table]


def test_measured_numbers_have_a_unit() -> None:
    """Negative control of a lazy dictionary: real numbers say what they are counted in, but for plain probabilities."""
    bare = {c.name for columns in COLUMNS.values() for c in columns if c.kind == "real" and not c.unit}
    assert bare == {"p_value", "q_value"}


def test_a_notebook_loads_a_run_in_one_line(tmp_path: Path) -> None:
    """`load(store).findings` is the newest run's findings, with the columns of the dictionary."""
    run = RunStore.create(tmp_path, {}, [])
    run.append({"findings": [{"id": "0a", "case_id": "c", "signature": "P1/prompt_ids/vllm", "measured": 3.0}]})
    findings = load(tmp_path).findings
    assert list(findings["measured"]) == [3.0]
    assert set(findings.columns) == {column.name for column in COLUMNS["findings"]}


def test_each_pair_of_an_example_has_its_own_roles() -> None:
    """Pairs that were given different prompts keep the roles of each; the first pair's are the example's."""
    pairs = {("a", "b"): ("rest", "soft"), ("c", "d"): ("soft", "rest", "rest")}
    made: Any = {pair: SimpleNamespace(kl_left_right=np.zeros(len(r)), roles=r) for pair, r in pairs.items()}
    arrays = _arrays([], Comparison([], made))
    for (left, right), roles in pairs.items():
        assert roles_of(arrays, left, right).tolist() == [ROLES.index(role) for role in roles]
    assert arrays["roles"].tolist() == arrays["roles/a/b"].tolist()
    old = {"roles": arrays["roles"]}
    assert roles_of(old, "c", "d") is old["roles"], "a run of before has one pair's for all"
