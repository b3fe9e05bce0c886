"""From a prompt to token ids with one id per soft token.

Shapes: T tokens after expansion.

An image stands in a prompt in one of two ways: *bare*, one image token, or *expanded*, begin + run + end, as
this file writes it. A run between begin and end is always read as one expanded image, whatever its length, so
that expanding twice changes nothing and a run of the wrong length is an error rather than several images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .config import TokenIds

TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class Placeholder:
    """Where an image stands: ids[start:stop] are its tokens; `expanded` if begin and end enclose them."""

    start: int
    stop: int
    expanded: bool


@dataclass(frozen=True)
class Expansion:
    """Token ids, and for each of them TEXT or IMAGE (a soft token), both of length T."""

    token_ids: list[int]
    media_types: list[int]


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, its stored padding and truncation off: they would change the prompt."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give the directory of a checkpoint in the published layout")
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(tokenizer: Tokenizer, prompt: str | Sequence[int], vocabulary: int) -> list[int]:
    """Ids of a text; ids are passed on. No BOS is added here: the chat template writes it into the text."""
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt).ids)
    for position, token_id in enumerate(prompt):
        if not 0 <= token_id < vocabulary:
            raise ValueError(f"token id {token_id} at position {position} is outside 0 ... {vocabulary - 1}")
    return [int(token_id) for token_id in prompt]


def find_images(ids: Sequence[int], tokens: TokenIds) -> list[Placeholder]:
    """The placeholders of a prompt, in order."""
    found: list[Placeholder] = []
    start = 0
    while start < len(ids):
        stop = start
        while stop < len(ids) and ids[stop] == tokens.image:
            stop += 1
        found += _read_run(ids, start, stop, tokens)
        start = stop + 1
    return found


def _read_run(ids: Sequence[int], start: int, stop: int, tokens: TokenIds) -> list[Placeholder]:
    if start == stop:
        return []
    opened = start > 0 and ids[start - 1] == tokens.image_begin
    closed = stop < len(ids) and ids[stop] == tokens.image_end
    if opened and closed:
        return [Placeholder(start, stop, expanded=True)]
    return [Placeholder(at, at + 1, expanded=False) for at in range(start, stop)]


def expand(ids: Sequence[int], counts: Sequence[int], tokens: TokenIds) -> Expansion:
    """Give every image its soft tokens.

    Args:
        ids: the prompt, with bare or expanded placeholders in any mixture.
        counts: soft tokens of each image, in the order of the prompt.
        tokens: which ids mean what.
    """
    _refuse_other_media(ids, tokens)
    places = find_images(ids, tokens)
    if len(places) != len(counts):
        raise ValueError(
            f"the prompt has {len(places)} image placeholders, but {len(counts)} images were given; "
            "write one placeholder for each image"
        )
    out, media, done = list[int](), list[int](), 0
    for number, (place, count) in enumerate(zip(places, counts, strict=True)):
        _check_run(number, place, count)
        before, after = ([], []) if place.expanded else ([tokens.image_begin], [tokens.image_end])
        text = [*ids[done : place.start], *before]
        out += [*text, *[tokens.image] * count, *after]
        media += [*[TEXT] * len(text), *[IMAGE] * count, *[TEXT] * len(after)]
        done = place.stop
    return Expansion([*out, *ids[done:]], [*media, *[TEXT] * (len(ids) - done)])


def _check_run(number: int, place: Placeholder, count: int) -> None:
    run = place.stop - place.start
    if place.expanded and run != count:
        raise ValueError(
            f"image {number} is already expanded to {run} soft tokens, but its size gives {count}; "
            "write one bare placeholder, or expand with the same image and budget"
        )


def _refuse_other_media(ids: Sequence[int], tokens: TokenIds) -> None:
    for name, token_id in (("video", tokens.video), ("audio", tokens.audio)):
        if token_id in ids:
            raise ValueError(f"the prompt holds the {name} token {token_id}; only text and images work here")
