"""A request's prompts and media as adapters need them. Layer 2; not imported by the worker itself: it needs Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

import torch
from PIL import Image

from harness.checkpoint import stored
from harness.engines.base import Array, Unsupported
from harness.render import is_expanded
from harness.schema import AudioSpec, Case, ImageSpec, Part, Request, VideoSpec
from harness.spec import SOFT_TOKEN_BUDGETS

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Media:
    """The media of one prompt, in prompt order, with what their specs say beside the samples."""

    images: tuple[tuple[ImageSpec, Array], ...] = ()
    audios: tuple[tuple[AudioSpec, Array], ...] = ()
    videos: tuple[tuple[VideoSpec, Array], ...] = ()

    @classmethod
    def of(cls, parts: tuple[Part, ...], arrays: Mapping[str, Array], prefix: str = "") -> Media:
        """Those of a prompt's parts, from the arrays of a request's media file."""
        case = Case("", parts)
        return cls(
            tuple((spec, arrays[f"{prefix}image.{k}"]) for k, spec in enumerate(case.images)),
            tuple((spec, arrays[f"{prefix}audio.{k}"]) for k, spec in enumerate(case.audios)),
            tuple((spec, arrays[f"{prefix}video.{k}"]) for k, spec in enumerate(case.videos)),
        )

    @property
    def pictures(self) -> list[Image.Image]:
        """The images as Pillow has them: with their mode, and their orientation tag where there is one."""
        return [picture(spec, array) for spec, array in self.images]


def picture(spec: ImageSpec, array: Array) -> Image.Image:
    """One image as Pillow would have opened it."""
    size = spec.width_px, spec.height_px
    if spec.mode == "1":
        image = Image.fromarray(array).point(lambda level: 255 * (level > 127)).convert("1")
    elif spec.mode in ("P", "CMYK"):
        image = Image.frombytes(spec.mode, size, array.tobytes())
    else:
        image = Image.fromarray(array)
    if spec.mode == "P":
        image.putpalette([value for k in range(256) for value in (k, 255 - k, (7 * k) % 256)])
    if spec.orientation != 1:
        image.getexif()[_EXIF_ORIENTATION] = spec.orientation
    return image


@dataclass(frozen=True)
class Sample:
    """A prompt with its media, and the budget of its images. `expanded`: its placeholders stand there already."""

    prompt: str
    media: Media
    max_soft_tokens: int
    expanded: bool = False

    @classmethod
    def of(cls, request: Request, arrays: Mapping[str, Array]) -> Sample:
        """The request's own."""
        case = request.case
        return cls(request.prompt, Media.of(case.parts, arrays), case.max_soft_tokens, is_expanded(case))

    @classmethod
    def companion_of(cls, request: Request, arrays: Mapping[str, Array]) -> Sample:
        """The other prompt of the request's probe."""
        parts = request.case.probe.companion if request.case.probe else ()
        if not parts:
            raise Unsupported("the probe has no companion; give it parts")
        expanded = is_expanded(replace(request.case, parts=parts))
        return cls(request.companion, Media.of(parts, arrays, "companion."), request.case.max_soft_tokens, expanded)

    @classmethod
    def before(cls, request: Request, arrays: Mapping[str, Array]) -> Sample:
        """What runs before a repetition: the companion or, where there is none, our prompt with another budget."""
        if request.companion:
            return cls.companion_of(request, arrays)
        ours = cls.of(request, arrays)
        other = next(budget for budget in SOFT_TOKEN_BUDGETS if budget != ours.max_soft_tokens)
        return replace(ours, max_soft_tokens=other)

    @classmethod
    def expanded_of(cls, request: Request, arrays: Mapping[str, Array]) -> Sample:
        """The request's own with every placeholder written out."""
        if not request.expanded or request.case.form == "chat":
            raise Unsupported("a chat has no expanded form")
        return replace(cls.of(request, arrays), prompt=request.expanded, expanded=True)


def step(at: int) -> int:
    """A chunk's length, or a number of padding positions, of 1 to 64 tokens."""
    return 1 + at % 64


def read_singly(at: int, media_types: Sequence[int]) -> int:
    """How many of the last tokens a decoding run reads one by one; `media_types` are 0 for text.

    Raises:
        Unsupported: no text after the last medium that could be read so.
    """
    after = next((k for k, kind in enumerate(reversed(media_types)) if kind), len(media_types))
    count = min(1 + at % 8, after - 1)
    if count < 1:
        raise Unsupported("no text after the last medium to read token by token")
    return count


def with_changed_tensor(checkpoint: Path, at: int, directory: Path) -> Path:
    """Write `checkpoint` to `directory` with one tensor t changed to -2 t + 0.5; other files are linked.

    It is number `at` modulo their number in the sorted names of all tensors.

    Raises:
        Unsupported: that tensor holds no floats.
    """
    chosen = sorted(stored(checkpoint), key=lambda tensor: tensor.name)
    tensor = chosen[at % len(chosen)]
    if not tensor.dtype.is_floating_point:
        raise Unsupported(f"{tensor.name} holds {tensor.dtype}, no floats")
    for path in checkpoint.iterdir():
        if path.name != tensor.path.name:
            (directory / path.name).symlink_to(path.resolve())
    copy = directory / tensor.path.name
    copyfile(tensor.path, copy)
    with copy.open("r+b") as file:
        file.seek(tensor.offset)
        for piece in tensor.pieces():
            file.write((-2 * piece + 0.5).view(torch.uint8).numpy().tobytes())
    return directory
