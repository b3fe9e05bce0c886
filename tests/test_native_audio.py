"""The native implementation on sound: counts, log-mel frames, rows and distributions against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.native import Gemma4, audio_tokens, waveform_tokens
from harness.native.audio import AudioTower, sinusoids
from harness.native.audio_features import MAX_SAMPLES, log_mel, mel_frames, mel_triangles
from harness.native.masks import image_blocks
from harness.native.prompt import AUDIO
from tests.side_by_side import (
    HEARING,
    TOWERS,
    Rivals,
    Sample,
    exact_mel,
    hf_features,
    hf_inputs,
    hf_logits,
    kl_nats,
    load_hf,
    load_native,
    load_processor,
    load_rivals,
    prepare,
    relative_error,
    run_hf,
    run_native,
)

KL_LIMIT_NATS = 1e-6
FEATURE_LIMIT = 1e-5
# Ours against the reference's own formula run in float64; and what the float32 window and transform that it ships add
# to that: beside a loud tone their rounding is no longer small against the 0.001 under the logarithm.
MEL_LIMIT, FLOAT32_MEL_LIMIT = 1e-6, 2e-3


def hearing(*audios: np.ndarray) -> Sample:
    """A prompt with a placeholder for each recording."""
    numbered = "".join(f" {number}:<|audio|>" for number in range(len(audios)))
    return Sample(f"<bos>hear this{numbered} word", audios=audios)


def noise(seed: int, *lengths: int) -> tuple[np.ndarray, ...]:
    """Recordings of some lengths in samples, always the same."""
    rng = np.random.default_rng(seed)
    return tuple((rng.standard_normal(length) * 0.2).astype(np.float32) for length in lengths)


def tone(frequency_hz: float) -> np.ndarray:
    """One second of a loud tone."""
    wave: np.ndarray = np.sin(2 * np.pi * frequency_hz / 16_000 * np.arange(16_000)) * 0.8
    return wave.astype(np.float32)


SECOND = hearing(*noise(5, 16_000))


@pytest.fixture(name="rivals", scope="module", params=HEARING)
def _rivals(request: pytest.FixtureRequest) -> Rivals:
    return load_rivals(request.param)


def hf_frames(inputs: dict[str, Any]) -> Tensor:
    """The frames of all recordings, without those of padding."""
    frames: Tensor = inputs["input_features"][inputs["input_features_mask"].bool()]
    return frames.float()


def our_rows(model: Gemma4, sample: Sample) -> Tensor:
    """Our rows of all recordings."""
    return run_native(model, prepare(model, sample)).features


SHIPPED = [
    *(hearing(tone(frequency_hz)) for frequency_hz in (60, 440, 1000, 3333, 7900)),
    *(hearing(*noise(seed, 300 * seed, 2000)) for seed in range(1, 6)),
    hearing(np.zeros(5000, np.float32)),
    hearing(np.sign(noise(3, 9000)[0])),
]


@pytest.mark.parametrize("number", range(len(SHIPPED)))
def test_shipped_frames_of_the_reference_are_close(rivals: Rivals, number: int) -> None:
    """With its transform in float32, as shipped, frames and distributions are still near ours."""
    inputs, prepared = hf_inputs(rivals.processor, SHIPPED[number]), prepare(rivals.ours, SHIPPED[number])
    mel = torch.cat([audio.frames for audio in prepared.audios])
    torch.testing.assert_close(mel, hf_frames(inputs), rtol=0, atol=FLOAT32_MEL_LIMIT)
    ours = rivals.ours.logits(rivals.ours.forward(prepared))
    assert kl_nats(hf_logits(rivals, inputs), ours).max() <= KL_LIMIT_NATS


def test_the_reference_rounds_a_tone_in_float32() -> None:
    """Its shipped frames of a pure tone are 100 times further from its own float64 than ours are."""
    sample, processor = hearing(tone(1234.5)), load_processor("tiny-e2b")
    with exact_mel(processor):
        exact = hf_frames(hf_inputs(processor, sample))
    shipped = float((hf_frames(hf_inputs(processor, sample)) - exact).abs().max())
    ours = float((log_mel(torch.from_numpy(sample.audios[0])) - exact).abs().max())
    assert ours <= MEL_LIMIT < 100 * MEL_LIMIT < shipped < FLOAT32_MEL_LIMIT


@pytest.mark.parametrize("rivals", TOWERS, indirect=True)
def test_the_reference_cannot_hear_128_samples(rivals: Rivals) -> None:
    """Its own processor cuts no frame from 128 samples and its model then fails; ours has no soft token and goes on."""
    sample = hearing(*noise(0, 128))
    inputs = hf_inputs(rivals.processor, sample)
    assert inputs["input_features"].shape[1] == 0
    with pytest.raises(RuntimeError, match="Kernel size"):
        hf_features(rivals.theirs, inputs)
    assert our_rows(rivals.ours, sample).shape == (0, rivals.ours.config.text.hidden)


def test_counts_are_those_of_the_reference(rivals: Rivals) -> None:
    """Integer counts equal the reference's function for 1 ... 2,000 samples and 2,000 on each side of the cap."""
    ours = audio_tokens if rivals.name in TOWERS else waveform_tokens
    for samples in [*range(1, 2001), *range(MAX_SAMPLES - 2000, MAX_SAMPLES + 2001)]:
        assert ours(samples) == rivals.processor._compute_audio_num_tokens(range(samples), 16_000), samples


