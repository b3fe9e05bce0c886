"""What a model can be given, read from its checkpoint's config and files: media, and a chat."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.schema import Property
from harness.zoo import FEATURE_NAMES, NAMES
from harness.zoo.catalog import config

_ZOO = (*NAMES, *FEATURE_NAMES)


@lru_cache
def abilities(model: str) -> frozenset[str]:
    """Those of image, video, audio and chat that a zoo name or a checkpoint directory has.

    Raises:
        ValueError: the model is neither.
    """
    fields, has_template = _config(model)
    media = {"vision_config": ("image", "video"), "audio_config": ("audio",)}
    found = {medium for key, tower in media.items() if fields.get(key) is not None for medium in tower}
    return frozenset(found | ({"chat"} if has_template else set()))


def _config(model: str) -> tuple[dict[str, Any], bool]:
    if model in _ZOO:
        return config(model), True
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ValueError(f"{model} is neither a zoo model nor a checkpoint directory; zoo models: {', '.join(_ZOO)}")
    return json.loads(path.read_text(encoding="utf-8")), (path.parent / "chat_template.jinja").is_file()


def applies(model: str, prop: Property) -> bool:
    """Whether a property can be asked of a model: P10 needs video, P11 audio, P7 any medium."""
    has = abilities(model)
    needed = {"P10": {"video"}, "P11": {"audio"}, "P7": {"image", "audio"}}.get(prop)
    return needed is None or bool(needed & has)
