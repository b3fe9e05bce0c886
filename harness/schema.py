"""The words of the harness as frozen dataclasses. Layer 0: standard library only.

This file crosses into the environment of every engine, so it may import nothing that a release from two
years ago lacks. Files from outside are validated against these same classes by `harness.store`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

SCHEMA_VERSION = 2
"""Of cases, capsules and stored rows. Readers refuse any other number, older or newer."""

SoftTokenBudget = Literal[70, 140, 280, 560, 1120]
ColourMode = Literal["RGB", "L", "RGBA", "LA", "P", "CMYK", "I;16", "1"]
Pattern = Literal["noise", "gradient", "checker", "stripes", "solid"]
Waveform = Literal["noise", "tone", "chirp", "clicks", "silence"]
PromptForm = Literal["raw", "turn", "chat"]
Medium = Literal["image", "audio", "video"]
ModelType = Literal["", "float32", "bfloat16", "float16"]
OutcomeKind = Literal["ok", "rejected", "crashed", "timeout", "unavailable", "failed"]
VerdictKind = Literal["agree", "differ", "not comparable"]
Property = Literal["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12"]
ProbeKind = Literal[
    "visibility", "batch", "batch_last", "padding", "chunked", "decode", "prefix_cache", "processor_cache",
    "static_cache", "forward", "repeat", "chat", "ids", "expanded", "tensor",
]  # fmt: skip

PROPERTIES: dict[Property, str] = {
    "P1": "expanded prompt ids are identical",
    "P2": "predicted count = placeholders = feature rows <= declared maximum",
    "P3": "attention sees what the mask rule says",
    "P4": "batching, padding and order do not change a sample",
    "P5": "the execution path does not change a sample: chunks, caches, decoding",
    "P6": "teacher-forced per-token KL",
    "P7": "stage-wise features: pixels, positions, tower and projector rows",
    "P8": "every config variant starts, loads every tensor, and every tensor matters",
    "P9": "prompt forms are equivalent, and processing leaves no state behind",
    "P10": "video frames, indices and timestamps",
    "P11": "audio lengths",
    "P12": "reduced precision stays finite",
}

PROBES: dict[ProbeKind, Property] = {
    "visibility": "P3",
    "batch": "P4",
    "batch_last": "P4",
    "padding": "P4",
    "chunked": "P5",
    "decode": "P5",
    "prefix_cache": "P5",
    "processor_cache": "P5",
    "static_cache": "P5",
    "forward": "P5",
    "tensor": "P8",
    "repeat": "P9",
    "chat": "P9",
    "ids": "P9",
    "expanded": "P9",
}
"""The property that each kind of probe checks."""

SILENT: tuple[OutcomeKind, ...] = ("unavailable", "failed")
"""Outcomes that say nothing of an engine: it cannot run here, or the harness or the machine failed."""

ROLES = ("text_before", "boi", "soft", "eoi", "after_media", "rest")
"""The role of a position of an expanded prompt, by which divergences are reported; stored as an index into this."""

_FORBID_EXTRA = {"extra": "forbid"}


@dataclass(frozen=True)
class ImageSpec:
    """An image as parameters; `harness.media` makes the pixels from it, the same ones everywhere.

    `orientation` is the EXIF tag, 1 to 8; sizes are those of the stored pixels, before it is applied.
    """

    width_px: int
    height_px: int
    mode: ColourMode = "RGB"
    pattern: Pattern = "noise"
    seed: int = 0
    orientation: int = 1
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class AudioSpec:
    """A mono recording as parameters."""

    samples: int
    rate_hz: int = 16_000
    pattern: Waveform = "noise"
    seed: int = 0
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class VideoSpec:
    """A video as parameters. With `indices`, the frames are those shown, and these their numbers in the whole video."""

    frames: int
    width_px: int
    height_px: int
    fps: float | None = 24.0
    indices: tuple[int, ...] | None = None
    pattern: Pattern = "gradient"
    seed: int = 0
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Part:
    """A piece of a prompt: text, or one image, recording or video.

    A medium stands in the prompt as one bare placeholder, or `expanded`: begin, one placeholder per soft token, end.
    """

    text: str = ""
    image: ImageSpec | None = None
    audio: AudioSpec | None = None
    video: VideoSpec | None = None
    expanded: bool = False
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    @property
    def medium(self) -> Medium | None:
        """What the part is, if it is no text."""
        return "image" if self.image else "audio" if self.audio else "video" if self.video else None


@dataclass(frozen=True)
class Probe:
    """The same input taken another way, beside the plain way, in each subject; `PROBES` says what must then hold.

    `at` is a number whose meaning depends on the kind: a position, a chunk length, a tensor's number. `companion` is
    the other prompt of a batch.
    """

    kind: ProbeKind
    at: int = 0
    companion: tuple[Part, ...] = ()
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class ToolUse:
    """A tool that the system turn declares, the model's call of it, and its answer, behind which the model goes on."""

    name: str = "look"
    argument: str = "a"
    response: str = "a"
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Continuation:
    """Each subject goes on with the prompt by up to `tokens` tokens: greedily, or sampled where there is a seed."""

    tokens: int = 8
    seed: int | None = None
    __pydantic_config__: ClassVar = _FORBID_EXTRA


