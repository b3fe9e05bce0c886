"""The native implementation beside the reference (its sdpa attention) and beside its own bare products, in one run.

    uv run python benchmarks/native.py [--quick] [--compile] [--repeats 3] [--json FILE]

float32 on the CPU, a made-up model in the published layout with random weights. `bare` is the time of the very matrix
products and attention calls of the native run, with their operands, and nothing between them: no norm, no rotation, no
activation. Each time is the best of some repeats in which both implementations take turns, so that a machine which
others use as well slows both. Peak memory is that of a process of its own, weights and imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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
    moe_tokens: int = 2048
    width: int = 512
    layers: int = 12


QUICK = Sizes(images=3, prefill_tokens=400, context_tokens=40, decode_tokens=4, moe_tokens=64, width=64, layers=2)


@dataclass(frozen=True)
class Row:
    """One line of the result; seconds, `bare_s` is None where there are no products."""

    name: str
    native_s: float
    hf_s: float
    bare_s: float | None

    def line(self) -> str:
        """The row in words."""
        bare = "" if self.bare_s is None else f"   bare {self.bare_s:8.4f} s, native {self.native_s / self.bare_s:.2f}x"
        speed = self.hf_s / self.native_s
        return f"{self.name:34} native {self.native_s:8.4f} s   hf {self.hf_s:8.4f} s   {speed:5.2f}x{bare}"


class Products(TorchFunctionMode):
    """Keeps every matrix product and attention call that is made, to make it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the calls that count and make every call."""
        kwargs = kwargs or {}
        if func in (functional.linear, functional.scaled_dot_product_attention):
            self.calls.append(partial(func, *args, **kwargs))
        return func(*args, **kwargs)


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


def load_hf(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in the reference; sdpa is its fastest attention that is correct on a CPU."""
    import transformers  # Here, so that the native process does not hold it when its peak is measured.

    transformers.logging.disable_progress_bar()
    factory: Any = transformers.AutoModelForImageTextToText
    return factory.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").eval()


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


