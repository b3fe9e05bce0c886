"""A case in words: everything about it that is not the default. Layer 1.

One description for terminal and issues alike. It goes through the fields of the case, so that one which is added later
is said too: what nobody says, nobody suspects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from harness.schema import AudioSpec, Case, ImageSpec, Part, VideoSpec


def in_words(case: Case, *, texts: bool = False) -> str:
    """What a case consists of, in prompt order, and how it is asked; with `texts` what its texts say too."""
    words = [*_parts(case.parts, texts=texts), f"budget {case.max_soft_tokens} soft tokens"]
    if case.probe:
        words.append(" ".join([f"probe {case.probe.kind}", *_others(case.probe, ("kind", "companion"))]))
    if case.probe and case.probe.companion:
        words.append(f"beside it ({', '.join(_parts(case.probe.companion, texts=texts))})")
    if case.system:
        words.append(_text("a system turn", case.system, texts=texts))
    if case.tool:
        words.append(" ".join(["a tool that was used", *_others(case.tool, ())]))
    if case.continuation:
        words.append(" ".join(["gone on with", *_others(case.continuation, (), always=("tokens",))]))
    said = ("model", "parts", "max_soft_tokens", "probe", "system", "tool", "continuation")
    return ", ".join([*words, *_others(case, said)])


def _parts(parts: Sequence[Part], *, texts: bool) -> Iterator[str]:
    for part in parts:
        spec = part.image or part.audio or part.video
        if spec is None:
            yield _text("text", part.text, texts=texts)
        else:
            yield " ".join([_medium(spec), *["written out already"] * part.expanded])


def _text(what: str, text: str, *, texts: bool) -> str:
    return f"{what} {text!r}" if texts else f"{what} of {len(text)} characters"


def _medium(spec: ImageSpec | AudioSpec | VideoSpec) -> str:
    if isinstance(spec, ImageSpec):
        return " ".join([f"image {spec.width_px} x {spec.height_px} px", *_others(spec, ("width_px", "height_px"))])
    if isinstance(spec, AudioSpec):
        return " ".join([f"recording of {spec.samples} samples", *_others(spec, ("samples",))])
    said = ("frames", "width_px", "height_px")
    frames = f"{spec.frames} frame{'s' * (spec.frames != 1)}"
    return " ".join([f"video of {frames} of {spec.width_px} x {spec.height_px} px", *_others(spec, said)])


def _others(value: Any, said: Collection[str], always: Collection[str] = ()) -> Iterator[str]:
    """The fields that are neither said already nor what they are if nobody sets them."""
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if field.name not in said and (field.name in always or own != field.default):
            name = field.name.removesuffix("_hz").removesuffix("_px")
            yield f"{name} {own}{' Hz' * field.name.endswith('_hz')}"
