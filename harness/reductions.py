"""Smaller cases than a case, boldest first, one kind of step at a time. Layer 2: plain parameters, nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

from harness.schema import AudioSpec, Case, ImageSpec, Part, Probe, SoftTokenBudget, ToolUse, VideoSpec

Reduction = Callable[[Case], Iterator[Case]]
_PLAIN = {"solid": 0, "silence": 0, "gradient": 1, "tone": 1}
"""Patterns in which a person sees what goes wrong; any other counts 2."""

_SIDES_PX = (1, 2, 3, 16, 48, 96)
"""The sides that are tried first: degenerate ones, a patch, a soft token, two of them."""


def size(case: Case) -> tuple[int, ...]:
    """How much there is to look at, most important first; a reduction makes one of these smaller."""
    companion = case.probe.companion if case.probe else ()
    parts = (*case.parts, *companion)
    whole = Case("", parts)
    images, audios, videos = whole.images, whole.audios, whole.videos
    framed: tuple[ImageSpec | VideoSpec, ...] = (*images, *videos)
    media: tuple[ImageSpec | AudioSpec | VideoSpec, ...] = (*framed, *audios)
    return (
        sum(part.medium is not None for part in parts),
        len(parts),
        int(case.probe is not None),
        sum(video.frames for video in videos),
        case.max_soft_tokens,
        sum(spec.width_px + spec.height_px for spec in framed),
        sum(audio.samples for audio in audios),
        sum(len(part.text) for part in parts) + len(case.system) + _tool_letters(case.tool),
        sum(part.expanded for part in parts) + ("raw", "turn", "chat").index(case.form),
        case.probe.at if case.probe else 0,
        sum(_oddity(spec) for spec in media),
        sum(not (letter.isascii() and letter.isalpha()) for part in parts for letter in part.text),
    )


def _tool_letters(tool: ToolUse | None) -> int:
    """Letters of a tool; one that does not say more than a letter still counts, for its declaration is long."""
    return 100 + len(tool.name + tool.argument + tool.response) if tool else 0


def _oddity(spec: ImageSpec | AudioSpec | VideoSpec) -> int:
    """How far from plain the looks of a medium are."""
    odd = _PLAIN.get(spec.pattern, 2) + (spec.seed > 0)
    if isinstance(spec, ImageSpec):
        return odd + 2 * (spec.mode != "RGB") + (spec.orientation != 1)
    if isinstance(spec, AudioSpec):
        return odd + (spec.rate_hz != 16_000)
    return odd + (spec.fps != 24.0) + (spec.indices is not None)


def _outlines(case: Case) -> Iterator[Case]:
    """One plain medium alone, or one word: most findings need no more, and a long way is then one step."""
    base = replace(case, form="raw", system="", tool=None, max_soft_tokens=70)
    kept = [part for part in case.parts if part.medium]
    plain = (replace(_plain(part), expanded=flag) for part in kept for flag in (False, part.expanded))
    yield from (replace(base, parts=(part,)) for part in dict.fromkeys(plain))
    for part in kept:
        yield replace(case, parts=(part,))
    texts = [part.text.split()[0] for part in case.parts if part.text.split()]
    yield from (replace(base, parts=(Part(text=text),)) for text in dict.fromkeys(texts))


def _plain(part: Part) -> Part:
    """The medium of a part in its smallest and plainest form."""
    if part.image:
        return replace(part, image=ImageSpec(1, 1, pattern="gradient"))
    if part.audio:
        return replace(part, audio=AudioSpec(320, pattern="tone"))
    return replace(part, video=VideoSpec(1, 1, 1))


def _fewer_parts(case: Case) -> Iterator[Case]:
    for parts in _without(case.parts):
        if parts:
            yield replace(case, parts=parts)


def _without(parts: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Delta debugging: without a half, a quarter ... a single one, from the end."""
    length = len(parts)
    while length:
        length = (length + 1) // 2
        for start in range(len(parts) - length, -1, -length):
            yield (*parts[:start], *parts[start + length :])
        if length == 1:
            return


def _probe(case: Case) -> Iterator[Case]:
    """No probe, less of a companion, a smaller number."""
    probe = case.probe
    if probe is None:
        return
    yield replace(case, probe=None)
    if probe.companion:
        yield replace(case, probe=replace(probe, companion=(Part(text="a"),)))
        yield from (replace(case, probe=replace(probe, companion=parts)) for parts in _without(probe.companion))
        as_case = replace(case, parts=probe.companion, probe=None)
        yield from (_with_companion(case, probe, smaller) for smaller in _media(as_case))
    yield from (replace(case, probe=replace(probe, at=at)) for at in smaller_numbers(probe.at, 0))


