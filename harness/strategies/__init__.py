"""Hypothesis strategies for Gemma 4 inputs. Layer 2."""

from harness.strategies.audio import audio_specs
from harness.strategies.cases import aims, cases
from harness.strategies.draws import generate, shares, stratified
from harness.strategies.images import image_specs, sizes
from harness.strategies.models import applies
from harness.strategies.probes import applies_to, probes
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
    "shares",
    "sizes",
    "stratified",
    "video_specs",
]