@dataclass(frozen=True)
class Case:
    """One input, described by small parameters. `model` is a zoo name or a checkpoint directory.

    `system` is the text of a system turn, and `tool` a tool that was used after the user's turn, both for the forms
    `turn` and `chat`. `dtype` overrides the run's; empty is the run's own.
    """

    model: str
    parts: tuple[Part, ...]
    max_soft_tokens: SoftTokenBudget = 280
    form: PromptForm = "raw"
    system: str = ""
    dtype: ModelType = ""
    probe: Probe | None = None
    tool: ToolUse | None = None
    continuation: Continuation | None = None
    __pydantic_config__: ClassVar = _FORBID_EXTRA

    @property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 of the case's canonical JSON, in which defaults are left out."""
        text = json.dumps(_without_defaults(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def images(self) -> tuple[ImageSpec, ...]:
        """The images in prompt order."""
        return tuple(part.image for part in self.parts if part.image is not None)

    @property
    def audios(self) -> tuple[AudioSpec, ...]:
        """The recordings in prompt order."""
        return tuple(part.audio for part in self.parts if part.audio is not None)

    @property
    def videos(self) -> tuple[VideoSpec, ...]:
        """The videos in prompt order."""
        return tuple(part.video for part in self.parts if part.video is not None)


@dataclass(frozen=True)
class Request:
    """What a worker is asked to run: a case, its prompt as text, and the file that holds its media.

    `media_path` is a safetensors file with `image.0` uint8 (H, W) or (H, W, channels), `audio.0` float32 (samples,),
    `video.0` uint8 (frames, H, W, 3) and so on; those of a batch companion start with `companion.`. The worker writes
    the arrays of its observation to `arrays_path`, also safetensors. With `probe` it runs the case as its probe says.
    `expanded` is the prompt with every placeholder written out, where the probe asks for that. With `deep` the stages
    of the decoder are recorded too. `grafts_path` is a safetensors file of stages that replace the subject's own. With
    `generate` it goes on with the prompt by so many tokens and writes them as `continuation`; with a `continuation` it
    scores prompt and continuation, in one pass or, `singly`, the continuation token by token.
    """

    case: Case
    prompt: str
    media_path: str
    arrays_path: str
    companion: str = ""
    probe: bool = False
    expanded: str = ""
    deep: bool = False
    grafts_path: str = ""
    generate: int = 0
    continuation: tuple[int, ...] = ()
    singly: bool = False


@dataclass(frozen=True)
class Counts:
    """Soft tokens of one image, recording or video as one subject counts them, in the order of the arrays.

    `predicted` comes from the subject's own counting function, `feature_rows` from the rows that it put into
    the prompt, `declared_max` from what it declares before it sees the image.
    """

    predicted: int
    feature_rows: int
    declared_max: int
    medium: Medium = "image"


@dataclass(frozen=True)
class Observation:
    """What one subject did with one case, or with its probe.

    Arrays, by stage: `prompt_ids` (T,) int64; `pixels.k` (patches, patch values) and `positions.k`
    (patches, 2) without padding; `mm_features.k` (rows, hidden); `hidden` (T, hidden), final and normed;
    `logprobs` (T-1,), entry t for token t+1. The k-th recording and video have `audio_features.k` and
    `video_features.k` (rows, hidden). If the request asks for depth, `merged_embeddings`, what enters the decoder, and
    `layer.k`, what leaves its layers, (T, hidden). Floating arrays are float32 whatever the engine computed in.
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
    probe: bool = False


@dataclass(frozen=True)
class LoadReport:
    """What a subject said when it loaded a checkpoint. The first three lists are empty when all is well.

    `unchecked` says why nothing can be said of it, where that is so: a subject without weights, or that has no such
    model.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
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


def _without_defaults(value: Any) -> Any:
    """A dataclass as JSON values, fields that have their default left out: a new field then changes no id."""
    if isinstance(value, (list, tuple)):
        return [_without_defaults(entry) for entry in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((entry, getattr(value, entry.name)) for entry in dataclasses.fields(value))
    return {entry.name: _without_defaults(own) for entry, own in fields if own != entry.default}


def case_of(value: Mapping[str, Any]) -> Case:
    """The case that `dataclasses.asdict` was made of, in an environment that has no pydantic."""
    probe = value["probe"] and {**value["probe"], "companion": _parts_of(value["probe"]["companion"])}
    tool = value["tool"] and ToolUse(**value["tool"])
    more = value.get("continuation") and Continuation(**value["continuation"])
    read = {"parts": _parts_of(value["parts"]), "probe": probe and Probe(**probe), "tool": tool, "continuation": more}
    return Case(**{**value, **read})


def _parts_of(values: Iterable[Mapping[str, Any]]) -> tuple[Part, ...]:
    parts = []
    for value in values:
        image, audio, video = value["image"], value["audio"], value["video"]
        if video and video["indices"] is not None:
            video = {**video, "indices": tuple(video["indices"])}
        specs = {
            "image": image and ImageSpec(**image),
            "audio": audio and AudioSpec(**audio),
            "video": video and VideoSpec(**video),
        }
        parts.append(Part(**{**value, **specs}))
    return tuple(parts)


def to_json(value: Any) -> str:
    """One line of JSON for a dataclass of this file."""
    return json.dumps(dataclasses.asdict(value), separators=(",", ":"))


def error_signature(text: str) -> str:
    """An error's last line with what differs between cases taken out: numbers, sums of them, paths, addresses."""
    last = text.strip().splitlines()[-1] if text.strip() else "no message"
    last = re.sub(r"0x[0-9a-fA-F]+", "ADDR", last)
    last = re.sub(r"(?<!\w)(/[\w.\-]+)+", "PATH", last)  # Not the slash of "I/O".
    last = re.sub(r"\d+(\.\d+)?", "#", last)
    return re.sub(r"#( \+ #)+", "#", last)[:160]
