"""Hypothesis strategies for Gemma 4 inputs. Layer 2."""

from harness.strategies.audio import audio_specs
from harness.strategies.cases import aims, cases
from harness.strategies.draws import generate, shares, stratified
from harness.strategies.images import image_specs, sizes
from harness.strategies.models import applies
from harness.strategies.probes import applies_to, probes, probes_of, shortest_chunk
from harness.strategies.video import video_specs

__all__ = [
    "aims",
    "applies",
    "applies_to",
    "audio_specs",
    "cases",
    "generate",
    "image_specs",
    "probes",
    "probes_of",
    "shares",
    "shortest_chunk",
    "sizes",
    "stratified",
    "video_specs",
]
