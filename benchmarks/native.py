"""The native implementation beside the reference (its sdpa attention) and beside its own bare products, in one run.

    uv run python benchmarks/native.py [--quick] [--eager] [--threads N] [--repeats 5] [--json FILE]

float32 on the CPU, a made-up model in the published layout with random weights. `bare` is the time of the very matrix
products and attention calls of the native run, with their operands, and nothing between them: no norm, no rotation, no
activation. Both implementations take turns; times are medians, and a speed is the median of the ratios of turns,
its quartiles behind it. With one thread the times are those of the processor, else of the clock. Peak memory is that
of a process of its own, weights and imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoding import decode_rows, floor
from benchmarks.made_up import QUICK, Sizes, hf_images, hf_inputs, load_hf, load_native, prepare, write_checkpoint
from benchmarks.turns import Row, compare
from harness.native import Gemma4


def prefill_rows(models: dict[str, Gemma4], theirs: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """The tower alone, then a long prompt with four images, by the eager and the compiled model."""
    ours = models["eager"]
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
    for name, model in models.items():
        title = f"prefill, {sizes.prefill_tokens} tokens, 4 images, {name}"
        yield compare(title, partial(model.forward, prompt), lambda: theirs.model(**inputs, use_cache=False), repeats)


def moe_row(path: Path, sizes: Sizes, repeats: int, experts: str) -> Row:
    """The mixture of one layer, router and norms included, beside one way of the reference to run experts."""
    ours = load_native(path).network.decoder.layers[0]
    theirs = load_hf(path, experts=experts).model.language_model.layers[0]
    x = torch.randn(sizes.moe_tokens, sizes.width, generator=torch.Generator().manual_seed(0))

    def hf() -> Tensor:
        _, weights, numbers = theirs.router(x)
        mixed = theirs.experts(theirs.pre_feedforward_layernorm_2(x), numbers, weights)
        out: Tensor = theirs.post_feedforward_layernorm_2(mixed)
        return out

    mixture: Any = ours.get_submodule("feed_forward.mixture")
    assert torch.allclose(mixture(x), hf(), atol=1e-3)
    return compare(f"MoE block, {sizes.moe_tokens} tokens, hf {experts}", lambda: mixture(x), hf, repeats)


def rows(directory: Path, sizes: Sizes, repeats: int, *, compiled: bool) -> Iterator[Row]:
    """Every timed row."""
    path = directory / "tiny-31b"
    moe = write_checkpoint(directory, "tiny-26b-a4b", Sizes(width=sizes.width, layers=1))
    for dtype in (torch.bfloat16, torch.float32):
        yield compare(f"load as {dtype}", partial(load_native, path, dtype), partial(load_hf, path, dtype), repeats)
    models = {"eager": load_native(path)} | ({"compiled": load_native(path, compiled=True)} if compiled else {})
    theirs = load_hf(path)
    yield from prefill_rows(models, theirs, sizes, repeats)
    yield from decode_rows(models, theirs, sizes, repeats)
    # What the reference takes by itself, and its loop over experts.
    for experts in ("grouped_mm", "eager"):
        yield moe_row(moe, sizes, repeats, experts)


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
    parser.add_argument("--eager", action="store_true", help="without compiled layers: some minutes less")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("native", "hf"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(peak(chosen.peak, chosen.checkpoint))
        return
    sizes, done = QUICK if chosen.quick else Sizes(), []
    print(
        f"torch {torch.__version__}, {chosen.threads} threads, {sizes}, {chosen.repeats} turns, load {os.getloadavg()}"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(Path(directory), "tiny-31b", sizes)
        lowest = floor(load_native(path), chosen.repeats)
        print(lowest.line(), flush=True)
        for row in rows(Path(directory), sizes, chosen.repeats, compiled=not chosen.eager):
            print(row.line(), flush=True)
            done.append(asdict(row))
        memory = peaks(path, sizes.prefill_tokens)
    print(f"peak memory: native {memory['native'] / 2**20:.0f} MiB, hf {memory['hf'] / 2**20:.0f} MiB")
    print(f"load at the end {os.getloadavg()}")
    result = {"torch": torch.__version__, "threads": chosen.threads, "sizes": asdict(sizes), "floor": asdict(lowest)}
    if chosen.json:
        result |= {"rows": done, "peak_bytes": memory}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