@pytest.mark.parametrize("samples", [*range(150, 2000, 37), MAX_SAMPLES - 1, MAX_SAMPLES, MAX_SAMPLES + 161])
def test_counts_are_those_of_the_mask(samples: int) -> None:
    """Counts equal what the reference writes into the prompt, which it reads from the mask of its frames."""
    processor = load_processor("tiny-e2b")
    features = processor.feature_extractor([np.zeros(samples, np.float32)], return_tensors="np")
    assert processor.replace_audio_token(features, 0).count("<|audio|>") == audio_tokens(samples)
    assert int(features["input_features_mask"].sum()) == mel_frames(samples)


def test_thirty_seconds_are_kept() -> None:
    """Counts by hand: one token from 161 samples, a second from 641 + 160, 750 from 30 s and from anything longer."""
    assert [audio_tokens(n) for n in (0, 160, 161, 800, 801)] == [0, 0, 1, 1, 2]
    assert [audio_tokens(n) for n in (MAX_SAMPLES, 10 * MAX_SAMPLES)] == [750, 750]
    assert [waveform_tokens(n) for n in (0, 1, 640, 641, MAX_SAMPLES + 1)] == [0, 1, 1, 2, 751]
    wave = torch.ones(MAX_SAMPLES + 5000)
    assert torch.equal(log_mel(wave), log_mel(wave[:MAX_SAMPLES]))
    assert len(log_mel(wave)) == 2999


def test_mel_triangles_are_those_of_the_reference() -> None:
    """The filters agree to rounding; the only bins that hear nothing are narrower than two frequencies."""
    theirs = torch.from_numpy(load_processor("tiny-e2b").feature_extractor.mel_filters)
    torch.testing.assert_close(mel_triangles(), theirs, rtol=0, atol=1e-12)
    silent = torch.where(mel_triangles().sum(0) == 0)[0]
    assert silent.numel() < 10


def test_a_tone_is_heard_in_its_bin() -> None:
    """A tone of 1 kHz is loudest in the bin whose triangle is highest there; an octave away it is 40 times weaker."""
    time_s = torch.arange(16_000, dtype=torch.float64) / 16_000
    frame = log_mel(torch.sin(2 * torch.pi * 1000 * time_s))[50]
    assert int(frame.argmax()) == int(mel_triangles()[32].argmax())
    assert float(frame.max() - frame[int(mel_triangles()[64].argmax())]) > np.log(40)


