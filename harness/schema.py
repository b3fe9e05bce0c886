"""The words of the harness as frozen dataclasses. Layer 0: standard library only.

This file crosses into the environment of every engine, so it may import nothing that a release from two
years ago lacks. Files from outside are validated against these same classes by `harness.store`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

SCHEMA_VERSION = 1
"""Of cases, capsules and stored rows. Readers refuse any other number, older or newer."""

SoftTokenBudget = Literal[70, 140, 280, 560, 1120]
ColourMode = Literal["RGB", "L", "RGBA"]
Pattern = Literal["noise", "gradient", "checker", "stripes", "solid"]
PromptForm = Literal["raw", "turn"]
OutcomeKind = Literal["ok", "rejected", "crashed", "timeout", "unavailable"]
VerdictKind = Literal["agree", "differ", "not comparable"]
Property = Literal["P1", "P2", "P6", "P7"]

PROPERTIES: dict[Property, str] = {
    "P1": "expanded prompt ids are identical",
    "P2": "predicted count = placeholders = feature rows <= declared maximum",
    "P6": "teacher-forced per-token KL",
    "P7": "stage-wise features: pixels, positions, tower and projector rows",
}

ROLES = ("text_before", "boi", "soft", "eoi", "after_media", "rest")
"""The role of a position of an expanded prompt, by which divergences are reported; stored as an index into this."""

_FORBID_EXTRA = {"extra": "forbid"}


@dataclass(frozen=True)
class ImageSpec:
    """An image as parameters; `harness.media` makes the pixels from it, the same ones everywhere."""

    width_px: int
    height_px: int
    mode: ColourMode = "RGB"
    pattern: Pattern = "noise"
    seed: int = 0
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Part:
    """A piece of a prompt: text, or one image.

    An image stands in the prompt as one bare placeholder, or `expanded`: begin-of-image, one placeholder per
    soft token, end-of-image.
    """

    text: str = ""
    image: ImageSpec | None = None
    expanded: bool = False
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Case:
    """One input, described by small parameters. `model` is a zoo name or a checkpoint directory."""

    model: str
    parts: tuple[Part, ...]
    max_soft_tokens: SoftTokenBudget = 280
    form: PromptForm = "raw"
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    @property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 of the case's canonical JSON."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def images(self) -> tuple[ImageSpec, ...]:
        """The images in prompt order."""
        return tuple(part.image for part in self.parts if part.image is not None)


@dataclass(frozen=True)
class Request:
    """What a worker is asked to run: a case rendered to text, and the file that holds its images.

    `images_path` is a safetensors file with `image.0`, `image.1`, ...: uint8 (H, W) or (H, W, channels).
    The worker writes the arrays of its observation to `arrays_path`, also safetensors.
    """

    case_id: str
    prompt: str
    expanded: bool
    max_soft_tokens: int
    images_path: str
    arrays_path: str


@dataclass(frozen=True)
class Counts:
    """Soft tokens of one image as one subject counts them.

    `predicted` comes from the subject's own counting function, `feature_rows` from the rows that it put into
    the prompt, `declared_max` from what it declares before it sees the image.
    """

    predicted: int
    feature_rows: int
    declared_max: int


@dataclass(frozen=True)
class Observation:
    """What one subject did with one case.

    Arrays, by stage: `prompt_ids` (T,) int64; `pixels.k` (patches, patch values) and `positions.k`
    (patches, 2) without padding; `mm_features.k` (rows, hidden); `hidden` (T, hidden), final and normed;
    `logprobs` (T-1,), entry t for token t+1. Floating arrays are float32 whatever the engine computed in.
    """

    case_id: str
    subject: str
    outcome: OutcomeKind
    message: str = ""
    signature: str = ""
    counts: tuple[Counts, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    engine_s: float = 0.0
    arrays_path: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What a subject said when it loaded a checkpoint. The first three lists are empty when all is well."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    load_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """One property of one case between two subjects (or within one: `left` and `right` are then the same)."""

    property: Property
    stage: str
    left: str
    right: str
    verdict: VerdictKind
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """A property that does not hold for one case. `deviation` names the known cause, or is empty."""

    id: str
    signature: str
    property: Property
    stage: str
    subjects: tuple[str, ...]
    suspect: str
    model: str
    case_id: str
    measured: float | None
    limit: float | None
    unit: str
    detail: str
    deviation: str = ""


@dataclass(frozen=True)
class Capsule:
    """One file that replays a finding anywhere."""

    schema: int
    finding: Finding
    case: Case
    subjects: dict[str, dict[str, str]]
    dtype: str
    device: str
    __pydantic_config__: ClassVar = _FORBID_EXTRA


def to_json(value: Any) -> str:
    """One line of JSON for a dataclass of this file."""
    return json.dumps(dataclasses.asdict(value), separators=(",", ":"))


def error_signature(text: str) -> str:
    """An error's last line with what differs between cases taken out: numbers, paths, addresses."""
    last = text.strip().splitlines()[-1] if text.strip() else "no message"
    last = re.sub(r"0x[0-9a-fA-F]+", "ADDR", last)
    last = re.sub(r"(/[\w.\-]+)+", "PATH", last)
    return re.sub(r"\d+(\.\d+)?", "#", last)[:160]
