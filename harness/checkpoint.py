"""A checkpoint directory in the published layout, as far as the harness itself reads it. Layer 1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from harness.errors import UserError
from harness.spec import LayerRule, MediaTokens

_MODEL_TYPES = ("gemma4", "gemma4_unified")

_NEEDED = ("tokenizer.json", "processor_config.json")
"""What every engine reads beside the config and the weights."""

_OUTPUT_WEIGHTS = ("lm_head.weight", "model.language_model.embed_tokens.weight")
"""The output head; tied to the embeddings in every published checkpoint."""


_LAYER_KINDS = ("sliding_attention", "full_attention")

_TOKEN_KEYS = {
    "boi": "boi_token_id",
    "image": "image_token_id",
    "eoi": "eoi_token_id",
    "boa": "boa_token_id",
    "audio": "audio_token_id",
    "eoa": "eoa_token_index",
    "video": "video_token_id",
}
"""Media token -> where config.json has its id."""

Feature = Literal["unified", "log-mel-audio", "sliding-vision-blocks", "experts", "shared-kv", "suppressed-tokens"]
"""What a checkpoint has: sound as waves, or a tower of sound; image blocks in sliding layers that do something."""


def shards(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, through its index where it has one."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    names = set(json.loads(index.read_text())["weight_map"].values())
    return [directory / name for name in sorted(names)]


def tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor of a checkpoint."""
    for path in shards(directory):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield name, shard.get_tensor(name)


_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip

