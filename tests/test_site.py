"""The static page: complete, offline, and safe against what strangers write into prompts and messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.schema import SCHEMA_VERSION, Capsule, Case, Counts, Finding, ImageSpec, Part, Verdict
from harness.store import RunStore, write_json
from reports import figures, site
from reports.frames import VERDICTS, load_run

HOSTILE = "</script><script>alert('owned')</script><img src=https://evil.example/x.png onerror=alert(1)> \"'&{{ 7*7 }}"
RIGHT_TO_LEFT = "\u202eשלום عالم"
LONG = "ab " * 3_334
BY_KL = Case(
    "tiny-31b", (Part(HOSTILE + RIGHT_TO_LEFT + LONG), Part(image=ImageSpec(96, 48)), Part("after \x00\x1b[31m"))
)
BY_CRASH = Case("tiny-e2b", (Part("boom"),), form="turn")
HEADER = {
    "plan": {"models": ["tiny-31b", "tiny-e2b"], "cases": 2, "seed": 7, "dtype": "float32", "device": "cpu"},
    "environment": {"python": "3.11.7", "hypothesis": "6.1", "harness": "0.1.0", "revision": "abc123"},
    "subjects": {
        "hf": {"engine": "hf", "version": {"transformers": "5.19.0"}, "status": "ok", "reason": ""},
        "vllm": {"engine": "vllm", "version": {}, "status": "unavailable", "reason": f"no GPU {HOSTILE}"},
    },
    "timing": {"wall_s": 9.0, "startup_s": 4.0, "compare_s": 1.0, "engine_s": {"hf": 5.0}, "overhead_ratio": 1.0},
}
VERDICTS_BY_CASE = {
    BY_KL: (
        Verdict("P1", "prompt_ids", "hf", "vllm", "agree", 0.0, 0.0, "tokens"),
        Verdict("P2", "counts", "hf", "hf", "agree", 0.0, 0.0, "soft tokens"),
        Verdict("P6", "hidden", "hf", "vllm", "differ", 5.5, 1e-5, "nats", HOSTILE),
        Verdict("P7", "pixels", "hf", "vllm", "differ", float("inf"), 0.0, "of [0, 1]"),
        Verdict("P2", "counts", "reference", "reference", "differ", 3.0, 0.0, "soft tokens"),
    ),
    BY_CRASH: (
        Verdict("P1", "outcome", "vllm", "vllm", "differ", reason="vllm crashed"),
        Verdict("P6", "hidden", "hf", "vllm", "not comparable", reason=f"vllm crashed {HOSTILE}"),
    ),
}


class Page(HTMLParser):
    """A page's elements with their attributes, the text that a reader sees, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        """Parse a page."""
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts = "", ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts += data
        elif self._inside != "style":
            self.words += data

    def attributes(self, name: str) -> list[str]:
        """Every value of an attribute, in order."""
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]


def finding_of(case: Case, verdict: Verdict, number: int) -> Finding:
    signature = f"{verdict.property}/{verdict.stage}/vllm"
    subjects = (verdict.left, verdict.right)
    measured = verdict.measured, verdict.limit, verdict.unit, verdict.reason
    return Finding(
        f"{number:08x}", signature, verdict.property, verdict.stage, subjects, "vllm", case.model, case.id, *measured
    )


def observation_rows(case: Case) -> Iterator[dict[str, Any]]:
    for subject, outcome in (("hf", "ok"), ("vllm", "ok" if case.images else "crashed")):
        counts = [dataclasses.asdict(Counts(280, 280, 1120)) for _ in case.images]
        yield {
            "subject": subject,
            "outcome": outcome,
            "message": HOSTILE if outcome == "crashed" else "",
            "counts": json.dumps(counts),
            "tokens": 9 if outcome == "ok" else None,
            "engine_s": 0.5,
        }


def divergence_rows(case: Case) -> list[dict[str, Any]]:
    return [{"left": "hf", "right": "vllm", "role": "all", "n": 9, "max": 5.5}] if case.images else []


