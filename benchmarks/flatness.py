"""Whether cost grows with the work alone: per image from 1 to 64 images, per token of a sliding layer to 8,192 tokens.

    uv run python benchmarks/flatness.py [--quick] [--repeats 3] [--json FILE] [--plot FILE.svg]

float32, one thread, the model of `benchmarks/made_up.py`. Times are those of the processor, not of the clock,
and the best of some turns in which all rows take part, so that others on the machine count little. Beside each row
stands `square`: the bare attention of one such layer as one square with a mask, every row against every column, which
is what is not flat.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.made_up import Sizes, load_native, prepare, write_checkpoint
from harness.native import Gemma4
from harness.native.image import ImagePatches

WINDOW = 512
HEADS, HEAD_DIM = 8, 64
TOWER_HEADS = 4
BUDGET = 70


@dataclass(frozen=True)
class Extent:
    """Where the rows begin and end: powers of two from the first to the last."""

    images: tuple[int, int] = (1, 64)
    tokens: tuple[int, int] = (512, 8192)
    # Squares past these take seconds each; by then they show what they have to show.
    square_images: int = 16
    width: int = 512


QUICK = Extent(images=(1, 4), tokens=(32, 128), square_images=2, width=64)


@dataclass
class Row:
    """Seconds per image or token at one size, of ours and of the bare square."""

    name: str
    size: int
    native_s: float
    square_s: float | None

    def line(self) -> str:
        """The row in words."""
        square = "" if self.square_s is None else f"   square {self.square_s * 1e6:11.2f} us"
        return f"{self.name:6} {self.size:5}   native {self.native_s * 1e6:11.2f} us{square}"


class Clock:
    """A tap that notes when each stage was reached."""

    def __init__(self) -> None:
        self.reached: dict[str, float] = {}

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """Note the time and change nothing."""
        self.reached[name] = time.process_time()
        return tensor


def doubled(ends: tuple[int, int]) -> Iterator[int]:
    """Powers of two from one end to the other."""
    size = ends[0]
    while size <= ends[1]:
        yield size
        size *= 2


def processor_s(run: Callable[[], object]) -> float:
    """Seconds of the processor for one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def square(rows: int, heads: int, visible: Tensor) -> float:
    """Seconds of bare attention over `rows` rows, of which `visible` (rows, rows) says what each sees."""
    query, key, value = torch.randn(3, 1, heads, rows, HEAD_DIM)
    return processor_s(lambda: functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0))


def tower_s(model: Gemma4, pictures: tuple[ImagePatches, ...], together: int) -> float:
    """Seconds per image when so many images are run at once: always the same images, so that only that differs."""
    batches = [pictures[start : start + together] for start in range(0, len(pictures), together)]
    return processor_s(lambda: [model.features(batch, Clock()) for batch in batches]) / len(pictures)


def images_square_s(pictures: tuple[ImagePatches, ...], together: int) -> float:
    """Seconds per image of one tower layer's attention, so many images as one square in which each sees itself."""
    owner = torch.cat([torch.full((len(picture.patches),), at) for at, picture in enumerate(pictures[:together])])
    return square(len(owner), TOWER_HEADS, owner[:, None] == owner) / together


def layer_s(model: Gemma4, tokens: int) -> float:
    """Seconds per token of the second layer, a sliding one: from the stage before it to its own."""
    clock, ids = Clock(), np.random.default_rng(0).integers(20, 500, tokens).tolist()
    model.forward(model.prepare(ids, max_soft_tokens=BUDGET), tap=clock)
    return (clock.reached["layer.1"] - clock.reached["layer.0"]) / tokens


def tokens_square_s(tokens: int) -> float:
    """Seconds per token of its attention, as one square."""
    behind = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return square(tokens, HEADS, (behind >= 0) & (behind < WINDOW)) / tokens


