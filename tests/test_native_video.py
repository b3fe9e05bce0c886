"""The native implementation on video: frames, times, rows and distributions against the reference."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from harness.native import Gemma4, Video, sample_indices
from harness.native.config import SLIDING, TokenIds
from harness.native.image import ImagePatches, reference_size, soft_tokens
from harness.native.masks import image_blocks, layer_spans
from harness.native.prompt import VIDEO, expand, open_videos, tokenize
from harness.native.video import VideoPatches, timestamp
from tests.side_by_side import (
    VARIANTS,
    Rivals,
    Sample,
    hf_inputs,
    kl_nats,
    load_native,
    load_processor,
    load_rivals,
    prepare,
)

KL_LIMIT_NATS = 1e-6
BUDGET = 70
TOKENS = TokenIds(pad=0, image_begin=10, image=11, image_end=12, video=13, audio_begin=14, audio=15, audio_end=16)


def filmed(size_px: tuple[int, int], fps: float, *indices: tuple[int, ...]) -> Sample:
    """Videos of one size, each given by the numbers of its shown frames, always the same."""
    rng = np.random.default_rng(1)
    videos = [
        Video(list(rng.integers(0, 256, (len(shown), *size_px, 3), dtype=np.uint8)), fps, shown) for shown in indices
    ]
    return Sample("<bos>look" + " at 1<|video|>" * len(videos) + "0 word", videos=tuple(videos))


TWO_VIDEOS = filmed((3, 400), 1.0, (0, 59, 60), (216_000,))
ONE_FRAME = filmed((64, 64), 24.0, (0,))


@pytest.fixture(name="rivals", scope="module", params=VARIANTS)
def _rivals(request: pytest.FixtureRequest) -> Rivals:
    return load_rivals(request.param)


def test_the_reference_cannot_take_video_by_itself(rivals: Rivals) -> None:
    """Its forward passes no `num_frames_per_video` on and so refuses what its processor made; if not, delete this."""
    with pytest.raises(ValueError, match="`num_frames_per_video` is required"):
        rivals.theirs(**hf_inputs(rivals.processor, TWO_VIDEOS))


def test_the_reference_takes_three_rows_for_channels(rivals: Rivals) -> None:
    """It reads frames of 3 rows as channels first unless told, and so turns them; ours are always channels last."""
    processor = rivals.processor
    told = hf_inputs(processor, TWO_VIDEOS)["video_position_ids"]
    guessed = hf_inputs(processor, TWO_VIDEOS, input_data_format=None)["video_position_ids"]
    assert not torch.equal(told, guessed)
    assert torch.equal(prepare(rivals.ours, TWO_VIDEOS).videos[1].frames[0].positions[-1], told.amax((0, 1)))


def test_the_reference_divides_pixels_of_video(rivals: Rivals) -> None:
    """Its frames are bytes / 255 and its images bytes * (1 / 255): ours are the latter in both, one bit off at most."""
    inputs = hf_inputs(rivals.processor, ONE_FRAME)
    real = inputs["video_position_ids"][..., 0] >= 0
    (frame,) = prepare(rivals.ours, ONE_FRAME).videos[0].frames
    levels = (frame.patches * 255).round()
    assert torch.equal(inputs["pixel_values_videos"][real], levels / 255)
    assert torch.equal(frame.patches, levels * rivals.ours.config.pixel_scale)
    assert not torch.equal(frame.patches, levels / 255)


@pytest.mark.parametrize("rivals", ["tiny-31b", "tiny-12b"], indirect=True)
def test_frames_are_blocks_of_their_own(rivals: Rivals) -> None:
    """Each frame sees all of itself in sliding layers, where the window reaches, and nothing of the next frame."""
    prepared = prepare(rivals.ours, TWO_VIDEOS)
    blocks = image_blocks(prepared.media_types)
    assert int(blocks.max()) == 4
    spans = layer_spans(prepared.media_types, 1000, vision_blocks=True)[SLIDING]
    visible = spans.visible(range(len(prepared.token_ids)))
    for number in range(1, 5):
        rows = torch.where(blocks == number)[0]
        assert visible[rows][:, rows].all()
        assert not visible[rows][:, int(rows[-1]) + 1 :].any()


def test_a_whole_video_is_sampled_like_the_reference() -> None:
    """Of 40 frames without `indices` the same 32 are shown, with the same times."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 10, 30, 3), dtype=np.uint8)
    theirs = load_processor("tiny-31b")(
        text="<bos><|video|>", videos=[frames], video_metadata=[{"total_num_frames": 40, "fps": 2.0}]
    )
    ours = load_native("tiny-31b").prepare("<bos><|video|>", videos=[Video(list(frames), 2.0)], max_soft_tokens=280)
    assert ours.token_ids.tolist() == theirs["input_ids"][0]
    shown = torch.stack([frame.patches for frame in ours.videos[0].frames])
    expected = torch.as_tensor(np.asarray(theirs["pixel_values_videos"]))[:, : shown.shape[1]]
    torch.testing.assert_close(shown, expected, rtol=0, atol=6e-8)


