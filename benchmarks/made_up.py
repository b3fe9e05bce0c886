"""The made-up models of the benchmarks, in both implementations, and what they are given.

float32 unless said otherwise; the published file layout with random weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from harness.native import Gemma4, Prepared
from harness.zoo.files import text_files
from harness.zoo.tensors import tensors
from harness.zoo.values import value
from harness.zoo.variants import config

LAYERS = (["sliding_attention"] * 5 + ["full_attention"]) * 2
# Landscape, portrait and strips; only the aspect matters, for every image is resized to fill its budget.
ASPECTS = ((480, 640), (640, 480), (500, 500), (200, 900), (1000, 300), (360, 640), (64, 1500), (333, 777))


@dataclass(frozen=True)
class Sizes:
    """How much work each row is."""

    images: int = 32
    prefill_tokens: int = 4096
    context_tokens: int = 1000
    decode_tokens: int = 64
    decode_samples: int = 8
    moe_tokens: int = 2048
    width: int = 512
    layers: int = 12


QUICK = Sizes(
    images=3,
    prefill_tokens=400,
    context_tokens=40,
    decode_tokens=4,
    decode_samples=2,
    moe_tokens=64,
    width=64,
    layers=2,
)


def write_checkpoint(directory: Path, name: str, sizes: Sizes) -> Path:
    """A random checkpoint of the layout of tiny model `name`, larger."""
    top, path = config(name), directory / name
    width, kinds = sizes.width, LAYERS[-sizes.layers :]
    top["text_config"] |= {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "sliding_window": 512,
        "head_dim": 64,
        "global_head_dim": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 1,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "global_head_dim": 64}
    top["vision_config"] |= heads | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    if top["text_config"]["enable_moe_block"]:
        top["text_config"] |= {"num_experts": 64, "top_k_experts": 8, "moe_intermediate_size": width // 2}
    path.mkdir()
    for file, text in (text_files(name) | {"config.json": json.dumps(top)}).items():
        (path / file).write_text(text, encoding="utf-8")
    weights = {tensor.name: value(name, tensor) for tensor in tensors(top)}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def load_native(path: Path, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> Gemma4:
    """The checkpoint in the native implementation."""
    return Gemma4.load(path, dtype=dtype, compile=compiled)


def load_hf(path: Path, dtype: torch.dtype = torch.float32, experts: str | None = None) -> Any:
    """The checkpoint in the reference; sdpa is its fastest attention that is correct on a CPU.

    `experts` names one of its ways to run a mixture, None the one that it takes by itself.
    """
    import transformers  # Here, so that the native process does not hold it when its peak is measured.

    transformers.logging.disable_progress_bar()
    chosen = {} if experts is None else {"experts_implementation": experts}
    factory: Any = transformers.AutoModelForImageTextToText
    return factory.from_pretrained(path, dtype=dtype, attn_implementation="sdpa", **chosen).eval()


def prepare(model: Gemma4, images: int, tokens: int, max_soft_tokens: int) -> Prepared:
    """A prompt of `images` images and text up to `tokens` tokens."""
    rng = np.random.default_rng(0)
    shapes = [ASPECTS[index % len(ASPECTS)] for index in range(images)]
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    media = [2, *[model.config.tokens.image] * images]
    short = model.prepare(media, pictures, max_soft_tokens=max_soft_tokens)
    text = [100 + index % 200 for index in range(tokens - len(short.token_ids))]
    return model.prepare([*media, *text], pictures, max_soft_tokens=max_soft_tokens)


def hf_images(prepared: Prepared, max_soft_tokens: int) -> dict[str, Tensor]:
    """The reference's input of the same images, padded to the budget."""
    patches, positions = [], []
    for image in prepared.images:
        missing = 9 * max_soft_tokens - len(image.patches)
        patches.append(functional.pad(image.patches, (0, 0, 0, missing)))
        positions.append(functional.pad(image.positions, (0, 0, 0, missing), value=-1))
    return {"pixel_values": torch.stack(patches), "image_position_ids": torch.stack(positions)}


def hf_inputs(prepared: Prepared, max_soft_tokens: int, samples: int = 1) -> dict[str, Tensor]:
    """The reference's input of a prompt, or of a batch of the same one."""
    ids, types = (rows.expand(samples, -1) for rows in (prepared.token_ids, prepared.media_types))
    text = {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
    return text | (hf_images(prepared, max_soft_tokens) if prepared.images else {})
