"""A request's media as adapters need them. Layer 2; not imported by the worker itself, for it needs Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from harness.engines.base import Array
from harness.schema import AudioSpec, Case, ImageSpec, Part, VideoSpec

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
