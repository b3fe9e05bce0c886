"""Every way of running the native model gives the hidden states of one pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.native import Gemma4, Prepared, Video
from harness.native import model as native_model
from harness.native.attention import Plan, plan
from harness.native.cache import LayerCache
from harness.native.config import SLIDING
from harness.native.masks import Spans, chunks, image_blocks
from harness.zoo import ensure

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
VARIANTS = ("tiny-e2b", "tiny-e4b", "tiny-26b-a4b", "tiny-31b", "tiny-12b")
# Products of other shapes add in another order. Of any row, one pass in float32 is up to 1.3e-5 from float64 itself.
LIMITS = {torch.float64: 1e-12, torch.float32: 3e-5}
SEEN = 1e-2
# In every prompt text of more than one window follows or precedes an image, so that windows move over its edges.
PROMPTS = {
    "text": ("<bos>What is written here is longer than a window, and then it ends somewhere.", ()),
    "short": ("<bos>a <|image|> b and c", ((10, 200),)),
    "one": ("<bos>a <|image|> is seen, then some more words follow it", ((60, 40),)),
    "two": ("<bos><|image|><|image|> both, one after another", ((20, 200), (300, 30))),
}


@dataclass(frozen=True)
class Subject:
    """A checkpoint in one precision."""

    name: str
    model: Gemma4
    limit: float

    def prepare(self, prompt: str) -> Prepared:
        """One of `PROMPTS`."""
        return prepare(self.model, prompt)

    def whole(self, prompt: str) -> Tensor:
        """The hidden states of one pass (T, H)."""
        return whole(self.model, prompt)


@cache
def load(name: str, dtype: torch.dtype) -> Gemma4:
    """A checkpoint, loaded once."""
    return Gemma4.load(ensure(name, ZOO), dtype=dtype)


@pytest.fixture(name="subject", params=list(itertools.product(VARIANTS, LIMITS)), ids=lambda key: f"{key[0]}-{key[1]}")
def _subject(request: pytest.FixtureRequest) -> Subject:
    name, dtype = request.param
    return Subject(name, load(name, dtype), LIMITS[dtype])


@cache
def prepare(model: Gemma4, prompt: str) -> Prepared:
    """One of `PROMPTS`, with the same images each time."""
    text, sizes = PROMPTS[prompt]
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return model.prepare(text, images, max_soft_tokens=70)


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """The largest difference of a row's norm, over the norm of the reference's row: 2 of (T, H)."""
    assert reference.shape == candidate.shape
    return float(((reference - candidate).norm(dim=-1) / reference.norm(dim=-1)).max())


@cache
def whole(model: Gemma4, prompt: str) -> Tensor:
    """The hidden states of one pass over one of `PROMPTS` (T, H)."""
    return model.forward(prepare(model, prompt))


def part(prepared: Prepared, rows: slice) -> Prepared:
    """Some tokens of a prompt; images go with the first part that has soft tokens."""
    images = prepared.images if bool(prepared.media_types[rows].any()) else ()
    return Prepared(prepared.token_ids[rows], prepared.media_types[rows], images)


def decode_from(model: Gemma4, prepared: Prepared, start: int) -> Tensor:
    """Prefill up to a token, then one by one: (T, H)."""
    memory = model.new_cache()
    hidden = [model.forward(part(prepared, slice(0, start)), cache=memory)]
    hidden += [model.decode([token], memory) for token in prepared.token_ids[start:].tolist()]
    return torch.cat(hidden)


@pytest.mark.parametrize("prompt", ["text", "one", "two"])
def test_prefill_in_chunks_is_one_pass(subject: Subject, prompt: str) -> None:
    """Chunks of several sizes give the hidden states of one pass."""
    prepared, expected = subject.prepare(prompt), subject.whole(prompt)
    for size in (7, 50, 1000):
        assert relative_error(expected, subject.model.forward(prepared, chunk_tokens=size)) <= subject.limit, size


@pytest.mark.parametrize("name", VARIANTS)
def test_every_chunk_boundary_of_a_prompt_gives_one_pass(name: str) -> None:
    """Each chunk size puts its first boundary at another token, through all of an image and the text around it."""
    subject = Subject(name, load(name, torch.float64), LIMITS[torch.float64])
    prepared, expected = subject.prepare("short"), subject.whole("short")
    for size in range(1, len(prepared.token_ids)):
        assert relative_error(expected, subject.model.forward(prepared, chunk_tokens=size)) <= subject.limit, size


@pytest.mark.parametrize("prompt", ["text", "one", "two"])
def test_decoding_is_one_pass(subject: Subject, prompt: str) -> None:
    """Tokens read one by one, after an image too and past the window, have the hidden states of one pass."""
    prepared, expected = subject.prepare(prompt), subject.whole(prompt)
    start = int(prepared.media_types.nonzero().max()) + 1 if PROMPTS[prompt][1] else 1
    assert relative_error(expected, decode_from(subject.model, prepared, start)) <= subject.limit


def test_a_conversation_goes_on_in_its_cache(subject: Subject) -> None:
    """A cache takes up a second prompt with images after decoded tokens, in chunks, as if all had come at once."""
    samples = [subject.prepare(prompt) for prompt in ("one", "text", "two")]
    expected, memory = subject.model.forward(native_model.pack(samples)), subject.model.new_cache()
    first = subject.model.forward(samples[0], cache=memory, chunk_tokens=9)
    second = subject.model.decode(samples[1].token_ids.tolist(), memory)
    third = subject.model.forward(samples[2], cache=memory)
    assert memory.length == len(expected)
    assert relative_error(expected, torch.cat([first, second, third])) <= subject.limit


@pytest.mark.parametrize("order", list(itertools.permutations(("text", "one", "two"))), ids="-".join)
def test_packed_samples_do_not_see_each_other(subject: Subject, order: tuple[str, ...]) -> None:
    """Prompts with no, one and two images, packed in any order, have the hidden states each has alone."""
    packed = subject.model.forward_packed([subject.prepare(prompt) for prompt in order])
    for prompt, hidden in zip(order, packed, strict=True):
        assert relative_error(subject.whole(prompt), hidden) <= subject.limit, prompt


def test_no_samples_have_no_hidden_states() -> None:
    """An empty pack gives an empty list."""
    assert load("tiny-31b", torch.float32).forward_packed([]) == []


def test_samples_are_decoded_together(subject: Subject) -> None:
    """Prompts of unequal length, read in one pack, then each one token further at a time, are as if each were alone."""
    samples = [subject.prepare(prompt) for prompt in ("text", "one", "two")]
    cuts = [int(sample.media_types.nonzero().max()) + 1 if sample.images else 3 for sample in samples]
    caches = [subject.model.new_cache() for _ in samples]
    starts = [part(sample, slice(0, cut)) for sample, cut in zip(samples, cuts, strict=True)]
    hidden = [[rows] for rows in subject.model.forward_packed(starts, caches=caches)]
    steps = min(len(sample.token_ids) - cut for sample, cut in zip(samples, cuts, strict=True))
    for step in range(steps):
        tokens = [int(sample.token_ids[cut + step]) for sample, cut in zip(samples, cuts, strict=True)]
        for rows, row in zip(hidden, subject.model.decode_batch(tokens, caches), strict=True):
            rows.append(row[None])
    assert steps > 5
    for prompt, cut, rows in zip(("text", "one", "two"), cuts, hidden, strict=True):
        assert relative_error(subject.whole(prompt)[: cut + steps], torch.cat(rows)) <= subject.limit, prompt


def test_a_batch_needs_a_cache_for_each_token() -> None:
    """Too few caches, none, or one of them twice is an error."""
    model = load("tiny-31b", torch.float32)
    memory = model.new_cache()
    for tokens, caches in (([5, 6], [memory]), ([], []), ([5, 6], [memory, memory])):
        with pytest.raises(ValueError, match="give each token a cache of its own"):
            model.decode_batch(tokens, caches)


def test_images_run_the_same_alone_and_packed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many images share one run of the tower changes nothing."""
    packed = subject.whole("two")
    monkeypatch.setattr(native_model, "PACK_PATCHES", 1)
    assert relative_error(packed, subject.model.forward(subject.prepare("two"))) <= subject.limit


