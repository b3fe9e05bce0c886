"""From a recording to what the network reads: log-mel frames (E2B, E4B) or slices of the wave itself (12B).

Shapes: S samples at 16 kHz; F frames, one per 10 ms; B = 128 mel bins; Q = 257 frequencies.

    wave (S,) -> 160 zeros in front, frames of 320 every 160 (F, 320) -> Hann, |FFT of 512| (F, Q)
      -> triangles (F, B) -> log(. + 0.001)

A frame counts only if the wave has one sample more than the frame reads, F = (S - 1) // 160. The reference cuts frames
of 321 samples, for a pre-emphasis that is off, and drops the last. So 160 samples give no frame and 161 give one.
Everything runs in float64 and is rounded to float32 once: beside a loud tone a window in float32 alone moves the
logarithm of a quiet bin by 4e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .config_media import AudioTowerConfig, WaveformConfig

RATE_HZ = 16_000
FRAME, HOP, FFT = 320, 160, 512
MEL_BINS = 128
MEL_FLOOR = 1e-3
MAX_SAMPLES = 30 * RATE_HZ
FRAMES_PER_TOKEN = 4


@dataclass(frozen=True, eq=False)
class AudioFrames:
    """One recording for the model: frames (F, B) of log-mel or (F, 640) of the wave, float32, and its tokens."""

    frames: Tensor
    soft_tokens: int


def mel_frames(samples: int) -> int:
    """How many log-mel frames a wave of S samples gives: (S - 1) // 160, of at most 30 s."""
    return max(0, min(samples, MAX_SAMPLES) - 1) // HOP


def audio_tokens(samples: int) -> int:
    """Soft tokens of S samples in E2B and E4B: two halvings of the frames, each rounded up; at most 750."""
    return -(-mel_frames(samples) // FRAMES_PER_TOKEN)


def waveform_tokens(samples: int, per_token: int = 640) -> int:
    """Soft tokens of S samples in the 12B: ceil(S / 640), without a limit."""
    return -(-samples // per_token)


def prepare_audio(samples: np.ndarray, config: AudioTowerConfig | WaveformConfig) -> AudioFrames:
    """Cut one recording.

    Args:
        samples: (S,) float32 or float64, mono at 16 kHz, about -1 ... 1.
        config: of the part of the checkpoint that reads it.
    """
    wave = _checked(samples)
    if isinstance(config, WaveformConfig):
        frames = waveform(wave, config.samples)
        return AudioFrames(frames, len(frames))
    return AudioFrames(log_mel(wave), audio_tokens(len(wave)))


def waveform(wave: Tensor, per_token: int) -> Tensor:
    """The wave in slices, zeros behind it: (S,) -> (ceil(S / per_token), per_token), float32."""
    return functional.pad(wave, (0, -len(wave) % per_token)).reshape(-1, per_token).to(torch.float32)


def log_mel(wave: Tensor) -> Tensor:
    """Natural logarithm of the mel spectrum of magnitudes, not of powers: (S,) -> (F, B), float32."""
    wave = wave[:MAX_SAMPLES].double()
    padded = functional.pad(wave, (FRAME // 2, FRAME))
    frames = padded.unfold(0, FRAME, HOP)
    window = torch.hann_window(FRAME, periodic=True, dtype=torch.float64)
    # Cut only now: a transform of no frames at all is an error.
    magnitudes: Tensor = torch.fft.rfft(frames * window, n=FFT).abs()[: mel_frames(len(wave))]
    return (magnitudes @ mel_triangles() + MEL_FLOOR).log().to(torch.float32)


@cache
def mel_triangles() -> Tensor:
    """Weight of each frequency in each bin: (Q, B), float64.

    The corners of the 128 triangles lie evenly on the scale mel = 2595 log10(1 + f / 700) from 0 to 8 kHz; the sides
    are straight over f in Hz. The lowest triangles are narrower than the 31.25 Hz between two frequencies, and one that
    falls between them is all zero.
    """
    top = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    corners = torch.from_numpy(700 * (10 ** (np.linspace(0, top, MEL_BINS + 2) / 2595) - 1))
    distance = torch.linspace(0, RATE_HZ / 2, FFT // 2 + 1, dtype=torch.float64)[:, None] - corners
    rising = distance[:, :-2] / corners.diff()[:-1]
    falling = -distance[:, 2:] / corners.diff()[1:]
    return torch.minimum(rising, falling).clamp(min=0)


def _checked(samples: np.ndarray) -> Tensor:
    if samples.ndim != 1 or samples.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"audio must be float32 or float64 of shape (samples,), got {samples.dtype} {samples.shape}; "
            "mix to mono at 16 kHz and divide 16-bit samples by 32768"
        )
    if not np.isfinite(samples).all():
        raise ValueError(f"audio of {len(samples)} samples has some that are not finite; check how it was read")
    return torch.from_numpy(np.ascontiguousarray(samples))
