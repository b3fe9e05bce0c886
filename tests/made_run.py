"""A small run made by hand, with what strangers may write into prompts and messages, for tests of the pages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.schema import SCHEMA_VERSION, Capsule, Case, Counts, Finding, ImageSpec, Part, Verdict
from harness.store import RunStore, write_json

HOSTILE = "</script><script>alert('owned')</script><img src=https://evil.example/x.png onerror=alert(1)> \"'&{{ 7*7 }}"
RIGHT_TO_LEFT = "\u202eשלום عالم"
LONG = "ab " * 3_334
BY_KL = Case(
    "tiny-31b", (Part(HOSTILE + RIGHT_TO_LEFT + LONG), Part(image=ImageSpec(154, 55)), Part("after \x00\x1b[31m"))
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


def finding_of(case: Case, verdict: Verdict, number: int) -> Finding:
    """The finding of a verdict."""
    signature = f"{verdict.property}/{verdict.stage}/vllm"
    subjects = (verdict.left, verdict.right)
    measured = verdict.measured, verdict.limit, verdict.unit, verdict.reason
    return Finding(
        f"{number:08x}", signature, verdict.property, verdict.stage, subjects, "vllm", case.model, case.id, *measured
    )


def observation_rows(case: Case) -> Iterator[dict[str, Any]]:
    for subject, outcome in (("hf", "ok"), ("vllm", "ok" if case.images else "crashed")):
        counts = [dataclasses.asdict(Counts(252, 252, 1120)) for _ in case.images]
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
    image = {"index": 0, "max_soft_tokens": 280, "reference": 252, "contract": 280, "mode": "RGB", "pattern": "noise"}
    return {
        "cases": [keys | {"images": len(case.images), "form": case.form, "max_soft_tokens": 280, "case": "{}"}],
        "images": [keys | image | dataclasses.asdict(spec) for spec in case.images],
        "observations": [keys | row for row in observation_rows(case)],
        "verdicts": [keys | dataclasses.asdict(verdict) for verdict in verdicts],
        "divergences": [keys | row for row in divergence_rows(case)],
        "findings": [dataclasses.asdict(finding) | {"subjects": json.dumps(finding.subjects)} for finding in found],
    }


def make_run(store: Path, *, with_findings: bool = True) -> RunStore:
    """A run of two cases, one with findings of KL and one that crashed; without, the same cases agree."""
    run = RunStore.create(store, HEADER, list(VERDICTS_BY_CASE))
    for case, verdicts in VERDICTS_BY_CASE.items():
        kept = [v for v in verdicts if with_findings or v.verdict == "agree"]
        differing = [v for v in kept if v.verdict == "differ" and v.stage in ("hidden", "outcome")]
        found = [finding_of(case, verdict, 16 * len(case.parts) + k) for k, verdict in enumerate(differing)]
        run.append(rows_of(case, kept, found))
        for index in range(len(case.images)):
            Image.new("RGB", (154, 55), "teal").save(run.path / "media" / f"{case.id}-{index}.png")
        for finding in found:
            capsule = Capsule(SCHEMA_VERSION, finding, case, {}, "float32", "cpu")
            write_json(run.path / "capsules" / f"{finding.id}.json", capsule)
    roles = np.array([0, 1, 2, 2, 3, 4, 4, 5, 5], dtype=np.int8)
    ids = np.array([5, 7, 8, 8, 9, 5, 5, 5, 5])
    kl = np.array([0.0, 1e-9, 5.5, 1.0, 0.0, np.nan, 1.0, 1.0, 1.0])
    run.write_arrays(BY_KL.id, {"roles": roles, "kl/hf/vllm": kl, "prompt_ids/hf": ids, "prompt_ids/vllm": ids})
    return run
