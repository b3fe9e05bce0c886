"""Media spec -> pixels, frames, samples, the same on every machine and with every numpy. Layer 1.

Everything is integer arithmetic; noise comes from the raw stream of a Philox counter generator, which numpy
promises never to change (the streams of `numpy.random.Generator` carry no such promise).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from harness.schema import AudioSpec, ImageSpec, Part, Pattern, VideoSpec, Waveform

Pixels = npt.NDArray[Any]
"""uint8, or uint16 in mode I;16."""

Samples = npt.NDArray[np.float32]

MAX_PIXELS = 4_000_000
"""Bound on width x height, so that no generated image costs more than 16 MB."""

MAX_SAMPLES = 1_500_000
"""Bound on a recording: half a minute at 48 kHz."""

_CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "P": 1, "CMYK": 4, "I;16": 1, "1": 1}


def _noise(spec: ImageSpec, channels: int) -> Pixels:
    count = spec.height_px * spec.width_px * channels
    words = np.random.Philox(key=spec.seed).random_raw(math.ceil(count / 8))
    return words.astype("<u8").view(np.uint8)[:count].reshape(spec.height_px, spec.width_px, channels)


def _axes(spec: ImageSpec, channels: int) -> tuple[npt.NDArray[np.int64], ...]:
    """(rows, 1, 1), (1, columns, 1) and (1, 1, channels) indices, the last one shifted by the seed."""
    rows = np.arange(spec.height_px).reshape(-1, 1, 1)
    columns = np.arange(spec.width_px).reshape(1, -1, 1)
    return rows, columns, np.arange(channels).reshape(1, 1, -1) + spec.seed


def _gradient(spec: ImageSpec, channels: int) -> Pixels:
    """Every quarter of the image looks different, so that a dropped or swapped quarter shows."""
    rows, columns, shift = _axes(spec, channels)
    down, across = rows * 255 // spec.height_px, columns * 255 // spec.width_px
    ramp = (down * (2 + shift % 2) + across * (3 - shift % 2)) // 2
    return ((ramp + 40 * shift) % 256).astype(np.uint8)


def _checker(spec: ImageSpec, channels: int) -> Pixels:
    """Squares of about a twelfth of the shorter side, in colours that depend on the seed."""
    rows, columns, shift = _axes(spec, channels)
    square_px = max(1, min(spec.width_px, spec.height_px) // 12)
    odd = (rows // square_px + columns // square_px) % 2
    return ((odd * 150 + 70 * shift + 30) % 256).astype(np.uint8)


def _stripes(spec: ImageSpec, channels: int) -> Pixels:
    """Diagonal stripes, a period of seven to nineteen pixels by channel and seed."""
    rows, columns, shift = _axes(spec, channels)
    return ((rows + 2 * columns) * 13 % (7 + shift % 13) * 13 + 20).astype(np.uint8)


def _solid(spec: ImageSpec, channels: int) -> Pixels:
    rows, columns, shift = _axes(spec, channels)
    return ((rows + columns) * 0 + 97 * (shift + 1) % 256).astype(np.uint8)


_PATTERNS: dict[Pattern, Callable[[ImageSpec, int], Pixels]] = {
    "noise": _noise,
    "gradient": _gradient,
    "checker": _checker,
    "stripes": _stripes,
    "solid": _solid,
}


def pixels(spec: ImageSpec) -> Pixels:
    """Pixels of a spec: uint8 (height, width, channels), or (height, width) in a mode of one channel; I;16 is uint16.

    Raises:
        ValueError: a side below 1 px, or more than `MAX_PIXELS` pixels.
    """
    if min(spec.width_px, spec.height_px) < 1 or spec.width_px * spec.height_px > MAX_PIXELS:
        raise ValueError(
            f"image of {spec.width_px} x {spec.height_px} px: sides of at least 1 px, at most {MAX_PIXELS:,} px in all"
        )
    drawn = _PATTERNS[spec.pattern](spec, _CHANNELS[spec.mode])
    if _CHANNELS[spec.mode] > 1:
        return np.ascontiguousarray(drawn)
    flat = np.ascontiguousarray(drawn[:, :, 0])
    return flat * np.uint16(257) if spec.mode == "I;16" else flat


def frames(spec: VideoSpec) -> Pixels:
    """Frames of a spec: uint8 (frames, height, width, 3); the pattern's seed goes up by one from frame to frame.

    Raises:
        ValueError: no frame, a side below 1 px, or more than `MAX_PIXELS` pixels in all.
    """
    if spec.frames < 1 or spec.frames * spec.width_px * spec.height_px > MAX_PIXELS:
        raise ValueError(
            f"video of {spec.frames} frames of {spec.width_px} x {spec.height_px} px: at least 1 frame, "
            f"at most {MAX_PIXELS:,} px in all"
        )
    first = ImageSpec(spec.width_px, spec.height_px, pattern=spec.pattern, seed=spec.seed)
    return np.stack([pixels(dataclasses.replace(first, seed=spec.seed + k)) for k in range(spec.frames)])


def samples(spec: AudioSpec) -> Samples:
    """Samples of a spec: float32 (samples,) in [-1, 1], multiples of 2^-15.

    Raises:
        ValueError: fewer than no samples, or more than `MAX_SAMPLES`.
    """
    if not 0 <= spec.samples <= MAX_SAMPLES:
        raise ValueError(f"recording of {spec.samples} samples: at least 0, at most {MAX_SAMPLES:,}")
    wave = _WAVES[spec.pattern](np.arange(spec.samples, dtype=np.int64), spec)
    return (wave / 32_768).astype(np.float32)


def _hiss(index: npt.NDArray[np.int64], spec: AudioSpec) -> npt.NDArray[np.int64]:
    words = np.random.Philox(key=spec.seed).random_raw(math.ceil(len(index) / 4))
    return words.astype("<u8").view(np.int16)[: len(index)].astype(np.int64) // 4


def _saw(phase: npt.NDArray[np.int64], period: int) -> npt.NDArray[np.int64]:
    """A sawtooth of that period in samples: exact, unlike a sine."""
    return phase % period * 16_384 // period - 8_192


def _tone(index: npt.NDArray[np.int64], spec: AudioSpec) -> npt.NDArray[np.int64]:
    return _saw(index, 23 + spec.seed % 200)


def _chirp(index: npt.NDArray[np.int64], spec: AudioSpec) -> npt.NDArray[np.int64]:
    return _saw(index * index // (spec.rate_hz // 10), 61 + spec.seed % 40)


def _clicks(index: npt.NDArray[np.int64], spec: AudioSpec) -> npt.NDArray[np.int64]:
    clicks: npt.NDArray[np.int64] = np.where(index % (701 + spec.seed) == 0, np.int64(16_384), np.int64(0))
    return clicks


def _silence(index: npt.NDArray[np.int64], _spec: AudioSpec) -> npt.NDArray[np.int64]:
    return 0 * index


_WAVES: dict[Waveform, Callable[[npt.NDArray[np.int64], AudioSpec], npt.NDArray[np.int64]]] = {
    "noise": _hiss,
    "tone": _tone,
    "chirp": _chirp,
    "clicks": _clicks,
    "silence": _silence,
}


def arrays(parts: Iterable[Part], prefix: str = "") -> dict[str, npt.NDArray[Any]]:
    """The media of a prompt, by the names that a request's media file has them under."""
    drawn: dict[str, npt.NDArray[Any]] = {}
    counts = Counter[str]()
    for part in parts:
        medium = part.medium
        if medium is None:
            continue
        spec = part.image or part.audio or part.video
        key = f"{prefix}{medium}.{counts[medium]}"
        counts[medium] += 1
        if isinstance(spec, ImageSpec):
            drawn[key] = pixels(spec)
        elif isinstance(spec, AudioSpec):
            drawn[key] = samples(spec)
        elif isinstance(spec, VideoSpec):
            drawn[key] = frames(spec)
    return drawn


def thumbnail(spec: ImageSpec, max_side_px: int) -> Image.Image:
    """The image, reduced to fit a square of `max_side_px` for people to look at; its pixels are never reused."""
    drawn = pixels(dataclasses.replace(spec, mode="RGB") if spec.mode in ("CMYK", "P", "I;16") else spec)
    image = Image.fromarray(drawn)
    image.thumbnail((max_side_px, max_side_px))
    return image