def _with_companion(case: Case, probe: Probe, other: Case) -> Case:
    return replace(case, probe=replace(probe, companion=other.parts))


def _form(case: Case) -> Iterator[Case]:
    parts = tuple(replace(part, expanded=False) for part in case.parts)
    yield replace(case, form="raw", system="", tool=None, parts=parts)
    yield replace(case, form="raw", system="", tool=None)
    yield replace(case, parts=parts)
    if case.tool:
        yield replace(case, tool=None)
        yield replace(case, tool=ToolUse())
    if case.system:
        yield replace(case, system="")
        yield replace(case, system="a")
    if case.form == "chat":
        yield replace(case, form="turn")


def _budget(case: Case) -> Iterator[Case]:
    for budget in get_args(SoftTokenBudget):
        if budget < case.max_soft_tokens:
            yield replace(case, max_soft_tokens=budget)


def _text(case: Case) -> Iterator[Case]:
    for index, part in enumerate(case.parts):
        if not part.text:
            continue
        words = part.text.split()
        shorter = [*words[:1], *("".join(kept) for kept in _without(part.text)), "a" * len(part.text)]
        for text in shorter:
            if text:
                yield _replaced(case, index, replace(part, text=text))


def _replaced(case: Case, index: int, part: Part) -> Case:
    return replace(case, parts=(*case.parts[:index], part, *case.parts[index + 1 :]))


def _media(case: Case) -> Iterator[Case]:
    """Each medium smaller, then plainer."""
    for index, part in enumerate(case.parts):
        if part.image:
            for image in _sides(part.image):
                yield _replaced(case, index, replace(part, image=image))
        if part.audio:
            for samples in (320, 640, *smaller_numbers(part.audio.samples, 1)):
                yield _replaced(case, index, replace(part, audio=replace(part.audio, samples=samples)))
        if part.video:
            for video in _fewer_frames(part.video):
                yield _replaced(case, index, replace(part, video=video))
            for video in _sides(part.video):
                yield _replaced(case, index, replace(part, video=video))


def _fewer_frames(video: VideoSpec) -> Iterator[VideoSpec]:
    for frames in smaller_numbers(video.frames, 1):
        indices = video.indices and video.indices[:frames]
        yield replace(video, frames=frames, indices=indices)


def _sides(spec: Any) -> Iterator[Any]:
    """Both sides together, by their common divisor and by halves, then each by itself."""
    width_px, height_px = spec.width_px, spec.height_px
    yield replace(spec, width_px=1, height_px=1)
    shared = math.gcd(width_px, height_px)
    for divisor in sorted((d for d in range(2, shared + 1) if shared % d == 0), reverse=True)[:6]:
        yield replace(spec, width_px=width_px // divisor, height_px=height_px // divisor)
    yield replace(spec, width_px=max(1, width_px // 2), height_px=max(1, height_px // 2))
    for name, side_px in (("height_px", height_px), ("width_px", width_px)):
        friendly = [px for px in _SIDES_PX if px < side_px]
        for px in dict.fromkeys((*friendly, *smaller_numbers(side_px, 1))):
            yield replace(spec, **{name: px})


def smaller_numbers(value: int, least: int) -> Iterator[int]:
    """The least, then towards the value in steps that halve the distance: what bisection would ask."""
    distance = value - least
    while distance > 0:
        yield value - distance
        distance //= 2


def _looks(case: Case) -> Iterator[Case]:
    """Mode, orientation, pattern and seed: all at once, then one by one."""
    for index, part in enumerate(case.parts):
        spec: Any = part.image or part.audio or part.video
        if spec is None:
            continue
        changes = _plain_looks(spec)
        whole = dict(changes)
        for change in (whole, *({name: value} for name, value in changes)):
            yield _replaced(case, index, replace(part, **{str(part.medium): replace(spec, **change)}))


def _plain_looks(spec: ImageSpec | AudioSpec | VideoSpec) -> list[tuple[str, Any]]:
    if isinstance(spec, AudioSpec):
        return [("pattern", "silence"), ("seed", 0), ("rate_hz", 16_000), ("pattern", "tone")]
    still = [("pattern", "solid"), ("seed", 0), ("pattern", "gradient")]
    if isinstance(spec, VideoSpec):
        return [("indices", None), ("fps", 24.0), *still]
    return [("mode", "RGB"), ("orientation", 1), *still]


REDUCTIONS: tuple[Reduction, ...] = (_outlines, _fewer_parts, _probe, _form, _budget, _media, _text, _looks)
"""Every kind of step, those that save most first."""