_PIECE_NUMBERS = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in a safetensors file, whose first byte of data is at `offset`."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def pieces(self, multiple: int = 1) -> Iterator[torch.Tensor]:
        """The numbers, flat, read a bounded piece at a time of a multiple of so many; each is gone with the next.

        Not mapped: pages of a mapped file would count as memory of the process that looks at them.
        """
        step, left = max(1, _PIECE_NUMBERS // multiple) * multiple, prod(self.shape)
        room = bytearray(min(step, left) * self.dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                count = min(step, left)
                left -= count
                if file.readinto(memoryview(room)[: count * self.dtype.itemsize]) != count * self.dtype.itemsize:
                    raise UserError(f"{self.path} ends before its tensor {self.name} does")
                yield torch.frombuffer(room, dtype=self.dtype, count=count)


def stored(directory: Path) -> Iterator[StoredTensor]:
    """Every tensor of a checkpoint, by the headers of its files alone."""
    for path in shards(directory):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                offset = 8 + length + entry["data_offsets"][0]
                yield StoredTensor(name, path, _TYPES[entry["dtype"]], tuple(entry["shape"]), offset)


def _contradictions(config: dict[str, Any]) -> Iterator[str]:
    """What in a config.json cannot be, of what the harness itself reads; each holds only if none before it does."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        yield f"text_config is {text!r}, not an object (a text-only export has none)"
    else:
        yield from _wrong_layers(text)
        window, cap = text.get("sliding_window"), text.get("final_logit_softcapping")
        if type(window) is not int or window < 1:
            yield f"sliding_window is {window!r}, not a number of tokens"
        if cap is not None and type(cap) not in (int, float):
            yield f"final_logit_softcapping is {cap!r}, not a number or null"
    for key in _TOKEN_KEYS.values():
        if type(config.get(key, 0)) not in (int, type(None)):
            yield f"{key} is {config[key]!r}, not a token id"


def _wrong_layers(text: dict[str, Any]) -> Iterator[str]:
    kinds, shared = text.get("layer_types"), text.get("num_kv_shared_layers", 0)
    if not isinstance(kinds, list) or not kinds or not set(map(str, kinds)) <= {*_LAYER_KINDS}:
        yield f"layer_types is {kinds!r}, not a list of {' and '.join(_LAYER_KINDS)}"
        return
    if text.get("num_hidden_layers", len(kinds)) != len(kinds):
        yield f"num_hidden_layers is {text['num_hidden_layers']!r}, and layer_types has {len(kinds)} of them"
    if type(shared) is not int or not 0 <= shared <= len(kinds):
        yield f"num_kv_shared_layers is {shared!r}, not 0 to {len(kinds)}"
        return
    own = len(kinds) - shared
    if orphans := {*kinds[own:]} - {*kinds[:own]}:
        yield f"num_kv_shared_layers is {shared}, which leaves {min(orphans)} no layer to take keys and values from"


@dataclass(frozen=True)
class Checkpoint:
    """A directory that was found to hold a Gemma 4 checkpoint."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Look at a directory before any engine does.

        Raises:
            UserError: no directory, no Gemma 4 config.json, or no safetensors file there.
        """
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            kind = config.get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{directory} is no checkpoint: cannot read its config.json ({error})") from error
        if kind not in _MODEL_TYPES:
            text_only = ": a text-only export, which lacks the towers" if kind == "gemma4_text" else ""
            raise UserError(
                f"{directory} is no whole Gemma 4 checkpoint: its model_type is {kind!r} (found {kind}, "
                f"wanted {' or '.join(_MODEL_TYPES)}){text_only}"
            )
        if wrong := next(_contradictions(config), ""):
            raise UserError(f"{directory}/config.json contradicts itself: {wrong}; compare it with the published one")
        try:
            files = [*shards(directory), *(directory / name for name in _NEEDED)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{directory} is no checkpoint: cannot read its index of shards ({error!r})") from error
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise UserError(f"{directory} is no complete checkpoint: {', '.join(missing)} missing")
        return cls(directory, config)

    @cached_property
    def chat_template(self) -> str:
        """The text of its chat template; empty where it has none."""
        path = self.path / "chat_template.jinja"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @property
    def takes_waves(self) -> bool:
        """Whether sound enters as it is, 640 samples a soft token, as in the 12B; elsewhere it enters as log-mel."""
        return bool(self.config["model_type"] == "gemma4_unified")

    @cached_property
    def features(self) -> frozenset[Feature]:
        """What its config says that it has, by which known causes are told apart."""
        text = self.config["text_config"]
        try:
            generation = json.loads((self.path / "generation_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # A checkpoint need not have one.
            generation = {}
        sliding = any(rule.blocks and rule.window and not rule.silent for rule in self.layers)
        holds: dict[Feature, bool] = {
            "unified": self.takes_waves,
            "log-mel-audio": bool(self.config.get("audio_config")) and not self.takes_waves,
            "sliding-vision-blocks": sliding,
            "experts": bool(text.get("enable_moe_block")),
            "shared-kv": bool(text.get("num_kv_shared_layers")),
            "suppressed-tokens": bool(generation.get("suppress_tokens")),
        }
        return frozenset(feature for feature, held in holds.items() if held)

    @cached_property
    def media_tokens(self) -> MediaTokens:
        """The ids that frame and fill media in this checkpoint's vocabulary; -1 for a medium that it lacks."""
        found = {name: self.config.get(key) for name, key in _TOKEN_KEYS.items()}
        return MediaTokens(**{name: -1 if token is None else token for name, token in found.items()})

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def read(self, token_ids: Sequence[int]) -> str:
        """The text that token ids stand for, special tokens included."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    @cached_property
    def layers(self) -> tuple[LayerRule, ...]:
        """What each decoder layer may see, from the config; silent is one whose output projection is zero."""
        text = self.config["text_config"]
        kinds = text["layer_types"]
        own = len(kinds) - text.get("num_kv_shared_layers", 0)
        return tuple(
            LayerRule(
                window=text["sliding_window"] if kind == "sliding_attention" else None,
                blocks=text.get("use_bidirectional_attention") == "vision",
                silent=self._is_zero(f"model.language_model.layers.{index}.self_attn.o_proj.weight"),
                donor=index if index < own else max(k for k in range(own) if kinds[k] == kind),
            )
            for index, kind in enumerate(kinds)
        )

    def _is_zero(self, name: str) -> bool:
        """Whether the first row of a tensor is zero: as good as all of it for what the zoo makes, and cheap."""
        for path in shards(self.path):
            with safe_open(path, framework="pt") as shard:
                if name in shard.keys():  # noqa: SIM118
                    return not bool(shard.get_slice(name)[:1].any())
        return False

    @cached_property
    def parameters(self) -> int:
        """How many numbers its tensors hold, by their headers alone."""
        count = 0
        for path in shards(self.path):
            with safe_open(path, framework="pt") as shard:
                count += sum(prod(shard.get_slice(name).get_shape()) for name in shard.keys())  # noqa: SIM118
        return count

    def output_weight(self) -> torch.Tensor:
        """The output head's weight, (vocabulary, hidden), in the stored type."""
        for name in _OUTPUT_WEIGHTS:
            for path in shards(self.path):
                with safe_open(path, framework="pt") as shard:
                    if name in shard.keys():  # noqa: SIM118
                        weight: torch.Tensor = shard.get_tensor(name)
                        return weight
        raise UserError(f"{self.path} has no output head: neither {_OUTPUT_WEIGHTS[0]} nor {_OUTPUT_WEIGHTS[1]}")
