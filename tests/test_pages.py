"""What single pages are made of: counts of what was tried, sizes on which somebody disagrees, noise, power."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.comparators import Limits
from harness.store import RunStore
from reports import inputs, measured, soft_tokens
from reports.findings import ROOT
from reports.frames import load_run
from tests.made_run import make_run


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> RunStore:
    return make_run(tmp_path)


def test_a_map_counts_cases_and_names_what_was_not_tried(run: RunStore) -> None:
    """The one image falls into its aspect and budget, with a finding; every other cell is named as untried."""
    heat = next(heat for heat in inputs.heats(load_run(run)) if heat.title.startswith("Aspect"))
    filled = {
        (row, column): cell
        for row, cells in zip(heat.rows, heat.cells, strict=True)
        for column, cell in zip(heat.columns, cells, strict=True)
        if cell[0]
    }
    assert filled == {("1.2 : 1 to 4 : 1", "280"): (1, 1)}
    assert "about square" in heat.untried
    assert "70" in heat.untried
    assert not any("280" in name for name in heat.untried)


def test_sizes_on_which_somebody_disagrees(run: RunStore) -> None:
    """A size whose rules part is told; once a subject counts otherwise, it is told that subjects part, and first."""
    assert list(soft_tokens.disagreements(load_run(run))["why"]) == ["the two rules part"]
    counts = [{"predicted": 289, "feature_rows": 280, "declared_max": 280, "medium": "image"}]
    keys = {"case_id": "other", "model": "tiny-31b"}
    image = {"index": 0, "width_px": 900, "height_px": 3, "max_soft_tokens": 280, "reference": 280, "contract": 280}
    run.append(
        {
            "images": [keys | image],
            "observations": [
                keys | {"subject": name, "outcome": "ok", "counts": json.dumps(given), "probe": False}
                for name, given in (("hf", [counts[0] | {"predicted": 280}]), ("vllm", counts))
            ],
        }
    )
    first, second = soft_tokens.disagreements(load_run(run)).to_dict("records")
    assert (first["why"], first["hf"], first["vllm"], first["reference"]) == ("subjects part", 280, 289, 280)
    assert second["why"] == "the two rules part"


def test_noise_is_spread_over_its_decades(run: RunStore) -> None:
    """A run without calibration has no row; one with it has its histogram, summed over cases, in the right decades."""
    assert measured.noise(load_run(run))["rows"] == []
    histogram = [0] * 18
    histogram[5] = 7
    row = {"case_id": "c", "model": "m", "subject": "hf", "dtype": "float32", "kind": "batch", "n": 7, "kl_max": 1e-10}
    run.append({"noise": [row | {"kl_histogram": json.dumps(histogram)} for _ in range(2)]})
    (shown,) = measured.noise(load_run(run))["rows"]
    (cell,) = shown["strip"]
    assert cell.words == "14 from 1e-11 to 1e-10 nats"
    assert shown["findings"] == 0
    beyond = row | {"case_id": "d", "kl_max": 1.0, "kl_histogram": json.dumps(histogram)}
    run.append({"noise": [beyond, beyond | {"dtype": "bfloat16"}]})
    again = {entry["dtype"]: entry["findings"] for entry in measured.noise(load_run(run))["rows"]}
    assert again == {"float32": 1, "bfloat16": 0}, "1 nat is a finding in float32 only"
    assert {dtype: Limits.of(dtype).kl_nats for dtype in measured.LIMITS_NATS} == measured.LIMITS_NATS
    assert (shown["words"], shown["cases"], shown["positions"], shown["kl_max"]) == (
        "alone and in a batch",
        2,
        14,
        1e-10,
    )


def test_power_tells_what_was_not_found(tmp_path: Path) -> None:
    """Faults come by the cases that they took, one that no case showed last and counted; no file is no fault."""
    assert measured.power(tmp_path / "none.json")["faults"] == []
    entry = {"found": "P1", "seen_s": 1.0, "shrink_s": 1.0, "tried": 3, "smallest": "1x1"}
    detected = [{"fault": name, "cases": cases, **entry} for name, cases in (("lost", None), ("late", 9), ("soon", 1))]
    (tmp_path / "power.json").write_text(json.dumps({"detected": detected, "null": []}))
    found = measured.power(tmp_path / "power.json")
    assert [fault["fault"] for fault in found["faults"]] == ["soon", "late", "lost"]
    assert (found["missed"], found["median"]) == (1, 5)


def test_the_shipped_power_is_that_of_the_table() -> None:
    """docs/power.json, which the page shows, has the faults and numbers of docs/power.md."""
    text = (ROOT / "docs" / "power.md").read_text(encoding="utf-8")
    faults = measured.power()["faults"]
    assert len(faults) == sum(line.count("|") == 6 for line in text.splitlines()) - 2
    assert all(f"| {fault['fault']} | {fault['cases']} |" in text for fault in faults)
