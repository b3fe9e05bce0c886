"""From a prompt to token ids with one id per soft token.

Shapes: T tokens after expansion.

An image, a recording or a frame of a video stands in a prompt in one of two ways: *bare*, one placeholder token, or
*expanded*, begin + run + end, as this file writes it. A run between begin and end is always read as one expanded item,
whatever its length, so that expanding twice changes nothing and a run of the wrong length is an error rather than
several items. A whole video is bare, one video token; its frames are expanded.

A bare video becomes text, the times of its frames, so it is opened before a text is tokenised: behind a letter the
tokenizer may read that text in another way than by itself. In a prompt of ids it can only be read by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .config import TokenIds
    from .video import VideoPatches

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3
MEDIA = {IMAGE: "image", VIDEO: "video frame", AUDIO: "audio"}
Piece = TypeVar("Piece", int, str)


@dataclass(frozen=True)
class Marks(Generic[Piece]):
    """What encloses and what fills the place of one kind of medium, as ids or as text."""

    begin: Piece
    soft: Piece
    end: Piece


@dataclass(frozen=True)
class Placeholder:
    """Where an item stands: pieces [start:stop] are its own; `expanded` if begin and end enclose them."""

    start: int
    stop: int
    expanded: bool


@dataclass(frozen=True)
class Expansion:
    """Token ids, and for each of them TEXT or the medium that it is a soft token of, both of length T."""

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


def media_marks(tokens: TokenIds) -> dict[int, Marks[int]]:
    """The ids of each medium. Frames of a video are enclosed like images."""
    return {
        IMAGE: Marks(tokens.image_begin, tokens.image, tokens.image_end),
        VIDEO: Marks(tokens.image_begin, tokens.video, tokens.image_end),
        AUDIO: Marks(tokens.audio_begin, tokens.audio, tokens.audio_end),
    }


def find_places(pieces: Sequence[Piece], marks: Marks[Piece]) -> list[Placeholder]:
    """The placeholders of one medium in a prompt, in order."""
    found: list[Placeholder] = []
    start = 0
    while start < len(pieces):
        stop = start
        while stop < len(pieces) and pieces[stop] == marks.soft:
            stop += 1
        found += _read_run(pieces, start, stop, marks)
        start = stop + 1
    return found


def _read_run(pieces: Sequence[Piece], start: int, stop: int, marks: Marks[Piece]) -> list[Placeholder]:
    if start == stop:
        return []
    opened = start > 0 and pieces[start - 1] == marks.begin
    closed = stop < len(pieces) and pieces[stop] == marks.end
    if opened and closed:
        return [Placeholder(start, stop, expanded=True)]
    return [Placeholder(at, at + 1, expanded=False) for at in range(start, stop)]


def open_videos(
    tokenizer: Tokenizer, prompt: str | Sequence[int], videos: Sequence[VideoPatches], tokens: TokenIds
) -> str | list[int]:
    """Replace every bare video by its times and expanded frames; what is expanded already stays.

    Args:
        tokenizer: reads the times, where the prompt is made of ids.
        prompt: text or ids.
        videos: in the order of the prompt.
        tokens: which ids mean what.
    """
    marks = media_marks(tokens)[VIDEO]
    words = Marks(*(str(tokenizer.id_to_token(mark)) for mark in (marks.begin, marks.soft, marks.end)))
    texts = [_frames_text(video, words) for video in videos]
    frames = [len(video.frames) for video in videos]
    if isinstance(prompt, str):
        special = "|".join(re.escape(word) for word in (words.begin, words.soft, words.end))
        pieces = [piece for piece in re.split(f"({special})", prompt) if piece]
        return "".join(_opened(pieces, words, [[text] for text in texts], frames))
    ids = [list(tokenizer.encode(text).ids) for text in texts]
    return list(_opened(list(prompt), marks, ids, frames))


def _frames_text(video: VideoPatches, words: Marks[str]) -> str:
    runs = (f"{words.begin}{words.soft * frame.soft_tokens}{words.end}" for frame in video.frames)
    return " ".join(f"{stamp} {run}" for stamp, run in zip(video.stamps, runs, strict=True))


def _opened(
    pieces: Sequence[Piece], marks: Marks[Piece], opened: Sequence[Sequence[Piece]], frames: Sequence[int]
) -> Iterator[Piece]:
    places = find_places(pieces, marks)
    numbers = _number_videos(places, frames)
    done = 0
    for place, number in zip(places, numbers, strict=True):
        if not place.expanded:
            yield from pieces[done : place.start]
            yield from opened[number]
            done = place.stop
    yield from pieces[done:]


def _number_videos(places: Sequence[Placeholder], frames: Sequence[int]) -> list[int]:
    """Which video each place belongs to: a bare one stands for a whole video, an expanded one for a frame."""
    numbers: list[int] = []
    number = seen = 0
    for place in places:
        if number == len(frames) or (seen and not place.expanded):
            raise _video_mismatch(places, frames)
        numbers.append(number)
        seen += 1 if place.expanded else frames[number]
        if seen == frames[number]:
            number, seen = number + 1, 0
    if number != len(frames):
        raise _video_mismatch(places, frames)
    return numbers


def _video_mismatch(places: Sequence[Placeholder], frames: Sequence[int]) -> ValueError:
    bare = sum(not place.expanded for place in places)
    return ValueError(
        f"the prompt has {bare} video placeholders and {len(places) - bare} expanded frames, but {len(frames)} videos "
        f"of {sum(frames)} frames were given; write one placeholder for each video"
    )


def expand(
    ids: Sequence[int],
    images: Sequence[int],
    tokens: TokenIds,
    *,
    frames: Sequence[int] = (),
    audios: Sequence[int] = (),
) -> Expansion:
    """Give every image, frame and recording its soft tokens.

    Args:
        ids: the prompt, with bare or expanded placeholders in any mixture.
        images: soft tokens of each image, in the order of the prompt.
        tokens: which ids mean what.
        frames: soft tokens of each frame of all videos.
        audios: soft tokens of each recording.
    """
    counts = {IMAGE: images, VIDEO: frames, AUDIO: audios}
    marks = media_marks(tokens)
    items = [item for kind in MEDIA for item in _items(ids, kind, marks[kind], counts[kind])]
    out, media, done = list[int](), list[int](), 0
    for kind, place, count in sorted(items, key=lambda item: item[1].start):
        before, after = ([], []) if place.expanded else ([marks[kind].begin], [marks[kind].end])
        text = [*ids[done : place.start], *before]
        out += [*text, *[marks[kind].soft] * count, *after]
        media += [*[TEXT] * len(text), *[kind] * count, *[TEXT] * len(after)]
        done = place.stop
    return Expansion([*out, *ids[done:]], [*media, *[TEXT] * (len(ids) - done)])


def _items(
    ids: Sequence[int], kind: int, marks: Marks[int], counts: Sequence[int]
) -> list[tuple[int, Placeholder, int]]:
    places, name = find_places(ids, marks), MEDIA[kind]
    if len(places) != len(counts):
        raise ValueError(
            f"the prompt has {len(places)} {name} placeholders, but {len(counts)} {name}s were given; "
            f"write one placeholder for each {name}"
        )
    for number, (place, count) in enumerate(zip(places, counts, strict=True)):
        run = place.stop - place.start
        if place.expanded and run != count:
            raise ValueError(
                f"{name} {number} is already expanded to {run} soft tokens, but its size gives {count}; "
                "write one bare placeholder, or expand with the same input and budget"
            )
    return [(kind, place, count) for place, count in zip(places, counts, strict=True)]