def test_sampled_frames_are_those_of_the_reference() -> None:
    """For every length up to 2,000 frames the same 32 are chosen; shorter videos are refused by both."""
    for total in range(32, 2001):
        expected = default_sample_indices_fn(VideoMetadata(total_num_frames=total), num_frames=32)
        assert sample_indices(total) == expected.tolist(), total
    for refuse in (sample_indices, lambda n: default_sample_indices_fn(VideoMetadata(n), num_frames=32)):
        with pytest.raises(ValueError, match="31"):
            refuse(31)


@pytest.mark.parametrize("fps", [None, 0.3, 1.0, 23.976, 24.0, 29.97, 60.0])
def test_times_are_those_of_the_reference(fps: float | None) -> None:
    """Times equal those that the reference writes, past the hour too."""
    indices = [*range(500), *range(500, 400_000, 997)]
    given = {
        "num_soft_tokens_per_video": [0],
        "video_metadata": [VideoMetadata(total_num_frames=400_000, fps=fps, frames_indices=indices)],
    }
    text = load_processor("tiny-31b").replace_video_token(given, 0)
    assert text == " ".join(f"{timestamp(index, fps)} <|image><image|>" for index in indices)


def test_times_by_hand() -> None:
    """Times are rounded down, minutes have two digits or more, and 24 frames per second are assumed."""
    assert [timestamp(n, 1.0) for n in (0, 59, 60, 3599, 3600, 360_000)] == [
        "00:00", "00:59", "01:00", "59:59", "60:00", "6000:00",
    ]  # fmt: skip
    assert [timestamp(n, None) for n in (23, 24)] == ["00:00", "00:01"]


def test_counts_are_those_of_the_reference() -> None:
    """Soft tokens of a video equal the reference's function for 2,000 sizes and numbers of frames."""
    rng, processor = random.Random(3), load_processor("tiny-31b")
    sizes = [(rng.randint(1, 40), round(5000 ** rng.random()), round(5000 ** rng.random())) for _ in range(2000)]
    theirs = processor._get_num_multimodal_tokens(video_sizes=sizes).num_video_tokens
    assert theirs == [frames * soft_tokens(reference_size(high, wide, BUDGET)) for frames, high, wide in sizes]


@pytest.fixture(name="small", scope="module")
def _small() -> Gemma4:
    return load_native("tiny-31b")


def test_prompt_forms_are_one_prompt(small: Gemma4) -> None:
    """Text, its ids, text with some videos expanded, and expanded ids prepare to the same tokens."""
    videos = TWO_VIDEOS.videos
    bare = small.prepare("<bos>a <|video|><|video|>", videos=videos, max_soft_tokens=70)
    runs = [
        " ".join(
            f"{time} <|image>{'<|video|>' * frame.soft_tokens}<image|>"
            for time, frame in zip(v.stamps, v.frames, strict=True)
        )
        for v in bare.videos
    ]
    ids = small.tokenizer.encode("<bos>a <|video|><|video|>").ids
    mixed = (f"<bos>a {runs[0]}<|video|>", f"<bos>a <|video|>{runs[1]}", f"<bos>a {runs[0]}{runs[1]}")
    for prompt in (*mixed, bare.token_ids.tolist()):
        again = small.prepare(prompt, videos=videos, max_soft_tokens=70)
        assert torch.equal(again.token_ids, bare.token_ids)
        assert torch.equal(again.media_types, bare.media_types)
    by_itself = small.prepare(ids, videos=videos, max_soft_tokens=70)
    assert small.tokenizer.decode(by_itself.token_ids.tolist()) == small.tokenizer.decode(bare.token_ids.tolist())