def test_packs_hold_whole_images() -> None:
    """Runs add up to the limit at most, unless one image alone is larger."""
    cut = [list(range(7))[rows] for rows in native_model.packs([3, 3, 2, 9, 1, 1, 5], 6)]
    assert cut == [[0, 1], [2], [3], [4, 5], [6]]
    assert list(native_model.packs([], 6)) == []


def test_chunk_boundaries_leave_blocks_whole() -> None:
    """A boundary in a block moves back to its start, or on to its end where the chunk would be empty."""
    types = torch.tensor([0, 0, 1, 1, 1, 0, 2, 2, 0, 3, 3])
    assert image_blocks(types).tolist() == [0, 0, 1, 1, 1, 0, 2, 2, 0, 0, 0]

    def starts(size: int, *, vision_blocks: bool) -> list[int]:
        return [rows.start for rows in chunks(types, size, vision_blocks=vision_blocks)]

    assert starts(4, vision_blocks=True) == [0, 2, 6, 10]
    assert starts(2, vision_blocks=True) == [0, 2, 5, 6, 8, 10]
    assert starts(4, vision_blocks=False) == [0, 4, 8]
    with pytest.raises(ValueError, match="chunks of 0 tokens are not possible"):
        starts(0, vision_blocks=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_sliding_layers_keep_their_window_only(name: str) -> None:
    """After many tokens a sliding layer holds window - 1 rows in bounded memory, a full layer holds all."""
    model = load(name, torch.float32)
    text, memory = model.config.text, model.new_cache()
    model.decode([5] * 300, memory)
    for _ in range(100):
        model.decode([5], memory)
    for index, layer in memory.layers.items():
        sliding = text.layers[index].kind == SLIDING
        assert layer.stop - layer.start == (text.window - 1 if sliding else 400)
        assert len(layer.buffers[0]) <= (2 * text.window if sliding else 1000)
    assert set(memory.layers) == {layer.index for layer in text.layers if layer.donor is None}


def test_a_window_of_one_keeps_nothing() -> None:
    """The smallest window leaves no row for the next token."""
    layer = LayerCache(0, torch.empty(0, 1, 2))
    for value in (1.0, 2.0):
        rows = torch.full((3, 1, 2), value)
        layer.extend(rows, rows)
        assert torch.equal(layer.read()[1], rows)
        layer.trim()
        assert len(layer.read()[0]) == 0


@pytest.mark.parametrize("name", ["tiny-26b-a4b", "tiny-31b", "tiny-12b"])
def test_a_block_cut_in_two_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a boundary that stays inside an image changes hidden states."""
    model = load(name, torch.float32)
    prepared, cut = prepare(model, "one"), 20
    expected = model.forward(prepared)
    assert prepared.media_types[cut - 1] == prepared.media_types[cut] == 1

    def clipped(samples: list[Spans], device: torch.device) -> Plan:
        spans = samples[0]
        return plan([Spans(spans.first, spans.last.clamp(max=cut - 1)) if len(spans.first) == cut else spans], device)

    rows = [slice(0, cut), slice(cut, len(prepared.token_ids))]
    monkeypatch.setattr(native_model, "chunks", lambda types, size, *, vision_blocks: iter(rows))
    monkeypatch.setattr(native_model, "plan", clipped)
    assert relative_error(expected, model.forward(prepared, chunk_tokens=cut)) > SEEN


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_run_as_one_are_seen(name: str) -> None:
    """Negative control: two prompts that are merely joined see each other."""
    model = load(name, torch.float32)
    samples = [prepare(model, prompt) for prompt in ("text", "one")]
    joined = model.forward(native_model.pack(samples))[len(samples[0].token_ids) :]
    assert relative_error(model.forward(samples[1]), joined) > SEEN


@pytest.mark.parametrize("name", VARIANTS)
def test_a_window_one_short_is_seen(name: str) -> None:
    """Negative control: a sliding cache that keeps one row too few changes what is decoded."""
    model = load(name, torch.float32)
    prepared = prepare(model, "one")
    memory = model.new_cache()
    model.forward(part(prepared, slice(0, -1)), cache=memory)
    for layer in memory.layers.values():
        if layer.limit is not None:
            assert layer.stop - layer.start == layer.limit
            for buffer in layer.buffers:
                buffer[layer.start] = 0
    last = model.decode(prepared.token_ids[-1:].tolist(), memory)
    assert relative_error(model.forward(prepared)[-1:], last) > 10 * LIMITS[torch.float32]


@pytest.mark.parametrize("name", ["tiny-e2b", "tiny-12b"])
def test_sound_and_video_run_the_same_in_chunks_and_packed(name: str) -> None:
    """A prompt with an image, a recording and a video has the same hidden states in pieces, and beside another."""
    model = load(name, torch.float64)
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (30, 50, 3), dtype=np.uint8) for _ in range(2)]
    media = [frames[0]], [rng.normal(0, 0.1, 4000)], [Video(frames, 1.0, [0, 1])]
    mixed = model.prepare("<bos>a <|image|> b <|audio|> c <|video|> d", *media, max_soft_tokens=70)
    expected, limit = model.forward(mixed), LIMITS[torch.float64]
    assert set(mixed.media_types.tolist()) == {0, 1, 2, 3}
    assert relative_error(expected, model.forward(mixed, chunk_tokens=50)) <= limit
    packed = model.forward_packed([prepare(model, "one"), mixed])
    assert relative_error(expected, packed[1]) <= limit
    assert relative_error(whole(model, "one"), packed[0]) <= limit