def hf_inputs(prepared: Prepared, max_soft_tokens: int) -> dict[str, Tensor]:
    """The reference's input of a prompt."""
    ids, types = prepared.token_ids[None], prepared.media_types[None]
    text = {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
    return text | (hf_images(prepared, max_soft_tokens) if prepared.images else {})


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def again(calls: list[Callable[[], Any]], times: int = 1) -> float:
    """Seconds to make some calls again. Results are dropped at once: memory that is fresh each time would cost more."""
    start = time.perf_counter()
    for _ in range(times):
        for call in calls:
            call()
    return time.perf_counter() - start


def compare(name: str, native: Callable[[], Any], hf: Callable[[], Any], repeats: int) -> Row:
    """Both and the bare products in turns, the best time of each; the first turn only warms up."""
    products = Products()
    with products:
        native()
    calls = products.calls
    turns = [(seconds(native), seconds(hf), again(calls)) for _ in range(repeats + 1)]
    best = [min(times) for times in zip(*turns[1:], strict=True)]
    return Row(name, best[0], best[1], best[2] if calls else None)


def native_decode(model: Gemma4, context: Prepared, tokens: int) -> float:
    """Seconds for `tokens` greedy tokens, logits included, after a context."""
    cache = model.new_cache()
    logits = model.logits(model.forward(context, cache=cache)[-1:])
    start = time.perf_counter()
    for _ in range(tokens):
        logits = model.logits(model.decode([int(logits.argmax())], cache))
    return time.perf_counter() - start


def hf_decode(model: Any, context: Prepared, tokens: int) -> float:
    """The same in the reference."""
    out = model(**hf_inputs(context, 0), use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(tokens):
        step = out.logits[:, -1].argmax(-1)[:, None]
        out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
    return time.perf_counter() - start


def decode_row(ours: Gemma4, theirs: Any, sizes: Sizes, repeats: int) -> Row:
    """Decoding; the bare products are those of one token in the middle, times the number of tokens."""
    context, tokens = prepare(ours, 0, sizes.context_tokens, 70), sizes.decode_tokens
    cache, products = ours.new_cache(), Products()
    ours.forward(context, cache=cache)
    with products:
        ours.logits(ours.decode([5], cache))
    turns = [
        (
            native_decode(ours, context, tokens),
            hf_decode(theirs, context, tokens),
            again(products.calls, tokens),
        )
        for _ in range(repeats + 1)
    ]
    return Row(f"decode, {tokens} tokens", *(min(times) for times in zip(*turns[1:], strict=True)))


def compiled_rows(
    ours: Gemma4, theirs: Any, prompt: Prepared, inputs: dict[str, Tensor], sizes: Sizes, repeats: int
) -> Iterator[Row]:
    """Prefill and decoding with compiled layers; their products do not pass by where they could be noted."""
    context, tokens = prepare(ours, 0, sizes.context_tokens, 70), sizes.decode_tokens
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "prefill, compiled": (
            lambda: seconds(lambda: ours.forward(prompt)),
            lambda: seconds(lambda: theirs.model(**inputs, use_cache=False)),
        ),
        "decode, compiled": (lambda: native_decode(ours, context, tokens), lambda: hf_decode(theirs, context, tokens)),
    }
    for name, pair in pairs.items():
        turns = [[time_it() for time_it in pair] for _ in range(repeats + 1)]
        native, hf = (min(times) for times in zip(*turns[1:], strict=True))
        yield Row(name, native, hf, None)


def moe_row(path: Path, sizes: Sizes, repeats: int) -> Row:
    """The mixture of experts of one layer: router, experts and the two norms around them."""
    ours, theirs = load_native(path).network.decoder.layers[0], load_hf(path).model.language_model.layers[0]
    x = torch.randn(sizes.moe_tokens, sizes.width, generator=torch.Generator().manual_seed(0))

    def hf() -> Tensor:
        _, weights, numbers = theirs.router(x)
        experts = theirs.experts(theirs.pre_feedforward_layernorm_2(x), numbers, weights)
        out: Tensor = theirs.post_feedforward_layernorm_2(experts)
        return out

    mixture: Any = ours.get_submodule("feed_forward.mixture")
    assert torch.allclose(mixture(x), hf(), atol=1e-3)
    return compare(f"MoE block, {sizes.moe_tokens} tokens", lambda: mixture(x), hf, repeats)


def rows(directory: Path, sizes: Sizes, repeats: int, *, compiled: bool) -> Iterator[Row]:
    """Every timed row."""
    path = write_checkpoint(directory, "tiny-31b", sizes)
    moe = write_checkpoint(directory, "tiny-26b-a4b", Sizes(width=sizes.width, layers=1))
    for dtype in (torch.bfloat16, torch.float32):
        yield compare(f"load as {dtype}", partial(load_native, path, dtype), partial(load_hf, path, dtype), repeats)
    ours, theirs = load_native(path), load_hf(path)
    pictures = prepare(ours, sizes.images, 0, 70)
    patches = hf_images(pictures, 70)
    tap = type("Pass", (), {"record": staticmethod(lambda name, tensor: tensor)})()
    yield compare(
        f"vision tower, {sizes.images} images",
        lambda: ours.features(pictures.images, tap),
        lambda: theirs.model.get_image_features(**patches),
        repeats,
    )
    budget = 280 if sizes.images > 4 else 70
    prompt = prepare(ours, 4, sizes.prefill_tokens, budget)
    inputs = hf_inputs(prompt, budget)
    yield compare(
        f"prefill, {sizes.prefill_tokens} tokens, 4 images",
        lambda: ours.forward(prompt),
        lambda: theirs.model(**inputs, use_cache=False),
        repeats,
    )
    yield decode_row(ours, theirs, sizes, repeats)
    if compiled:
        yield from compiled_rows(load_native(path, compiled=True), theirs, prompt, inputs, sizes, repeats)
    yield moe_row(moe, sizes, repeats)


def peak(which: str, path: Path) -> int:
    """Peak resident bytes of this process after loading and one prefill of the saved prompt."""
    prompt = torch.load(path / f"{which}.pt", weights_only=False)
    if which == "native":
        load_native(path).forward(prompt)
    else:
        load_hf(path).model(**prompt, use_cache=False)
    # Not getrusage: on Linux a child's ru_maxrss starts at its parent's peak, which hid every difference.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def peaks(path: Path, tokens: int) -> dict[str, int]:
    """Peak memory of each implementation in a process of its own, in bytes."""
    prompt = prepare(load_native(path), 4, tokens, 70)
    torch.save(prompt, path / "native.pt")
    torch.save(hf_inputs(prompt, 70), path / "hf.pt")
    command = [sys.executable, __file__, "--checkpoint", str(path), "--peak"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return {
        which: int(subprocess.run([*command, which], check=True, capture_output=True, env=environment).stdout)
        for which in ("native", "hf")
    }


def main() -> None:
    """Print every row as soon as it is measured, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes that show only that it runs")
    parser.add_argument("--compile", action="store_true", help="also with compiled layers: a minute more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("native", "hf"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    if chosen.peak:
        print(peak(chosen.peak, chosen.checkpoint))
        return
    sizes, done = QUICK if chosen.quick else Sizes(), []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {sizes}, best of {chosen.repeats}")
    with tempfile.TemporaryDirectory() as directory:
        for row in rows(Path(directory), sizes, chosen.repeats, compiled=chosen.compile):
            print(row.line(), flush=True)
            done.append(asdict(row))
        memory = peaks(Path(directory) / "tiny-31b", sizes.prefill_tokens)
    print(f"peak memory: native {memory['native'] / 2**20:.0f} MiB, hf {memory['hf'] / 2**20:.0f} MiB")
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "sizes": asdict(sizes), "rows": done}
    if chosen.json:
        chosen.json.write_text(json.dumps(result | {"peak_bytes": memory}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
