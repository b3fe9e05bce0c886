"""What a case from outside may ask for: sizes that fit a machine, numbers that mean something. Layer 1.

`schema.py` says of what type a field is. Here stands, in one place, which values are sense: a capsule comes from a
stranger, and an image of 20,000 x 20,000 px or a recording of -1 samples is no input that an engine got wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    if len(case.system) > MAX_CHARACTERS:
        yield f"case.system has {len(case.system)} characters: at most {MAX_CHARACTERS}"


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
    if part.video:
        video = part.video
        if (area := video.frames * video.width_px * video.height_px) > MAX_PIXELS:
            yield f"{where}.video has {area:,} px in all its frames: at most {MAX_PIXELS:,}"
        if video.indices is not None and (len(video.indices) != video.frames or min(video.indices, default=0) < 0):
            yield f"{where}.video.indices {video.indices}: must be {video.frames} numbers from 0 on, one a frame"


def _out_of_range(value: Any, where: str) -> Iterator[str]:
    for name, (least, largest) in RANGES.items():
        own = getattr(value, name, None)
        if own is not None and (not math.isfinite(own) or not least <= own <= largest):
            yield f"{where}.{name} {own}: must be between {least:,} and {largest:,}"