def rows_of(case: Case, verdicts: Sequence[Verdict], found: Sequence[Finding]) -> dict[str, list[dict[str, Any]]]:
    keys = {"case_id": case.id, "model": case.model}
    image = {"index": 0, "max_soft_tokens": 280, "reference": 139, "contract": 280, "mode": "RGB", "pattern": "noise"}
    return {
        "cases": [keys | {"images": len(case.images), "form": case.form, "max_soft_tokens": 280, "case": "{}"}],
        "images": [keys | image | dataclasses.asdict(spec) for spec in case.images],
        "observations": [keys | row for row in observation_rows(case)],
        "verdicts": [keys | dataclasses.asdict(verdict) for verdict in verdicts],
        "divergences": [keys | row for row in divergence_rows(case)],
        "findings": [dataclasses.asdict(finding) | {"subjects": json.dumps(finding.subjects)} for finding in found],
    }


def make_run(store: Path, *, with_findings: bool) -> RunStore:
    run = RunStore.create(store, HEADER, list(VERDICTS_BY_CASE))
    for case, verdicts in VERDICTS_BY_CASE.items():
        kept = [v for v in verdicts if with_findings or v.verdict == "agree"]
        differing = [v for v in kept if v.verdict == "differ" and v.stage in ("hidden", "outcome")]
        found = [finding_of(case, verdict, 16 * len(case.parts) + k) for k, verdict in enumerate(differing)]
        run.append(rows_of(case, kept, found))
        for finding in found:
            capsule = Capsule(SCHEMA_VERSION, finding, case, {}, "float32", "cpu")
            write_json(run.path / "capsules" / f"{finding.id}.json", capsule)
    roles = np.array([0, 1, 2, 2, 3, 4, 4, 5, 5], dtype=np.int8)
    ids = np.array([5, 7, 8, 8, 9, 5, 5, 5, 5])
    kl = np.array([0.0, 1e-9, 5.5, 1.0, 0.0, np.nan, 1.0, 1.0, 1.0])
    run.write_arrays(BY_KL.id, {"roles": roles, "kl/hf/vllm": kl, "prompt_ids/hf": ids, "prompt_ids/vllm": ids})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return make_run(tmp_path_factory.mktemp("store"), with_findings=True)