def test_a_time_is_read_with_the_text_before_it() -> None:
    """A tokenizer that joins "a" and "0" does so in a text with a video, as the reference does; ids stay as given."""
    words = ["<|image>", "<|image|>", "<image|>", "<|video|>", "a", "0", ":", " ", "a0"]
    joining = Tokenizer(BPE({word: number for number, word in enumerate(words)}, [("a", "0")]))
    joining.add_special_tokens(words[:4])
    tokens = replace(TOKENS, image_begin=0, image=1, image_end=2, video=3)
    still = VideoPatches((ImagePatches(torch.zeros(9, 768), torch.zeros(9, 2), soft_tokens=1),), ("00:00",))
    text = open_videos(joining, "a<|video|>", [still], tokens)
    assert text == "a00:00 <|image><|video|><image|>"
    assert tokenize(joining, text, 9) == [8, 5, 6, 5, 5, 7, 0, 3, 2]
    assert open_videos(joining, [4, 3], [still], tokens) == [4, 5, 5, 6, 5, 5, 7, 0, 3, 2]


def test_expansion_by_hand() -> None:
    """Every medium gets its own ends and its own type; frames of a video stand between ends of images."""
    expansion = expand([15, 11, 10, 13, 13, 12, 7], [2], TOKENS, frames=[2], audios=[3])
    assert expansion.token_ids == [14, 15, 15, 15, 16, 10, 11, 11, 12, 10, 13, 13, 12, 7]
    assert expansion.media_types == [0, 3, 3, 3, 0, 0, 1, 1, 0, 0, VIDEO, VIDEO, 0, 0]


FRAME = "<|image><|video|><image|>"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<bos>", "0 video placeholders and 0 expanded frames, but 2 videos of 4 frames"),
        ("<|video|>" * 3, "3 video placeholders and 0 expanded frames"),
        (f"{FRAME}<|video|>", "1 video placeholders and 1 expanded frames"),
        (f"<|video|>{FRAME}{FRAME}", "1 video placeholders and 2 expanded frames"),
        (f"{FRAME * 3}<|video|>", "video frame 0 is already expanded to 1 soft tokens, but its size gives 70"),
    ],
)
def test_wrong_placeholders_are_refused(small: Gemma4, prompt: str, message: str) -> None:
    """Missing, spare, half expanded and wrongly expanded videos are errors that show the numbers."""
    with pytest.raises(ValueError, match=message):
        small.prepare(prompt, videos=TWO_VIDEOS.videos, max_soft_tokens=70)


BLACK = np.zeros((20, 20, 3), np.uint8)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video([BLACK] * 31), "a video of 31 frames is too short to take 32 from; give `indices`"),
        (Video([BLACK, BLACK[:10]], 1.0, [0, 1]), "the frames of a video must have one size, got"),
        (Video([], 1.0, []), "must have one size, got"),
        (Video([BLACK], 0.0, [0]), "a video cannot have 0.0 frames per second"),
        (Video([BLACK], 1.0, [0, 1]), "1 frames, but 2 indices"),
        (Video([BLACK], 1.0, [-1]), "frame numbers must be at least 0, got -1"),
    ],
)
def test_what_is_no_video_is_refused(small: Gemma4, video: Video, message: str) -> None:
    """Too few frames, mixed sizes and impossible numbers are errors that show what was given."""
    with pytest.raises(ValueError, match=message):
        small.prepare("<|video|>", videos=[video], max_soft_tokens=70)


def test_a_frame_out_of_place_is_seen(small: Gemma4) -> None:
    """Negative control: two frames exchanged change distributions far beyond the tolerance."""
    first = TWO_VIDEOS.videos[0]
    swapped = Video([first.frames[1], first.frames[0], first.frames[2]], first.fps, first.indices)
    right, wrong = (
        small.logits(small.forward(small.prepare("<bos><|video|> end", videos=[video], max_soft_tokens=70)))
        for video in (first, swapped)
    )
    assert kl_nats(right, wrong).max() > 1e3 * KL_LIMIT_NATS