def test_sinusoids_by_hand() -> None:
    """Sines come first, then cosines; the first wave has length 2 pi, the last one 10,000 times that."""
    rows = sinusoids(torch.tensor([2.0, 0.0], dtype=torch.float64), 6)
    expected = [2.0, 0.02, 0.0002]
    assert torch.allclose(rows[0], torch.tensor([*np.sin(expected), *np.cos(expected)]))
    assert rows[1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("rivals", TOWERS, indirect=True)
def test_eager_attention_of_the_reference_is_inverted(rivals: Rivals) -> None:
    """With eager attention the reference's audio hears what it should not: its float mask, negated, is inverted.

    Frames from the 41st on are changed. They lie ahead of the first 9 tokens, in the block of 12 that these are in.
    """
    eager = load_hf(rivals.name, "eager")
    inputs = hf_inputs(rivals.processor, SECOND)
    changed = {**inputs, "input_features": inputs["input_features"].clone()}
    changed["input_features"][:, 40:] += 1
    early = slice(0, 9)
    for theirs, hears_ahead in ((rivals.theirs, False), (eager, True)):
        before, after = hf_features(theirs, inputs)[early], hf_features(theirs, changed)[early]
        assert (relative_error(before, after) > 0.01) == hears_ahead
    assert relative_error(hf_features(rivals.theirs, inputs), our_rows(rivals.ours, SECOND)) <= FEATURE_LIMIT
    assert relative_error(hf_features(eager, inputs), our_rows(rivals.ours, SECOND)) > 0.01


@pytest.mark.parametrize("rivals", TOWERS, indirect=True)
def test_a_window_of_13_keys_is_seen(rivals: Rivals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the JAX reference's window, one key longer, gives other rows, and only from the 13th on."""
    right, tower = our_rows(rivals.ours, SECOND), rivals.ours.network.audio
    assert isinstance(tower, AudioTower)
    assert rivals.ours.config.audio is not None
    for layer in tower.layers:
        monkeypatch.setattr(layer.attention, "window", 13)
    wrong = our_rows(rivals.ours, SECOND)
    assert relative_error(right[:12], wrong[:12]) <= FEATURE_LIMIT
    assert relative_error(right[12:], wrong[12:]) > 100 * FEATURE_LIMIT


@pytest.mark.parametrize("rivals", TOWERS, indirect=True)
def test_dropped_clipping_is_seen(rivals: Rivals) -> None:
    """Negative control: one kind of bound, widened in one layer, changes rows far beyond the tolerance."""
    right, tower = our_rows(rivals.ours, SECOND), rivals.ours.network.audio
    assert isinstance(tower, AudioTower)
    bounds = [bound for name, bound in tower.layers[0].named_buffers() if name.endswith("input_max")]
    kept = [bound.clone() for bound in bounds]
    for bound in bounds:
        bound.fill_(1e9)
    wrong = our_rows(rivals.ours, SECOND)
    for bound, value in zip(bounds, kept, strict=True):
        bound.copy_(value)
    assert relative_error(right, wrong) > 10 * FEATURE_LIMIT
    assert torch.equal(right, our_rows(rivals.ours, SECOND))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_close(rivals: Rivals, dtype: torch.dtype, limit: float) -> None:
    """Rows in half precision are finite and near those of float32."""
    rows = our_rows(load_native(rivals.name, dtype), SECOND)
    assert rows.dtype == dtype
    assert relative_error(our_rows(rivals.ours, SECOND), rows) < limit


def test_sound_and_images_mix(rivals: Rivals) -> None:
    """Images and recordings in any order reach their own tokens; only the image opens a block."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    sample = Sample("<bos>a<|audio|>b<|image|><|audio|>", (image,), noise(3, 3000, 900))
    prepared, inputs = prepare(rivals.ours, sample), hf_inputs(rivals.processor, sample)
    assert prepared.token_ids.tolist() == inputs["input_ids"][0].tolist()
    assert prepared.media_types.tolist() == inputs["mm_token_type_ids"][0].tolist()
    assert image_blocks(prepared.media_types).max() == 1
    assert not image_blocks(prepared.media_types)[prepared.media_types == AUDIO].any()
    ours = rivals.ours.logits(rivals.ours.forward(prepared))
    assert kl_nats(run_hf(rivals, inputs).logits, ours).max() <= KL_LIMIT_NATS


def test_prompt_forms_are_one_prompt(rivals: Rivals) -> None:
    """Text, its ids, expanded text and expanded ids prepare to the same tokens."""
    audios = noise(2, 2000, 700)
    bare = rivals.ours.prepare("<bos>a<|audio|>b<|audio|>", audios=audios, max_soft_tokens=70)
    runs = ["<|audio>" + "<|audio|>" * audio.soft_tokens + "<audio|>" for audio in bare.audios]
    ids = rivals.ours.tokenizer.encode("<bos>a<|audio|>b<|audio|>").ids
    for prompt in (ids, f"<bos>a{runs[0]}b<|audio|>", f"<bos>a{runs[0]}b{runs[1]}", bare.token_ids.tolist()):
        again = rivals.ours.prepare(prompt, audios=audios, max_soft_tokens=70)
        assert torch.equal(again.token_ids, bare.token_ids)
        assert torch.equal(again.media_types, bare.media_types)
    with pytest.raises(ValueError, match="audio 0 is already expanded to 1 soft tokens, but its size gives"):
        rivals.ours.prepare("<bos><|audio><|audio|><audio|>", audios=audios[:1], max_soft_tokens=70)
    with pytest.raises(ValueError, match="2 audio placeholders, but 1 audios"):
        rivals.ours.prepare("<|audio|><|audio|>", audios=audios[:1], max_soft_tokens=70)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(500, np.int16), r"got int16 \(500,\); mix to mono at 16 kHz and divide"),
        (np.zeros((2, 500), np.float32), r"got float32 \(2, 500\)"),
        (np.full(5, np.nan, np.float32), "audio of 5 samples has some that are not finite"),
    ],
)
def test_what_is_no_recording_is_refused(rivals: Rivals, samples: np.ndarray, message: str) -> None:
    """Integers, stereo, nothing at all and NaN are errors that show what was given."""
    with pytest.raises(ValueError, match=message):
        rivals.ours.prepare("<|audio|>", audios=[samples], max_soft_tokens=70)


def test_a_deaf_checkpoint_says_so() -> None:
    """A recording for a checkpoint without audio is an error that names the field of config.json."""
    with pytest.raises(ValueError, match=r"audio_config in config\.json is null"):
        load_native("tiny-31b").prepare("<|audio|>", audios=SECOND.audios, max_soft_tokens=70)
