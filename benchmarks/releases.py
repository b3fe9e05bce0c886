"""What releases make of five cases, beside the native engine: the tables of docs/releases.md.

    uv run python benchmarks/releases.py vllm@0.20.0 hf@5.8.0 [--models tiny-e2b tiny-12b]

Each line is one subject, one model and one case: the outcome with its message, or the findings with what was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.campaign import Campaign, Result
from harness.environments import resolve
from harness.fleet import Options, fleet
from harness.schema import AudioSpec, Case, ImageSpec, Part, VideoSpec
from harness.session import locate

START_UP_TIMEOUT_S = 600
MESSAGE_CHARACTERS = 240
MODELS = ("tiny-e2b", "tiny-e4b", "tiny-31b", "tiny-26b-a4b", "tiny-12b")
PROMPTS = {
    "a sentence": (Part(text="The quick brown fox jumps over the lazy dog and tells all."),),
    "100 x 90 px": (Part(text="Look "), Part(image=ImageSpec(100, 90)), Part(text=" what is it here?")),
    "900 x 3 px": (Part(text="Look "), Part(image=ImageSpec(900, 3)), Part(text=" what is it?")),
    "9,000 samples": (Part(text="Hear "), Part(audio=AudioSpec(9000)), Part(text=" what was it?")),
    "3 frames": (
        Part(text="See "),
        Part(video=VideoSpec(3, 80, 60, fps=2.0, indices=(0, 50, 130))),
        Part(text=" what?"),
    ),
}
"""Of every medium one, images at the budget of 280 soft tokens."""


def said(result: Result, name: str) -> Iterator[str]:
    """What one subject made of a case, and how it parts from native."""
    (seen,) = (o for o in result.observations if o.subject == name)
    if seen.outcome != "ok":
        yield f"{seen.outcome}: {' '.join(seen.message.split())[:MESSAGE_CHARACTERS]}"
        return
    counts = "".join(f", {c.predicted} placeholders for {c.feature_rows} rows" for c in seen.counts)
    yield f"ok{counts}"
    for finding in result.findings:
        measured = "" if finding.measured is None else f" {finding.measured:.3g}"
        yield f"{finding.property} {finding.stage}{measured}, suspect {finding.suspect}"


def table(name: str, models: Sequence[str], logs: Path) -> Iterator[str]:
    """The lines of one subject."""
    options = Options(timeout_s=START_UP_TIMEOUT_S)
    with fleet(resolve([name, "native"]), options, logs) as workers:
        for model in models:
            cases = [Case(model, parts, 280) for parts in PROMPTS.values()]
            for words, result in zip(PROMPTS, Campaign(workers, locate).run(cases), strict=True):
                yield f"| {name} | {model} | {words} | {'; '.join(said(result, name))} |"
        yield f"{name}: {workers.versions.get(name)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--models", nargs="+", default=MODELS)
    given = parser.parse_args()
    for name in given.subjects:
        with tempfile.TemporaryDirectory() as logs:
            for line in table(name, given.models, Path(logs)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
