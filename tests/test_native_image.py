"""Sizes, pixels and prompts of the native implementation, by hand and against the reference's processor."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from harness.native import Gemma4, contract_size, reference_size, soft_tokens
from harness.native.config import TokenIds
from harness.native.image import BUDGETS, grid_positions, patchify, prepare_image, resize
from harness.native.prompt import IMAGE, TEXT, expand
from harness.zoo import ensure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
HF_PROCESSOR: Any = AutoProcessor
TOKENS = TokenIds(pad=0, image_begin=10, image=11, image_end=12, video=13, audio_begin=14, audio=15, audio_end=16)
SIDES_PX = {"tiny-e2b": 16, "tiny-12b": 48}
# One pixel, two pixels, no resize, and every way to become a single row or column of soft tokens.
HARD_SIZES = [
    (1, 1),
    (1, 2),
    (3, 3),
    (768, 768),
    (3, 900),
    (900, 3),
    (1, 900),
    (10, 10000),
    (20000, 7),
    (7, 20000),
]


def _boundary_sizes(count: int) -> Iterator[tuple[int, int, int]]:
    """Half log-uniform sides; half where an ideal side is a multiple of 48 px, exactly or one pixel off."""
    rng = random.Random(0)
    for number in range(count):
        budget = rng.choice(BUDGETS)
        if number % 2:
            yield round(20000 ** rng.random()), round(20000 ** rng.random()), budget
            continue
        rows, unit = rng.randint(1, budget), rng.randint(1, 60)
        yield rows * unit, max(1, budget // rows * unit + rng.choice((-1, 0, 0, 1))), budget


def _hf_size(height_px: int, width_px: int, budget: int) -> tuple[int, int]:
    size: tuple[int, int] = get_aspect_ratio_preserving_size(height_px, width_px, 16, 9 * budget, 3)
    return size


def test_reference_size_is_the_size_of_the_reference_at_boundaries() -> None:
    """Sides up to 20,000 px, log-uniform and at exact ratios, have the reference's resized size."""
    wrong = [size for size in _boundary_sizes(20_000) if reference_size(*size) != _hf_size(*size)]
    assert wrong == []


def test_contract_never_gives_fewer_tokens_than_the_reference_and_sometimes_more() -> None:
    """Rounding only ever loses soft tokens, and there are sizes where it does."""
    gains = [soft_tokens(contract_size(*size)) - soft_tokens(reference_size(*size)) for size in _boundary_sizes(20_000)]
    assert min(gains) == 0
    assert max(gains) > 0


@pytest.mark.parametrize(
    ("height_px", "width_px", "budget", "reference", "contract"),
    [(34, 2380, 280, 139, 280), (34, 595, 70, 34, 70), (952, 85, 280, 220, 280), (512, 512, 280, 256, 256)],
)
def test_known_counts(height_px: int, width_px: int, budget: int, reference: int, contract: int) -> None:
    """Both counts of sizes worked out by hand: 280 * 34 / 2380 = 2^2 and 280 * 2380 / 34 = 140^2 exactly."""
    assert soft_tokens(reference_size(height_px, width_px, budget)) == reference
    assert soft_tokens(contract_size(height_px, width_px, budget)) == contract


def test_contract_is_the_largest_grid_that_keeps_the_aspect_ratio() -> None:
    """Neither side of a contract size can grow by 48 px: the ideal side, squared, is below it."""
    for high, wide, budget in _boundary_sizes(2_000):
        rows, columns = (side // 48 for side in contract_size(high, wide, budget))
        assert rows * columns <= budget
        if rows > 1 and columns > 1:
            assert rows**2 * wide <= budget * high < (rows + 1) ** 2 * wide
            assert columns**2 * high <= budget * wide < (columns + 1) ** 2 * high


@pytest.mark.parametrize("size", [reference_size, contract_size])
def test_sizes_refuse_impossible_input(size: Callable[[int, int, int], tuple[int, int]]) -> None:
    """A budget that is not published and an image without pixels are errors that show the value."""
    with pytest.raises(ValueError, match=r"max_soft_tokens=100 .*\(70, 140, 280, 560, 1120\)"):
        size(10, 10, 100)
    with pytest.raises(ValueError, match="0 x 10 px"):
        size(0, 10, 280)


def _random_image(rng: np.random.Generator, height_px: int, width_px: int) -> np.ndarray:
    return rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SIDES_PX)
def test_pixels_are_the_bits_of_the_reference(name: str) -> None:
    """Patches and positions equal the reference's to the last bit, for ordinary and degenerate sizes."""
    processor = HF_PROCESSOR.from_pretrained(ensure(name, ZOO)).image_processor
    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(1, 700)), int(rng.integers(1, 700))) for _ in range(25)]
    for number, (high, wide) in enumerate([*HARD_SIZES, *drawn]):
        image, budget = _random_image(rng, high, wide), BUDGETS[number % len(BUDGETS)]
        theirs = processor(Image.fromarray(image), max_soft_tokens=budget, return_tensors="pt")
        ours = prepare_image(image, budget, side_px=SIDES_PX[name], pixel_scale=processor.rescale_factor)
        real = theirs["image_position_ids"][0, :, 0] >= 0
        assert torch.equal(theirs["pixel_values"][0, real], ours.patches), (high, wide, budget)
        assert torch.equal(theirs["image_position_ids"][0, real], ours.positions), (high, wide, budget)
        assert int(theirs["num_soft_tokens_per_image"][0]) == ours.soft_tokens


def test_resizing_in_float_gives_other_bytes() -> None:
    """Negative control: bit equality is not free; the same resize in float32 changes many bytes."""
    image = torch.from_numpy(_random_image(np.random.default_rng(0), 100, 150).transpose(2, 0, 1).copy())
    size, as_bytes = [240, 384], resize(image, (240, 384))
    as_float = functional.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0]
    assert (as_float.clamp(0, 255).round().to(torch.uint8) != as_bytes).float().mean() > 0.01


