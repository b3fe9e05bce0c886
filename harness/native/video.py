"""From a video to frames and timestamps: which frames are taken, and the text that stands between them.

A frame is an image with a small budget of its own. In the prompt a video becomes its frames one after another, each
behind the time it was taken at, minutes and seconds rounded down:

    00:00 <|image> + N x <|video|> + <image|> 00:01 <|image> + N x <|video|> + <image|>
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .image import ImagePatches, prepare_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config_media import VideoConfig

# What the reference assumes, with a warning, of a video that does not say.
DEFAULT_FPS = 24.0


@dataclass(frozen=True, eq=False)
class Video:
    """Frames (height, width, 3) uint8 RGB, all of one size.

    With `indices`, the frames are those that are shown, and `indices` are their numbers in the video that they were
    taken from. Without, they are the whole video, and 32 of them are taken at even steps. `fps` counts the frames per
    second of the whole video; None stands for 24.
    """

    frames: Sequence[np.ndarray]
    fps: float | None = None
    indices: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class VideoPatches:
    """One video for the model: the patches of each frame, and its time as text."""

    frames: tuple[ImagePatches, ...]
    stamps: tuple[str, ...]


def sample_indices(total: int, count: int = 32) -> list[int]:
    """Which frames of a whole video are shown: floor(i * total / count) for i = 0 ... count - 1."""
    if total < count:
        raise ValueError(
            f"a video of {total} frames is too short to take {count} from; give `indices`, one number per frame"
        )
    return [index * total // count for index in range(count)]


def timestamp(index: int, fps: float | None) -> str:
    """The time of frame `index` as mm:ss, rounded down; minutes go on past 59."""
    seconds = math.floor(index / (DEFAULT_FPS if fps is None else fps))
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def prepare_video(video: Video, config: VideoConfig, *, side_px: int, pixel_scale: float) -> VideoPatches:
    """Choose the frames of a video, then resize, scale and cut each as an image of the video's own budget."""
    _check(video)
    indices, frames = video.indices, list(video.frames)
    if indices is None:
        indices = sample_indices(len(frames), config.frames)
        frames = [frames[index] for index in indices]
    budget = config.max_soft_tokens
    return VideoPatches(
        frames=tuple(prepare_image(frame, budget, side_px=side_px, pixel_scale=pixel_scale) for frame in frames),
        stamps=tuple(timestamp(index, video.fps) for index in indices),
    )


def _check(video: Video) -> None:
    shapes = {frame.shape for frame in video.frames}
    if len(shapes) != 1:
        raise ValueError(f"the frames of a video must have one size, got {sorted(shapes)}; resize or give images")
    if video.fps is not None and not (math.isfinite(video.fps) and video.fps > 0):
        raise ValueError(f"a video cannot have {video.fps} frames per second; give a positive number, or None for 24")
    if video.indices is None:
        return
    if len(video.indices) != len(video.frames):
        raise ValueError(f"{len(video.frames)} frames, but {len(video.indices)} indices; give one number per frame")
    if any(index < 0 for index in video.indices):
        raise ValueError(f"frame numbers must be at least 0, got {min(video.indices)}; count from the start")