def measured(model: Gemma4, extent: Extent, repeats: int) -> list[Row]:
    """Every row, the best of all turns."""
    pictures = prepare(model, extent.images[1], 0, BUDGET).images
    best: dict[tuple[str, int], Row] = {}
    for turn in range(repeats + 1):
        rows = [
            Row(
                "images",
                n,
                tower_s(model, pictures, n),
                images_square_s(pictures, n) if n <= extent.square_images else None,
            )
            for n in doubled(extent.images)
        ]
        rows += [Row("tokens", n, layer_s(model, n), tokens_square_s(n)) for n in doubled(extent.tokens)]
        for row in rows if turn else ():  # the first turn only warms up
            kept = best.setdefault((row.name, row.size), row)
            kept.native_s = min(kept.native_s, row.native_s)
            if kept.square_s is not None and row.square_s is not None:
                kept.square_s = min(kept.square_s, row.square_s)
    return list(best.values())


PANEL, HEIGHT, EDGE = 400, 300, 46
TOP = 32
"""Pixels: width of a panel, height of the picture, room for labels; and the largest cost shown, as a multiple."""


def panel(rows: list[Row], left: int, title: str) -> Iterator[str]:
    """One half of the picture: cost per unit as a multiple of that of the smallest size, both axes logarithmic."""
    last = np.log2(rows[-1].size / rows[0].size)
    right, bottom = PANEL - EDGE - 14, HEIGHT - 2 * EDGE

    def place(size: int, cost: float) -> str:
        x = left + EDGE + right * np.log2(size / rows[0].size) / last
        y = EDGE + bottom * (1 - (np.log2(cost) + 1) / (np.log2(TOP) + 1))
        return f"{x:.1f},{y:.1f}"

    yield f'<text x="{left + PANEL / 2}" y="20" text-anchor="middle" font-size="13">{title}</text>'
    for cost in (0.5, *doubled((1, TOP))):
        x, y = place(rows[0].size, cost).split(",")
        yield f'<line x1="{x}" x2="{left + EDGE + right}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        yield f'<text x="{float(x) - 6}" y="{float(y) + 4}" text-anchor="end">{cost}</text>'
    for row in rows:
        x = place(row.size, 1).split(",")[0]
        yield f'<text x="{x}" y="{EDGE + bottom + 18}" text-anchor="middle">{row.size}</text>'
    yield f'<text x="{left + PANEL / 2}" y="{HEIGHT - 8}" text-anchor="middle">{rows[0].name} at once</text>'
    lines = {
        "#c2410c": [(row.size, row.square_s / (rows[0].square_s or 1)) for row in rows if row.square_s],
        "#1d4ed8": [(row.size, row.native_s / rows[0].native_s) for row in rows],
    }
    for colour, points in lines.items():
        path = " ".join(place(size, min(cost, TOP)) for size, cost in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for point in path.split():
            x, y = point.split(",")
            yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'


def plot(rows: list[Row]) -> str:
    """The picture as SVG: images left, tokens right, ours blue, the bare square orange."""
    halves = {"images": "vision tower: cost per image", "tokens": "sliding layer: cost per token"}
    parts = [
        part
        for number, (name, title) in enumerate(halves.items())
        for part in panel([row for row in rows if row.name == name], number * PANEL, f"{title}, smallest = 1")
    ]
    legend = (
        f'<text x="{EDGE + 12}" y="{EDGE + 16}" fill="#c2410c">bare attention as one square</text>'
        f'<text x="{EDGE + 12}" y="{EDGE + 32}" fill="#1d4ed8">native</text>'
    )
    style = 'font-family="sans-serif" font-size="11"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL} {HEIGHT}" {style}>'
    background = f'<rect width="{2 * PANEL}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([opening, background, *parts, legend, "</svg>"]) + "\n"


def main() -> None:
    """Print every row, and write them and their picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes that show only that it runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    extent = QUICK if chosen.quick else Extent()
    print(f"torch {torch.__version__}, one thread, window {WINDOW}, {extent}, best of {chosen.repeats}")
    with tempfile.TemporaryDirectory() as directory:
        # The last three of the made-up layers: two sliding ones and a full one.
        path = write_checkpoint(Path(directory), "tiny-31b", Sizes(width=extent.width, layers=3))
        rows = measured(load_native(path), extent, chosen.repeats)
    for row in rows:
        print(row.line())
    if chosen.json:
        result = {"torch": torch.__version__, "extent": asdict(extent), "rows": [asdict(row) for row in rows]}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        chosen.plot.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
