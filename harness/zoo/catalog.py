"""Every tiny checkpoint by name: the published variants, and the models with one feature."""

from __future__ import annotations

from harness.zoo.features import FEATURES, PLANTED, SILENT, feature_config
from harness.zoo.large import LARGE, large_config
from harness.zoo.variants import CONFIGS, Config
from harness.zoo.variants import config as variant_config

NAMES: tuple[str, ...] = tuple(CONFIGS)
"""The five published variants, tiny."""

FEATURE_NAMES: tuple[str, ...] = tuple(FEATURES)
"""The models with one feature each."""


def config(name: str) -> Config:
    """The `config.json` of a checkpoint, as a fresh copy that the caller may change."""
    if name.startswith(LARGE):
        return large_config(name)
    return feature_config(name) if name in FEATURES else variant_config(name)


def is_silent(name: str, tensor: str) -> bool:
    """Whether a tensor of that checkpoint is all zeros."""
    return SILENT.get(name, " ") in tensor


def planted(name: str, tensor: str) -> float | None:
    """The first value of that tensor where it is set by hand."""
    suffix, first = PLANTED.get(name, (" ", 0.0))
    return first if tensor.endswith(suffix) else None
