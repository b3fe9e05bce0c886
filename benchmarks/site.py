"""What a site of a large run costs: a SYNTHETIC store of 100,000 cases and 2,000 findings, rendered and opened.

    uv run python -m benchmarks.site [--cases 100000] [--findings 2000] [--json FILE]

Nothing in that store was measured by an engine: cases, verdicts and numbers are drawn at random, in the shape that a
run leaves. Only the time of reading and rendering, the size of the site, and how soon Chromium can use it mean
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from playwright.sync_api import Page, sync_playwright

from harness.media import thumbnail
from harness.records import _case_row
from harness.schema import PROPERTIES, ROLES, SCHEMA_VERSION, Capsule, Case, Finding, ImageSpec, Part
from harness.spec import SOFT_TOKEN_BUDGETS, is_exact_ratio, soft_tokens
from harness.store import TABLES, RunStore, write_json
from harness.zoo import FEATURE_NAMES, NAMES
from reports import load, site

MODELS = (*NAMES, *FEATURE_NAMES)
SUBJECTS = ("hf", "vllm", "native")
PAIRS = (("hf", "vllm"), ("hf", "native"), ("vllm", "native"))
ASKED = (
    ("P1", "outcome"), ("P1", "prompt_ids"), ("P6", "hidden"), ("P7", "pixels"), ("P7", "mm_features"),
)  # fmt: skip
PART_CASES = 500
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


def drawn_cases(count: int, draw: np.random.Generator) -> list[Case]:
    """Random cases, grouped by model as a run has them."""
    words = ["look", "at", "this", "<|turn>", "שלום", "表", "and", "say"]
    cases = []
    for number in range(count):
        model = MODELS[number * len(MODELS) // count]
        budget = SOFT_TOKEN_BUDGETS[draw.integers(len(SOFT_TOKEN_BUDGETS))]
        sides = np.exp(draw.uniform(0, np.log(20_000), (draw.integers(0, 3), 2))).astype(int)
        patterns = ("noise", "gradient", "checker", "stripes", "solid")
        images = [
            Part(image=ImageSpec(int(w), int(h), pattern=patterns[draw.integers(5)], seed=number))  # type: ignore[arg-type]
            for w, h in sides
        ]
        text = " ".join(draw.choice(words, draw.integers(1, 40)))
        cases.append(Case(model, (Part(f"{number} {text}"), *images), budget, ("raw", "turn", "chat")[number % 3]))  # type: ignore[arg-type]
    return cases


def tables(cases: list[Case], draw: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Rows of every table but findings, a column at a time."""
    keys = pd.DataFrame({"case_id": [case.id for case in cases], "model": [case.model for case in cases]})
    rows = pd.DataFrame([_case_row(case) for case in cases])
    images = pd.DataFrame(
        {"case_id": case.id, "model": case.model, "index": k, **vars(image)}
        | {
            "max_soft_tokens": case.max_soft_tokens,
            **vars(soft_tokens(image.width_px, image.height_px, case.max_soft_tokens)),
        }
        | {"exact_ratio": is_exact_ratio(image.width_px, image.height_px, case.max_soft_tokens)}
        for case in cases
        for k, image in enumerate(case.images)
    ).drop(columns="seed")
    counts = images.groupby("case_id", sort=False)["reference"].agg(
        lambda found: json.dumps(
            [{"predicted": int(n), "feature_rows": int(n), "declared_max": 1120, "medium": "image"} for n in found]
        )
    )
    observations = keys.merge(pd.DataFrame({"subject": SUBJECTS}), how="cross")
    observations = observations.assign(
        outcome=np.where(draw.random(len(observations)) < 0.01, "crashed", "ok"), message="", signature="",
        counts=observations["case_id"].map(counts).fillna("[]"), digests="{}", probe=False,
        tokens=draw.integers(5, 3_000, len(observations)), engine_s=draw.exponential(0.1, len(observations)),
    )  # fmt: skip
    pairs = pd.DataFrame(PAIRS, columns=["left", "right"])
    asked = pairs.merge(pd.DataFrame(ASKED, columns=["property", "stage"]), how="cross")
    verdicts = keys.merge(asked, how="cross")
    chance = draw.random(len(verdicts))
    verdicts = verdicts.assign(
        verdict=np.select([chance < 0.01, chance < 0.04], ["differ", "not comparable"], "agree"),
        measured=10 ** draw.normal(-9, 1, len(verdicts)), limit=1e-5, unit="nats",
        reason=np.where((chance >= 0.01) & (chance < 0.04), "vllm crashed", ""),
    )  # fmt: skip
    divergences = keys.merge(pairs, how="cross").merge(pd.DataFrame({"role": ["all", *ROLES]}), how="cross")
    size = len(divergences)
    numbers = {
        name: 10 ** draw.normal(-9, 1, size) for name in ("mean", "p50", "p99", "p99_9", "max", "js_mean", "js_max")
    }
    divergences = divergences.assign(n=draw.integers(1, 1_000, size), same_top1=1.0, **numbers)
    return {
        "cases": pd.concat([keys, rows], axis=1), "images": images, "observations": observations,
        "verdicts": verdicts, "divergences": divergences,
    }  # fmt: skip


def drawn_findings(cases: list[Case], count: int, draw: np.random.Generator) -> Iterator[tuple[Finding, list[Case]]]:
    """`count` groups by signature and model, each with its example first."""
    by_model = {model: [case for case in cases if case.model == model] for model in MODELS}
    properties = list(PROPERTIES)
    for number in range(count):
        model, kind = MODELS[number % len(MODELS)], number // len(MODELS)
        prop = properties[kind % len(properties)]
        signature = f"{prop}/stage.{kind // len(properties)}/vllm crashed: synthetic error {kind}"
        shown = [by_model[model][k] for k in draw.integers(0, len(by_model[model]), draw.integers(1, 10))]
        known = "vllm-count-rounding" if number % 3 else ""
        yield Finding(
            f"{number:08x}", signature, prop, "hidden" if number % 2 else "counts", ("hf", "vllm"), "vllm", model,
            shown[0].id, float(10 ** draw.normal(0, 1)), 1e-5, "nats", "synthetic " * 12, known,
        ), shown  # fmt: skip


