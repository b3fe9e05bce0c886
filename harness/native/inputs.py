"""From a prompt and its media to what the network reads.

Shapes: T tokens after expansion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .audio_features import AudioFrames, prepare_audio
from .image import ImagePatches, prepare_image
from .prompt import expand, open_videos, tokenize
from .video import Video, VideoPatches, prepare_video

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from tokenizers import Tokenizer

    from .config import ModelConfig


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prompt for the model: ids (T,), media types (T,), and what each item is cut into.

    A media type is 0 for text and 1, 2 or 3 for a soft token of an image, a video or a recording.
    """

    token_ids: Tensor
    media_types: Tensor
    images: tuple[ImagePatches, ...]
    audios: tuple[AudioFrames, ...] = ()
    videos: tuple[VideoPatches, ...] = ()


def prepare_inputs(
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    images: Sequence[np.ndarray],
    audios: Sequence[np.ndarray],
    videos: Sequence[Video],
    max_soft_tokens: int,
) -> Prepared:
    """Tokenise, expand placeholders, cut media. The arguments are those of `Gemma4.prepare`."""
    if len(prompt) == 0:
        raise ValueError(f"the prompt has no tokens: {prompt!r}; start it with <bos>")
    side_px, scale, tokens = config.vision.patch_px, config.pixel_scale, config.tokens
    cut = tuple(prepare_image(image, max_soft_tokens, side_px=side_px, pixel_scale=scale) for image in images)
    heard = tuple(_audio(samples, config) for samples in audios)
    shown = tuple(prepare_video(video, config.video, side_px=side_px, pixel_scale=scale) for video in videos)
    expansion = expand(
        tokenize(tokenizer, open_videos(tokenizer, prompt, shown, tokens), config.text.vocabulary),
        [image.soft_tokens for image in cut],
        tokens,
        frames=[frame.soft_tokens for video in shown for frame in video.frames],
        audios=[audio.soft_tokens for audio in heard],
    )
    return Prepared(torch.tensor(expansion.token_ids), torch.tensor(expansion.media_types), cut, heard, shown)


def _audio(samples: np.ndarray, config: ModelConfig) -> AudioFrames:
    if config.audio is None:
        raise ValueError("this checkpoint hears nothing: audio_config in config.json is null; give no audio")
    return prepare_audio(samples, config.audio)
