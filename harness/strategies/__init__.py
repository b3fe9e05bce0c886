"""Hypothesis strategies for Gemma 4 inputs. Layer 2."""

from harness.strategies.cases import cases, generate
from harness.strategies.images import image_specs, sizes

__all__ = ["cases", "generate", "image_specs", "sizes"]
