"""Recordings aimed at the framing boundaries of both front ends, and at the 30 s cap."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from harness.schema import AudioSpec, Waveform
from harness.strategies.images import log_uniform
from harness.strategies.mix import weighted

RATE_HZ = 16_000
CAP_SAMPLES = 30 * RATE_HZ
LONGEST_SAMPLES = CAP_SAMPLES + 640
SHORT_S = 4
"""Longest recording of another rate: engines that resample and engines that do not both stay in bounds."""

# Samples of: an E-series hop, the padding multiple, a 12B token and an E-series token, an attention chunk of 12 tokens.
UNITS_SAMPLES = (160, 128, 640, 7_680)
_OTHER_RATES_HZ = (8_000, 22_050, 44_100, 48_000)


def lengths(longest_samples: int = LONGEST_SAMPLES) -> SearchStrategy[int]:
    """Numbers of samples at or beside a boundary, or anywhere; shrinks to 0."""
    near = st.builds(
        lambda count, off, unit: max(0, count * unit + off),
        st.integers(0, 20),
        st.sampled_from((0, 1, -1, 2)),
        st.sampled_from(UNITS_SAMPLES),
    )
    cap = st.sampled_from((0, 1, -1, 128, -160, 640, -640)).map(lambda off: CAP_SAMPLES + off)
    families = weighted((10, near), (3, log_uniform(10 * RATE_HZ)), (1, cap))
    return families.map(lambda samples: min(samples, longest_samples))


@st.composite
def audio_specs(draw: DrawFn, longest_samples: int = LONGEST_SAMPLES) -> AudioSpec:
    """Whole specs: a length, a rate (mostly 16 kHz), a waveform, a seed."""
    samples = draw(lengths(longest_samples))
    rate_hz = draw(st.sampled_from((RATE_HZ,) * 12 + _OTHER_RATES_HZ))
    if rate_hz != RATE_HZ:
        samples = min(samples, SHORT_S * rate_hz)
    return AudioSpec(samples, rate_hz, draw(st.sampled_from(get_args(Waveform))), draw(st.integers(0, 255)))


def ragged_pairs() -> SearchStrategy[list[AudioSpec]]:
    """Two recordings of different lengths: batched front ends pad the shorter one."""
    short = audio_specs(2_000)
    return st.tuples(short, st.integers(1, 9_000)).map(
        lambda drawn: [drawn[0], AudioSpec(drawn[0].samples + drawn[1], seed=drawn[0].seed ^ 1)]
    )


def plain_recordings() -> SearchStrategy[AudioSpec]:
    """Noise of at least three soft tokens: every weight of a tower meets something that is not zero."""
    return st.builds(AudioSpec, st.integers(1_920, 8_000), seed=st.integers(0, 255))
