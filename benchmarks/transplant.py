"""Whether `harness explain` attributes a KL to the stage at which a fault was planted.

    uv run python -m benchmarks.transplant [--faults NAME,...] [--json FILE]

Each fault of stages.toml is planted in a copy of native at one known stage. The copy and native run one case of a text
and the medium that the fault is about; every stage of the copy is put into native. The share of the KL that is found to
enter at the right stage must be at least 90 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faulty import STAGES, VARIABLE, Fault, read_faults
from harness.campaign import Campaign
from harness.environments import SUBJECTS, Subject
from harness.fleet import Options, fleet
from harness.schema import AudioSpec, Case, ImageSpec, Part, VideoSpec
from harness.session import locate
from harness.transplant import Graft, transplant

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.9


@dataclass(frozen=True)
class Attributed:
    """One fault: where it was planted, where most of the KL was found to enter, the share at the right stage."""

    fault: str
    planted: str
    found: str
    share: float
    kl_nats: float
    grafts: tuple[Graft, ...]

    @property
    def right(self) -> bool:
        """Whether the goal is met."""
        return self.found == self.planted and self.share >= GOAL


def planted() -> dict[str, Fault]:
    """The faults by name."""
    return {fault.name: fault for fault in read_faults(STAGES)}


def case_for(fault: Fault) -> Case:
    """A prompt with a text and the medium that the fault is about, an image if it is about none in particular."""
    media = {
        "audio_features": Part(audio=AudioSpec(8_000)),
        "video_features": Part(video=VideoSpec(3, 96, 48, indices=(0, 1, 2), pattern="noise")),
    }
    medium = media.get(fault.stage, Part(image=ImageSpec(240, 96)))
    parts = Part(text="what is in "), medium, Part(text=" and in these few words?")
    return Case(fault.models[0], parts, 70)


def attribute(fault: str) -> Attributed:
    """Plant one fault and find it."""
    stage = planted()[fault].stage
    environment = {VARIABLE: fault, "PYTHONPATH": str(ROOT)}
    faulty = Subject("faulty", "benchmarks.faulty:FaultyNative", sys.executable, environment)
    options = Options(properties=("P6",), deep=True)
    with tempfile.TemporaryDirectory() as logs, fleet([SUBJECTS["native"], faulty], options, Path(logs)) as workers:
        campaign = Campaign(workers, locate)
        (result,) = campaign.run([case_for(planted()[fault])])
        native, other = result.sides
        moved = transplant(result.case, other, native, workers, campaign.context)
    assert moved is not None, f"{fault}: the copy and native cannot be laid side by side: {other.observation.message}"
    assert moved.main is not None
    share = sum(graft.enters for graft in moved.grafts if graft.stage == stage)
    return Attributed(fault, stage, moved.main.stage, share, moved.kl, moved.grafts)


def table(found: Sequence[Attributed]) -> str:
    """The result as Markdown."""
    lines = ["| fault | planted at | found at | share of the KL | KL, nats |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {e.fault} | {e.planted} | {e.found} | {e.share:.1%} | {e.kl_nats:.2g} |" for e in found]
    right = sum(entry.right for entry in found)
    return "\n".join([*lines, f"\n{right} of {len(found)} faults attributed to their stage by {GOAL:.0%} or more."])


def main() -> None:
    """Print the table; exit status 1 if a fault is not attributed to its stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="", help="comma-separated; default: all")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = [attribute(name) for name in planted() if not chosen.faults or name in chosen.faults.split(",")]
    print(table(found))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(entry) for entry in found], indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(entry.right for entry in found))


if __name__ == "__main__":
    main()