@pytest.fixture(scope="module")
def page(run: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(site.build(load_run(run), tmp_path_factory.mktemp("site")).read_text(encoding="utf-8"))


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    """Markup in prompts, messages and reasons is shown letter by letter and never becomes an element."""
    assert page.words.count(HOSTILE) >= 4, "prompt, absent subject, message and reason"
    assert RIGHT_TO_LEFT in page.words
    assert LONG in page.words
    assert "alert" not in page.scripts
    assert not any(attributes.get("onerror") for _, attributes in page.elements)


def test_control_characters_are_made_visible(page: Page) -> None:
    """Control characters of a prompt, which HTML forbids or hides, appear as the symbols that stand for them."""
    assert "after ␀␛[31m" in page.words


def test_every_finding_can_be_linked_and_replayed(run: RunStore, page: Page) -> None:
    """Each finding has an anchor of its own and a command, to read and to copy, that names its capsule."""
    ids = sorted(set(run.frame("findings")["id"]))
    commands = [f"uv run harness replay {run.path / 'capsules' / f'{name}.json'}" for name in ids]
    assert len(ids) == 2
    assert sorted(name for name in page.attributes("id") if name.startswith("finding-")) == [
        f"finding-{i}" for i in ids
    ]
    assert sorted(page.attributes("data-copy")) == commands
    assert all(command in page.words for command in commands)


def test_page_loads_nothing_from_the_network(page: Page) -> None:
    """Scripts, styles and images come from beside the page, and its content policy forbids anything else."""
    loading = [attributes for tag, attributes in page.elements if tag in ("script", "link", "img")]
    sources = [str(attributes.get(name) or "") for attributes in loading for name in ("src", "href")]
    assert not [source for source in sources if source.lower().startswith(("http:", "https:", "//"))]
    assert "assets/plotly.min.js" in sources
    assert any("default-src 'none'" in content for content in page.attributes("content"))


def test_matrix_counts_the_stored_verdicts(run: RunStore, page: Page) -> None:
    """Every number of the agreement matrix equals the verdict rows of that pair, property and kind."""
    shown: dict[tuple[str, str, str], int] = {}
    pair = prop = ""
    for _, attributes in page.elements:
        pair = attributes.get("data-pair") or pair
        prop = attributes.get("data-property") or prop
        if kind := attributes.get("data-verdict"):
            shown[pair, prop, kind] = int(attributes["data-count"] or -1)
    verdicts = run.frame("verdicts")
    names = verdicts["left"].where(verdicts["left"] == verdicts["right"], verdicts["left"] + " - " + verdicts["right"])
    stored = verdicts.assign(pair=names).groupby(["pair", "property", "verdict"]).size().to_dict()
    assert shown == stored
    assert {kind for _, _, kind in shown} == set(VERDICTS)


def test_a_curve_is_drawn_or_its_absence_explained(page: Page) -> None:
    """A finding with arrays gets its KL by position; a crash says in words why there is none."""
    assert page.attributes("data-figure") == ["data-kl-overview", f"data-kl-{0x30:08x}"]
    assert "There is no curve" in page.words
    assert "1 position not drawn" in page.words, "the NaN"


def test_counts_stand_beside_both_rules(page: Page) -> None:
    """An image shows the reference rule, the exact contract, each subject's counts and its placeholders."""
    text = " ".join(page.words.split())
    assert "reference rule 139, exact contract 280 of 280 rounding-sensitive" in text
    assert "hf 2; vllm 2." in text


def test_figures_escape_what_ends_a_script() -> None:
    """JSON of a figure never holds the characters that could close its script element."""
    arrays = {"roles": np.zeros(2, dtype=np.int8), "kl/a/</script><b>": np.ones(2)}
    assert "<" not in figures.kl_positions(arrays, {})


@pytest.mark.parametrize("cases", [0, 2])
def test_page_of_a_run_without_findings(tmp_path: Path, cases: int) -> None:
    """A run in which all agreed, and one that ended before its first case, still give a page that says so."""
    run = make_run(tmp_path, with_findings=False) if cases else RunStore.create(tmp_path, {}, [])
    page = Page(site.build(load_run(run), tmp_path / "site").read_text(encoding="utf-8"))
    text = " ".join(page.words.split())
    assert f"{cases} cases, 0 unexpected findings, 0 known" in text
    assert ("every property held" if cases else "no case has finished") in text


@pytest.mark.parametrize("text", ["cause = 'the known cause'\nlink = 'javascript:alert(1)'", "not toml", None])
def test_known_cause_is_told_if_its_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """A known deviation shows its cause; a file that is gone or broken does not stop the page, nor does a bad link."""
    monkeypatch.setattr(site, "DEVIATIONS", tmp_path)
    if text:
        (tmp_path / "known.toml").write_text(text)
    run = make_run(tmp_path / "store", with_findings=False)
    finding = dataclasses.replace(finding_of(BY_KL, VERDICTS_BY_CASE[BY_KL][2], 1), deviation="known")
    run.append({"findings": [dataclasses.asdict(finding) | {"subjects": "[]"}]})
    write_json(run.path / "capsules" / "00000001.json", Capsule(SCHEMA_VERSION, finding, BY_KL, {}, "float32", "cpu"))
    page = Page(site.build(load_run(run), tmp_path / "site").read_text(encoding="utf-8"))
    assert ("the known cause" if text and text.startswith("cause") else "no longer in cases/deviations/") in page.words
    assert not any(href.startswith("javascript") for href in page.attributes("href"))