def test_patch_layout_by_hand() -> None:
    """A patch reads row, column, channel, channel fastest; patches and positions go row by row, (x, y)."""
    pixels = torch.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = patchify(pixels, 2)
    assert patches.shape == (6, 12)
    assert patches[1].tolist() == [2, 26, 50, 3, 27, 51, 8, 32, 56, 9, 33, 57]
    assert grid_positions(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 4), (3, 5, 5)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Grey, RGBA and channels-first images are refused with the shape that was given."""
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\), got uint8 \("):
        prepare_image(np.zeros(shape, np.uint8), 70, side_px=16, pixel_scale=1 / 255)


def test_expansion_by_hand() -> None:
    """Adjacent and separate placeholders each become begin + run + end; only the run is marked as image."""
    expansion = expand([2, 11, 11, 5, 11], [1, 2, 3], TOKENS)
    assert expansion.token_ids == [2, 10, 11, 12, 10, 11, 11, 12, 5, 10, 11, 11, 11, 12]
    assert [i for i, media in enumerate(expansion.media_types) if media == IMAGE] == [2, 5, 6, 10, 11, 12]
    assert set(expansion.media_types) == {TEXT, IMAGE}


def test_expansion_twice_changes_nothing() -> None:
    """An expanded prompt expands to itself, also where bare and expanded placeholders are adjacent."""
    mixed = [11, 10, 11, 11, 12, 11, 7]
    once = expand(mixed, [3, 2, 4], TOKENS)
    assert once.token_ids == [10, 11, 11, 11, 12, 10, 11, 11, 12, 10, 11, 11, 11, 11, 12, 7]
    assert expand(once.token_ids, [3, 2, 4], TOKENS) == once


def test_a_text_without_images_is_left_alone() -> None:
    """Begin and end tokens without a run between them are text."""
    assert expand([2, 10, 12, 5], [], TOKENS).token_ids == [2, 10, 12, 5]
    assert expand([], [], TOKENS).token_ids == []


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([11, 11], [4], "2 image placeholders, but 1 images"),
        ([5], [4], "0 image placeholders, but 1 images"),
        ([11], [], "1 image placeholders, but 0 images"),
        ([11, 10, 11, 11, 12], [4, 3], "image 1 is already expanded to 2 soft tokens, but its size gives 3"),
        ([5, 10, 13, 12], [], "1 video frame placeholders, but 0 video frames"),
        ([15], [], "1 audio placeholders, but 0 audios"),
    ],
)
def test_expansion_errors_show_the_numbers(ids: list[int], counts: list[int], message: str) -> None:
    """A wrong number of images, a wrong run length and other media are errors that show the numbers."""
    with pytest.raises(ValueError, match=message):
        expand(ids, counts, TOKENS)


# Not called `model`: the conformance suite parametrises every test that takes a fixture of that name.
@pytest.fixture(name="small", scope="module")
def _small() -> Gemma4:
    return Gemma4.load(ensure("tiny-e2b", ZOO), dtype=torch.float32)


@pytest.mark.parametrize(
    "text", ["<bos>a<|image|>b", "no bos <|image|><|image|> ünïcödé 🙂", "<|image|>", "  two  spaces\n"]
)
def test_token_ids_are_those_of_the_reference(small: Gemma4, text: str) -> None:
    """Text becomes the reference's ids: no BOS is added, and media types mark the same tokens."""
    images = [_random_image(np.random.default_rng(1), 50, 80)] * text.count("<|image|>")
    processor = HF_PROCESSOR.from_pretrained(ensure("tiny-e2b", ZOO))
    extra = {"images": [Image.fromarray(image) for image in images], "max_soft_tokens": 70} if images else {}
    theirs = processor(text=text, **extra)
    ours = small.prepare(text, images, max_soft_tokens=70)
    assert ours.token_ids.tolist() == theirs["input_ids"][0]
    assert ours.media_types.tolist() == theirs["mm_token_type_ids"][0]


def test_prompt_forms_are_one_prompt(small: Gemma4) -> None:
    """Text, its ids, expanded text and expanded ids prepare to the same tokens."""
    image = _random_image(np.random.default_rng(2), 64, 64)
    bare = small.prepare("<bos>a<|image|>b", [image], max_soft_tokens=70)
    run = "<|image|>" * bare.images[0].soft_tokens
    ids = small.tokenizer.encode("<bos>a<|image|>b").ids
    for prompt in (ids, f"<bos>a<|image>{run}<image|>b", bare.token_ids.tolist()):
        again = small.prepare(prompt, [image], max_soft_tokens=70)
        assert torch.equal(again.token_ids, bare.token_ids)
        assert torch.equal(again.media_types, bare.media_types)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(small: Gemma4, prompt: str | list[int]) -> None:
    """A prompt without a single token is an error, for there is nothing to predict from."""
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        small.prepare(prompt, [], max_soft_tokens=70)


def test_an_id_outside_the_vocabulary_is_refused(small: Gemma4) -> None:
    """An id past the last row of the embedding is an error with the id and its position."""
    with pytest.raises(ValueError, match=r"token id 1000000 at position 1 is outside 0 \.\.\. "):
        small.prepare([2, 1_000_000], [], max_soft_tokens=70)


def test_media_ids_come_from_the_configuration(small: Gemma4) -> None:
    """Media ids are those of config.json and fit the tokenizer; none is assumed."""
    assert small.config.tokens.audio == small.tokenizer.token_to_id("<|audio|>")
    assert small.config.tokens.image == small.tokenizer.token_to_id("<|image|>")
