"""The native implementation on video: frames, times, rows and distributions against the reference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.gemma4_unified import modeling_gemma4_unified as unified
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from harness.native import Gemma4, Prepared, Recorder, Video, sample_indices
from harness.native.config import SLIDING, TokenIds
from harness.native.image import ImagePatches, reference_size, soft_tokens
from harness.native.masks import image_blocks, layer_spans
from harness.native.prompt import VIDEO, expand, open_videos, tokenize
from harness.native.video import VideoPatches, timestamp
from harness.zoo import ensure

ZOO = Path(__file__).parents[1] / ".harness" / "zoo"
VARIANTS = ("tiny-e2b", "tiny-e4b", "tiny-26b-a4b", "tiny-31b", "tiny-12b")
KL_LIMIT_NATS = 1e-6
FEATURE_LIMIT = 1e-5
BUDGET = 70
TOKENS = TokenIds(pad=0, image_begin=10, image=11, image_end=12, video=13, audio_begin=14, audio=15, audio_end=16)
HF_MODEL: Any = AutoModelForImageTextToText
HF_PROCESSOR: Any = AutoProcessor


@dataclass(frozen=True)
class Case:
    """Videos of one size, each given by the numbers of its shown frames."""

    size_px: tuple[int, int]
    indices: tuple[tuple[int, ...], ...]
    fps: float
    seed: int

    @property
    def prompt(self) -> str:
        """A prompt with a placeholder for each video, behind text that could merge with the time."""
        return "<bos>look" + " at 1<|video|>" * len(self.indices) + "0 word"

    def videos(self) -> list[Video]:
        """The videos, always the same."""
        rng = np.random.default_rng(self.seed)
        shapes = [(len(shown), *self.size_px, 3) for shown in self.indices]
        return [
            Video(list(rng.integers(0, 256, shape, dtype=np.uint8)), self.fps, shown)
            for shape, shown in zip(shapes, self.indices, strict=True)
        ]


def generated(count: int) -> Iterator[Case]:
    """One or two videos of up to three shown frames, early and late ones."""
    rng = random.Random(2)
    for seed in range(count):
        size = (round(300 ** rng.random()) + 1, round(300 ** rng.random()) + 1)
        shown = [
            tuple(sorted(round(100_000 ** rng.random()) for _ in range(rng.randint(1, 3))))
            for _ in range(rng.choice((1, 1, 2)))
        ]
        yield Case(size, tuple(shown), rng.choice((0.5, 1.0, 23.976, 24.0, 30.0, 60.0)), seed)


CASES = [Case((64, 64), ((0,),), 24.0, 0), Case((3, 400), ((0, 59, 60), (216_000,)), 1.0, 1), *generated(10)]
CASE = CASES[1]


@dataclass(frozen=True)
class Rivals:
    """A checkpoint in both implementations, float32."""

    name: str
    ours: Gemma4
    theirs: Any
    processor: Any


@pytest.fixture(name="rivals", scope="module", params=VARIANTS)
def _rivals(request: pytest.FixtureRequest) -> Rivals:
    path = ensure(request.param, ZOO)
    theirs = HF_MODEL.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    return Rivals(request.param, Gemma4.load(path, dtype=torch.float32), theirs, HF_PROCESSOR.from_pretrained(path))


def kl_nats(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL(reference || candidate) in nats per position, summed in float64: 2 of (T, V) -> (T,)."""
    ours, theirs = reference.double().log_softmax(-1), candidate.double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((reference.double() - candidate.double()).norm() / reference.double().norm())


def metadata(video: Video) -> dict[str, Any]:
    """What the reference is told about a video whose frames are chosen already."""
    assert video.indices is not None
    return {"total_num_frames": max(video.indices) + 1, "fps": video.fps, "frames_indices": list(video.indices)}


