"""What a case from outside may ask for: sizes that fit a machine, numbers that mean something. Layer 1.

`schema.py` says of what type a field is. Here stands, in one place, which values are sense: a capsule comes from a
stranger, and an image of 20,000 x 20,000 px or a recording of -1 samples is no input that an engine got wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from harness.errors import UserError
from harness.media import MAX_PIXELS, MAX_SAMPLES
from harness.schema import Capsule, Case, Part

RANGES: Mapping[str, tuple[float, float]] = {
    "width_px": (1, 20_000),
    "height_px": (1, 20_000),
    "orientation": (1, 8),
    "samples": (0, MAX_SAMPLES),
    "rate_hz": (1, 768_000),
    "frames": (1, 10_000),
    "fps": (0.001, 1_000),
    "seed": (0, 2**63 - 1),
    "at": (0, 2**31 - 1),
    "tokens": (1, 64),
}
"""Field -> least and largest value, whatever it is a field of."""

MAX_PARTS = 1_000
MAX_MEDIA = 16
"""Recordings of the longest kind that a case may have as much sound as."""

MAX_S = 3_600
"""Of one recording: a low rate makes a long one of few samples."""

MAX_INDEX = 10**9
MAX_CHARACTERS = 1_000_000
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")


def require_sense(case: Case, source: str) -> None:
    """Refuse a case with a value that is out of range.

    Raises:
        UserError: the message names the source, the field, its value, and what is allowed.
    """
    for problem in _problems(case):
        raise UserError(f"{source}: {problem}")


def require_sound(capsule: Capsule, source: str) -> None:
    """Refuse a capsule with a value that is out of range, or of a type or device that nothing computes in.

    Raises:
        UserError: the message names the source, the field, its value, and what is allowed.
    """
    if capsule.dtype not in DTYPES:
        raise UserError(f"{source}: dtype {capsule.dtype!r}: must be one of {', '.join(DTYPES)}")
    if capsule.device not in DEVICES:
        raise UserError(f"{source}: device {capsule.device!r}: must be one of {', '.join(DEVICES)}")
    finding = capsule.finding
    if not re.fullmatch(r"[\w-]{1,64}", finding.id):
        raise UserError(f"{source}: finding.id {finding.id[:80]!r}: must be 1 to 64 letters and digits")
    if finding.signature.count("/") < 2:
        raise UserError(f"{source}: finding.signature {finding.signature!r}: must be PROPERTY/STAGE/SUSPECT")
    if finding.limit is not None and not finding.limit >= 0:
        raise UserError(f"{source}: finding.limit {finding.limit}: must not be negative")
    require_sense(capsule.case, source)


def _problems(case: Case) -> Iterator[str]:
    companion = case.probe.companion if case.probe else ()
    if len(case.parts) + len(companion) > MAX_PARTS:
        yield f"case has {len(case.parts) + len(companion)} parts: at most {MAX_PARTS}"
    for where, parts in (("parts", case.parts), ("probe.companion", companion)):
        for index, part in enumerate(parts):
            yield from _of_part(part, f"case.{where}.{index}")
    for where, value in (("probe", case.probe), ("continuation", case.continuation)):
        if value is not None:
            yield from _out_of_range(value, f"case.{where}")
    texts = {"system": case.system, **(asdict(case.tool) if case.tool else {})}
    for name, text in texts.items():
        if len(text) > MAX_CHARACTERS:
            where = "case" if name == "system" else "case.tool"
            yield f"{where}.{name} has {len(text)} characters: at most {MAX_CHARACTERS}"
    every = (*case.parts, *companion)
    heard = sum(part.audio.samples for part in every if part.audio)
    if heard > MAX_MEDIA * MAX_SAMPLES:
        yield f"case has {heard:,} samples in all: at most {MAX_MEDIA * MAX_SAMPLES:,}"


def _of_part(part: Part, where: str) -> Iterator[str]:
    if sum(medium is not None for medium in (part.image, part.audio, part.video)) + bool(part.text) > 1:
        yield f"{where} is several things: give each a part of its own"
    if len(part.text) > MAX_CHARACTERS:
        yield f"{where}.text has {len(part.text)} characters: at most {MAX_CHARACTERS}"
    for name in ("image", "audio", "video"):
        spec = getattr(part, name)
        if spec is not None:
            yield from _out_of_range(spec, f"{where}.{name}")
    if part.image and (area := part.image.width_px * part.image.height_px) > MAX_PIXELS:
        size = f"{part.image.width_px} x {part.image.height_px}"
        yield f"{where}.image is {size} px, {area:,} in all: at most {MAX_PIXELS:,}"
    if part.audio and part.audio.samples > MAX_S * part.audio.rate_hz:
        length = f"{part.audio.samples} samples at {part.audio.rate_hz} Hz"
        yield f"{where}.audio is {length}: at most {MAX_S} s"
    if part.video:
        video = part.video
        if (area := video.frames * video.width_px * video.height_px) > MAX_PIXELS:
            yield f"{where}.video has {area:,} px in all its frames: at most {MAX_PIXELS:,}"
        shown = video.indices
        if shown is not None and (len(shown) != video.frames or not 0 <= min(shown) <= max(shown) <= MAX_INDEX):
            yield f"{where}.video.indices {shown}: must be {video.frames} numbers from 0 to {MAX_INDEX:,}, one a frame"


def _out_of_range(value: Any, where: str) -> Iterator[str]:
    for name, (least, largest) in RANGES.items():
        own = getattr(value, name, None)
        if own is not None and (not math.isfinite(own) or not least <= own <= largest):
            yield f"{where}.{name} {own}: must be between {least:,} and {largest:,}"