def make_store(store: Path, count: int, findings: int) -> RunStore:
    """A synthetic run."""
    draw = np.random.default_rng(0)
    cases = drawn_cases(count, draw)
    ran = {name: {"engine": name, "version": {name: "synthetic"}, "status": "ok", "reason": ""} for name in SUBJECTS}
    plan = {
        "models": MODELS,
        "cases": count,
        "seed": 0,
        "properties": list(PROPERTIES),
        "dtype": "float32",
        "device": "cpu",
    }
    timing = {"wall_s": 0.0, "startup_s": 0.0, "compare_s": 0.0, "engine_s": {}, "overhead_ratio": 0.0}
    run = RunStore.create(
        store, {"plan": plan, "subjects": ran, "timing": timing, "environment": {"harness": "SYNTHETIC"}}, cases
    )
    made = tables(cases, draw)
    rows = []
    for finding, shown in drawn_findings(cases, findings, draw):
        rows += [vars(finding) | {"case_id": case.id, "subjects": json.dumps(finding.subjects)} for case in shown]
        _keep_example(run, finding, shown[0], draw)
    made["findings"] = pd.DataFrame(rows)
    places = {case.id: number // PART_CASES for number, case in enumerate(cases)}
    split = {name: dict(tuple(frame.groupby(frame["case_id"].map(places)))) for name, frame in made.items()}
    for part in range((count - 1) // PART_CASES + 1):
        own = {name: frames[part] for name, frames in split.items() if part in frames}
        run._write_part(
            f"{part * PART_CASES + 1:06d}-{(part + 1) * PART_CASES:06d}",
            {
                name: pa.Table.from_pandas(_whole(frame, name), pa.schema(TABLES[name]), preserve_index=False)
                for name, frame in own.items()
            },
        )
    return run


def _whole(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """A frame with every column of its table."""
    return frame.reindex(columns=list(TABLES[table])).astype(object).where(lambda values: values.notna(), None)


def _keep_example(run: RunStore, finding: Finding, case: Case, draw: np.random.Generator) -> None:
    write_json(
        run.path / "capsules" / f"{finding.id}.json", Capsule(SCHEMA_VERSION, finding, case, {}, "float32", "cpu")
    )
    roles = np.repeat(np.arange(6, dtype=np.int8), [20, 1, 250, 1, 8, 40])
    ids = draw.integers(0, 1_000, len(roles))
    curves = {f"kl/{a}/{b}": np.abs(draw.normal(0, 1e-9, len(roles))) for a, b in PAIRS}
    run.write_arrays(case.id, {"roles": roles, **{f"prompt_ids/{name}": ids for name in SUBJECTS}, **curves})
    for index, image in enumerate(case.images):
        if image.width_px * image.height_px < 4_000_000:  # Larger ones take seconds each to draw.
            thumbnail(image, 512).save(run.path / "media" / f"{case.id}-{index}.png")


def opened(page: Page, path: Path) -> dict[str, float]:
    """Milliseconds from the navigation's start until the page can be used, and until a key press has done its work."""
    page.goto(path.as_uri(), wait_until="load")
    times = page.evaluate("JSON.parse(JSON.stringify(performance.getEntriesByType('navigation')[0]))")
    started = time.perf_counter()
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.id === 'search'")
    answer_ms = 1_000 * (time.perf_counter() - started)
    picked = {name: times[name] for name in ("domInteractive", "domContentLoadedEventEnd", "loadEventEnd")}
    return {**{name: round(value, 1) for name, value in picked.items()}, "key_answered_ms": round(answer_ms, 1)}


def measured(store: Path, out: Path) -> dict[str, Any]:
    """Render a store's site and open it."""
    started = time.perf_counter()
    frames = load(store)
    loaded_s = time.perf_counter() - started
    index = site.build(frames, out)
    wall_s = time.perf_counter() - started
    files = [path for path in out.rglob("*") if path.is_file()]
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        assert chromium, "no Chromium on PATH: apt-get install chromium"
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *sandbox])
        page = browser.new_page()
        page.goto("about:blank")
        example = sorted((out / "findings").glob("*.html"))[0]
        names = {"overview": index, "findings": out / "findings.html", "finding": example}
        opens = {name: [opened(page, path) for _ in range(5)] for name, path in names.items()}
        version = browser.version
        browser.close()
    return {
        "synthetic": True,
        "cases": len(frames.cases),
        "verdicts": len(frames.verdicts),
        "divergences": len(frames.divergences),
        "findings": frames.findings["id"].nunique(),
        "load_s": round(loaded_s, 1),
        "render_s": round(wall_s - loaded_s, 1),
        "wall_s": round(wall_s, 1),
        "process_s": round(time.process_time(), 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "files": len(files),
        "site_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "load_average": os.getloadavg(),
        "chromium": version,
        "opened": opens,
    }


def main() -> None:
    """Make the store, measure in a process of its own, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--findings", type=int, default=2_000)
    parser.add_argument("--store", type=Path, help="where the synthetic store is or goes; default: a temporary place")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = chosen.store or Path(scratch) / "store"
        if not store.is_dir():
            started = time.perf_counter()
            make_store(store, chosen.cases, chosen.findings)
            print(f"made the synthetic store in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        result = measured(store, Path(scratch) / "site")
    text = json.dumps(result, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