def hf_inputs(rivals: Rivals, case: Case, **more: Any) -> dict[str, Any]:
    """The reference's input of a case, with more arguments for its processor."""
    videos = case.videos()
    more = {"input_data_format": "channels_last"} | more
    return dict(
        rivals.processor(
            text=case.prompt,
            videos=[np.stack(video.frames) for video in videos],
            video_metadata=[metadata(video) for video in videos],
            do_sample_frames=False,
            return_tensors="pt",
            **more,
        )
    )


def prepare(rivals: Rivals, case: Case) -> Prepared:
    """The native input of a case."""
    return rivals.ours.prepare(case.prompt, videos=case.videos(), max_soft_tokens=280)


@contextmanager
def told_frames(theirs: Any, inputs: dict[str, Any]) -> Iterator[None]:
    """The reference's forward, which forgets `num_frames_per_video` on its way, reminded of it."""
    get, frames = theirs.model.get_video_features, inputs["num_frames_per_video"]
    with patch.object(
        theirs.model, "get_video_features", lambda *args, **kwargs: get(*args, num_frames_per_video=frames, **kwargs)
    ):
        yield


def intended_masks(rivals: Rivals, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the 12B, with the masks of a helper that the reference has for it but does not use."""
    masks = unified.create_masks_for_vision_model(
        config=rivals.theirs.config.get_text_config(),
        inputs_embeds=rivals.theirs.get_input_embeddings()(inputs["input_ids"]),
        attention_mask=inputs["attention_mask"],
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=unified.get_block_sequence_ids_for_mask(inputs["mm_token_type_ids"], torch.device("cpu")),
    )
    return {**inputs, "attention_mask": masks}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.size_px}-{case.fps}-{case.seed}")
def test_video_agrees_with_the_reference(rivals: Rivals, case: Case) -> None:
    """Ids with their times are identical; pixels, rows and every next-token distribution are the reference's."""
    inputs, prepared, tap = hf_inputs(rivals, case), prepare(rivals, case), Recorder()
    assert prepared.token_ids.tolist() == inputs["input_ids"][0].tolist()
    assert prepared.media_types.tolist() == inputs["mm_token_type_ids"][0].tolist()
    real = inputs["video_position_ids"][..., 0] >= 0
    frames = [frame for video in prepared.videos for frame in video.frames]
    assert torch.equal(torch.cat([frame.positions for frame in frames]), inputs["video_position_ids"][real])
    pixels = torch.cat([frame.patches for frame in frames])
    torch.testing.assert_close(pixels, inputs["pixel_values_videos"][real], rtol=0, atol=6e-8)
    logits = rivals.ours.logits(rivals.ours.forward(prepared, tap=tap))
    given = (inputs["pixel_values_videos"], inputs["video_position_ids"], inputs["num_frames_per_video"])
    with torch.no_grad():
        expected = rivals.theirs.model.get_video_features(*given).pooler_output
    for number, rows in enumerate(expected):
        assert relative_error(rows, tap.tensors[f"video_features.{number}"]) <= FEATURE_LIMIT
    if rivals.name == "tiny-12b":
        inputs = intended_masks(rivals, inputs)
    with torch.no_grad(), told_frames(rivals.theirs, inputs):
        assert kl_nats(rivals.theirs(**inputs).logits[0], logits).max() <= KL_LIMIT_NATS


def test_the_reference_cannot_take_video_by_itself(rivals: Rivals) -> None:
    """Its forward passes no `num_frames_per_video` on and so refuses what its processor made; if not, delete this."""
    with pytest.raises(ValueError, match="`num_frames_per_video` is required"):
        rivals.theirs(**hf_inputs(rivals, CASE))


def test_the_reference_takes_three_rows_for_channels(rivals: Rivals) -> None:
    """It reads frames of 3 rows as channels first unless told, and so turns them; ours are always channels last."""
    told, guessed = (hf_inputs(rivals, CASE, input_data_format=given) for given in ("channels_last", None))
    assert not torch.equal(told["video_position_ids"], guessed["video_position_ids"])
    assert torch.equal(prepare(rivals, CASE).videos[1].frames[0].positions[-1], told["video_position_ids"].amax((0, 1)))


def test_the_reference_divides_pixels_of_video(rivals: Rivals) -> None:
    """Its frames are bytes / 255 and its images bytes * (1 / 255): ours are the latter in both, one bit off at most."""
    inputs, case = hf_inputs(rivals, CASES[0]), CASES[0]
    real = inputs["video_position_ids"][..., 0] >= 0
    (frame,) = prepare(rivals, case).videos[0].frames
    levels = (frame.patches * 255).round()
    assert torch.equal(inputs["pixel_values_videos"][real], levels / 255)
    assert torch.equal(frame.patches, levels * rivals.ours.config.pixel_scale)
    assert not torch.equal(frame.patches, levels / 255)


@pytest.mark.parametrize("rivals", ["tiny-31b", "tiny-12b"], indirect=True)
def test_frames_are_blocks_of_their_own(rivals: Rivals) -> None:
    """Each frame sees all of itself in sliding layers, where the window reaches, and nothing of the next frame."""
    prepared = prepare(rivals, CASE)
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
    path = ensure("tiny-31b", ZOO)
    frames = np.random.default_rng(0).integers(0, 256, (40, 10, 30, 3), dtype=np.uint8)
    theirs = HF_PROCESSOR.from_pretrained(path)(
        text="<bos><|video|>", videos=[frames], video_metadata=[{"total_num_frames": 40, "fps": 2.0}]
    )
    ours = Gemma4.load(path, dtype=torch.float32).prepare(
        "<bos><|video|>", videos=[Video(list(frames), 2.0)], max_soft_tokens=280
    )
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
    text = HF_PROCESSOR.from_pretrained(ensure("tiny-31b", ZOO)).replace_video_token(given, 0)
    assert text == " ".join(f"{timestamp(index, fps)} <|image><image|>" for index in indices)


def test_times_by_hand() -> None:
    """Times are rounded down, minutes have two digits or more, and 24 frames per second are assumed."""
    assert [timestamp(n, 1.0) for n in (0, 59, 60, 3599, 3600, 360_000)] == [
        "00:00", "00:59", "01:00", "59:59", "60:00", "6000:00",
    ]  # fmt: skip
    assert [timestamp(n, None) for n in (23, 24)] == ["00:00", "00:01"]


def test_counts_are_those_of_the_reference() -> None:
    """Soft tokens of a video equal the reference's function for 2,000 sizes and numbers of frames."""
    rng, processor = random.Random(3), HF_PROCESSOR.from_pretrained(ensure("tiny-31b", ZOO))
    sizes = [(rng.randint(1, 40), round(5000 ** rng.random()), round(5000 ** rng.random())) for _ in range(2000)]
    theirs = processor._get_num_multimodal_tokens(video_sizes=sizes).num_video_tokens
    assert theirs == [frames * soft_tokens(reference_size(high, wide, BUDGET)) for frames, high, wide in sizes]


@pytest.fixture(name="small", scope="module")
def _small() -> Gemma4:
    return Gemma4.load(ensure("tiny-31b", ZOO), dtype=torch.float32)


def test_prompt_forms_are_one_prompt(small: Gemma4) -> None:
    """Text, its ids, text with some videos expanded, and expanded ids prepare to the same tokens."""
    videos = CASE.videos()
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
        small.prepare(prompt, videos=CASE.videos(), max_soft_tokens=70)


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
    first = CASE.videos()[0]
    swapped = Video([first.frames[1], first.frames[0], first.frames[2]], first.fps, first.indices)
    right, wrong = (
        small.logits(small.forward(small.prepare("<bos><|video|> end", videos=[video], max_soft_tokens=70)))
        for video in (first, swapped)
    )
    assert kl_nats(right, wrong).max() > 1e3 * KL_LIMIT_NATS
