"""The adapters of hf and native, in process on tiny models: arrays, every probe, and that a wrong probe is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.checkpoint import Checkpoint, tensors
from harness.comparators import Context, Limits, Side, probes
from harness.comparators.kl import OutputHead
from harness.engines import create, hf, hf_paths
from harness.engines.base import Recording, Unsupported
from harness.engines.hf_inputs import by_ids
from harness.engines.inputs import Sample, read_singly, with_changed_tensor
from harness.media import arrays as media_arrays
from harness.native import Gemma4
from harness.render import messages, texts
from harness.schema import AudioSpec, Case, ImageSpec, Observation, Part, Probe, ProbeKind, Request, VideoSpec
from harness.session import locate
from harness.zoo import NAMES

IMAGE = Part(image=ImageSpec(2, 80, "LA", orientation=6))
VIDEO = Part(video=VideoSpec(2, 60, 3, fps=2.0, indices=(3, 130)))
CASE = Case("tiny-31b", (Part(text="look"), IMAGE, Part(text=" what is this?")), 70)
HEARD = replace(CASE, model="tiny-e2b", parts=(*CASE.parts, Part(audio=AudioSpec(3000)), VIDEO, Part(text="now?")))
COMPANION = (Part(text="another"), Part(image=ImageSpec(90, 30)), Part(text="prompt"))
AT = 5
AGREEING: dict[str, tuple[ProbeKind, ...]] = {
    "hf": ("batch", "batch_last", "padding", "decode", "repeat", "chat", "expanded"),
    "native": ("batch", "batch_last", "chunked", "decode", "repeat", "ids", "expanded"),
}
ABSENT: dict[str, tuple[ProbeKind, ...]] = {
    "hf": ("prefix_cache", "ids"),
    "native": ("padding", "prefix_cache", "static_cache", "forward"),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Several threads for so little work wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="engine", scope="module", params=["hf", "native"])
def _engine(request: pytest.FixtureRequest) -> Any:
    return _loaded(request.param, CASE.model)


@pytest.fixture(name="listener", scope="module", params=["hf", "native"])
def _listener(request: pytest.FixtureRequest) -> Any:
    return _loaded(request.param, HEARD.model)


@pytest.fixture(name="context", scope="module")
def _context() -> Context:
    checkpoint = Checkpoint.open(locate(CASE.model))
    return Context(checkpoint.media_tokens, OutputHead.of(checkpoint), Limits.of("float32"))


def _loaded(name: str, model: str) -> Any:
    engine: Any = create(name, {})
    engine.load(locate(model), dtype="float32", device="cpu")
    engine.subject = name
    return engine


def record(engine: Any, case: Case, *, probe: bool = False) -> Recording:
    """One run, plain or by the case's probe, as a campaign asks for it."""
    template = Checkpoint.open(locate(case.model)).chat_template if case.form == "chat" else ""
    companion = case.probe.companion if case.probe else ()
    drawn = media_arrays(case.parts) | media_arrays(companion, "companion.")
    words = texts(case, template, waves=Checkpoint.open(locate(case.model)).takes_waves)
    recording: Recording = engine.run(
        Request(case, media_path="", arrays_path="", probe=probe, deep=False, **words), drawn
    )
    return recording


def probing(kind: ProbeKind) -> Case:
    """The case with a probe of that kind."""
    companion = COMPANION if kind.startswith("batch") else ()
    return replace(CASE, form="chat" if kind == "chat" else "raw", probe=Probe(kind, AT, companion))


def plain_run(engine: Any, case: Case) -> Side:
    """A case in one pass; each is run once for an engine."""
    kept: dict[Case, Side] = engine.__dict__.setdefault("kept", {})
    if case not in kept:
        kept[case] = Side(Observation(case.id, "it", "ok"), record(engine, case).arrays)
    return kept[case]


def verdict(engine: Any, context: Context, kind: ProbeKind) -> tuple[str, float | None]:
    """What the comparator says of a probe beside the plain run."""
    case = probing(kind)
    plain = plain_run(engine, replace(case, probe=None))
    probed = Side(Observation(case.id, "it", "ok", probe=True), record(engine, case, probe=True).arrays)
    said = max(probes.check(case, plain, probed, context), key=lambda found: found.verdict)  # "agree" sorts first
    return said.verdict, said.measured


def kinds(table: dict[str, tuple[ProbeKind, ...]]) -> pytest.MarkDecorator:
    """Each engine with each of its kinds."""
    pairs = [(name, kind) for name, entries in table.items() for kind in entries]
    return pytest.mark.parametrize(("engine", "kind"), pairs, indirect=["engine"])


@kinds(AGREEING)
def test_a_probe_agrees_with_the_plain_run(engine: Any, context: Context, kind: ProbeKind) -> None:
    """Another way through the same engine gives the same prompt and the same distributions."""
    assert verdict(engine, context, kind)[0] == "agree"


@kinds(ABSENT)
def test_what_an_engine_does_not_have_is_said(engine: Any, kind: ProbeKind) -> None:
    """A probe that a subject has no notion of is unsupported, with a reason."""
    with pytest.raises(Unsupported, match=r"\w+ \w+"):
        record(engine, probing(kind), probe=True)


@pytest.mark.parametrize("engine", ["hf"], indirect=True)
@pytest.mark.parametrize("kind", ["chunked", "static_cache"])
def test_generate_loses_images(engine: Any, context: Context, kind: ProbeKind) -> None:
    """With `prefill_chunk_size` transformers drops images, with a static cache their masks; if not, delete this."""
    said, nats = verdict(engine, context, kind)
    assert said == "differ"
    assert nats is not None
    assert nats > 1


def test_the_sign_of_a_row_is_seen_from_its_position_on(engine: Any) -> None:
    """Visibility: rows before a text position stay as they are, its own moves; without the change none would."""
    case = replace(probing("visibility"), parts=CASE.parts[:1], probe=Probe("visibility", 101))
    plain, probed = record(engine, case), record(engine, case, probe=True)
    (row,) = probed.arrays["perturbed"]
    moved = np.abs(plain.arrays["hidden"] - probed.arrays["hidden"]).max(axis=1) > 1e-4
    assert row == 101 % len(moved)
    assert moved.tolist() == [position >= row for position in range(len(moved))]
    assert np.array_equal(record(engine, case).arrays["hidden"], plain.arrays["hidden"])


def test_a_changed_tensor_moves_the_output_once(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe runs on other weights, the next run on the true ones; an unchanged tensor moves nothing."""
    names = sorted(name for name, _ in tensors(locate(CASE.model)))
    norm = next(k for k, name in enumerate(names) if name.endswith("language_model.norm.weight"))
    case = replace(CASE, parts=CASE.parts[:1], probe=Probe("tensor", norm + 3 * len(names)))
    plain, probed = (record(engine, case, probe=probe).arrays["hidden"] for probe in (False, True))
    assert np.abs(plain - probed).max() > 0.1
    assert np.array_equal(record(engine, case).arrays["hidden"], plain)
    module = __import__(type(engine).__module__, fromlist=["with_changed_tensor"])
    monkeypatch.setattr(module, "with_changed_tensor", lambda checkpoint, _at, _directory: checkpoint)
    assert np.array_equal(record(engine, case, probe=True).arrays["hidden"], plain)


def test_the_true_weights_come_back_when_the_changed_ones_cannot_be_loaded(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A probe whose changed checkpoint cannot be loaded raises, and the next run has the true weights."""
    plain = record(engine, CASE).arrays["hidden"]
    module = __import__(type(engine).__module__, fromlist=["with_changed_tensor"])
    monkeypatch.setattr(module, "with_changed_tensor", lambda *_: tmp_path)
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        record(engine, replace(CASE, probe=Probe("tensor", 0)), probe=True)
    assert np.array_equal(record(engine, CASE).arrays["hidden"], plain)


@pytest.mark.parametrize("model", [*NAMES, "one-shared-kv", "one-head-size"])
def test_what_transformers_saved_is_the_same_model(model: str, tmp_path: Path) -> None:
    """A checkpoint as transformers saves it, in shards, gives in hf and native what the published form gives."""
    saved = AutoModelForImageTextToText.from_pretrained(locate(model), dtype=torch.bfloat16)
    saved.save_pretrained(tmp_path, max_shard_size="2MB")
    AutoProcessor.from_pretrained(locate(model)).save_pretrained(tmp_path)
    case = replace(CASE, model=model)
    for name in ("hf", "native"):
        engine = _loaded(name, model)
        published = record(engine, case).arrays["hidden"]
        report = engine.load(tmp_path, dtype="float32", device="cpu", audit=True)
        assert (report.missing, report.unexpected, report.reinitialised) == ((), (), ())
        assert np.array_equal(record(engine, case).arrays["hidden"], published)
    assert [rule.donor for rule in Checkpoint.open(tmp_path).layers] == [
        rule.donor for rule in Checkpoint.open(locate(model)).layers
    ]


def test_one_tensor_changes_in_the_copy(tmp_path: Path) -> None:
    """The copy has the same files and the same tensors but one, which is -2 t + 0.5."""
    source = locate(CASE.model)
    before, after = dict(tensors(source)), dict(tensors(with_changed_tensor(source, 7, tmp_path)))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [sorted(before)[7]]
    assert torch.equal(after[changed[0]], -2 * before[changed[0]] + 0.5)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in source.iterdir()}


def test_only_text_after_the_last_medium_is_read_singly() -> None:
    """At least one position after a medium stays in the prefill; nothing but text is read token by token."""
    assert [read_singly(at, [0, 1, 1, 0, 0, 0]) for at in range(4)] == [1, 2, 2, 2]
    assert read_singly(7, [0] * 20) == 8
    with pytest.raises(Unsupported, match="no text after"):
        read_singly(3, [0, 1, 1, 0])


Fault = Callable[[pytest.MonkeyPatch, Any], None]


def _other_row(patch: pytest.MonkeyPatch, engine: Any) -> None:
    """The companion's rows are taken for ours."""
    if engine.subject == "hf":
        scored = engine._scored
        patch.setattr(engine, "_scored", lambda s, i, ours=0, score=None: scored(s, i, len(s) - 1 - ours, score))
    else:
        packed = engine.model.forward_packed
        patch.setattr(engine.model, "forward_packed", lambda samples: packed(samples)[::-1])


def _seen_padding(patch: pytest.MonkeyPatch, _engine: Any) -> None:
    """Padding is not masked."""
    padded = hf_paths.padded

    def unmasked(*given: Any) -> Any:
        inputs = padded(*given)
        return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}

    patch.setattr(hf, "padded", unmasked)


def _wrong_token(patch: pytest.MonkeyPatch, engine: Any) -> None:
    """The first token that is read by itself is another one."""
    if engine.subject == "native":
        decode = Gemma4.decode
        patch.setattr(Gemma4, "decode", lambda self, ids, cache: decode(self, [ids[0] ^ 1], cache))
        return
    plain = hf_paths.plain

    def misread(model: Any, inputs: Any, **options: Any) -> Any:
        ids = inputs["input_ids"]
        return plain(model, {**inputs, "input_ids": ids ^ 1 if ids.shape[1] == 1 else ids}, **options)

    patch.setattr(hf_paths, "plain", misread)


def _late_chunks(patch: pytest.MonkeyPatch, _engine: Any) -> None:
    """Every chunk but the first stands one position too far on."""
    layouts = Gemma4.layouts

    def late(self: Gemma4, *given: Any) -> Iterator[Any]:
        for number, (rows, layout) in enumerate(layouts(self, *given)):
            yield rows, replace(layout, positions=layout.positions + (number > 0))

    patch.setattr(Gemma4, "layouts", late)


def _left_behind(patch: pytest.MonkeyPatch, engine: Any) -> None:
    """The run before leaves another final norm behind."""
    model = engine.model
    norm = model.model.language_model.norm if engine.subject == "hf" else model.network.decoder.norm
    before = Sample.before

    def leave(*given: Any) -> Sample:
        patch.setattr(norm, "weight", torch.nn.Parameter(norm.weight.detach().flip(0), requires_grad=False))
        return before(*given)

    patch.setattr(Sample, "before", leave)


def _second_bos(patch: pytest.MonkeyPatch, engine: Any) -> None:
    """The other form of the prompt starts with two BOS."""
    if engine.subject == "native":
        prepare = engine._prepare

        def twice(sample: Sample, *, as_ids: bool = False) -> Any:
            other = as_ids or sample.expanded
            return prepare(replace(sample, prompt="<bos>" * other + sample.prompt), as_ids=as_ids)

        patch.setattr(engine, "_prepare", twice)
        return
    patch.setattr(hf, "by_ids", lambda p, samples: by_ids(p, [replace(s, prompt="<bos>" + s.prompt) for s in samples]))
    patch.setattr(hf, "messages", lambda case: messages(replace(case, system="<bos>")))


FAULTS: dict[str, Fault] = {
    "batch": _other_row,
    "batch_last": _other_row,
    "padding": _seen_padding,
    "decode": _wrong_token,
    "chunked": _late_chunks,
    "repeat": _left_behind,
    "chat": _second_bos,
    "ids": _second_bos,
    "expanded": _second_bos,
}


@kinds(AGREEING)
def test_a_wrong_probe_is_noticed(
    engine: Any, context: Context, kind: ProbeKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault on the way of each probe makes it differ."""
    FAULTS[kind](monkeypatch, engine)
    assert verdict(engine, context, kind)[0] == "differ"


@pytest.fixture(name="heard", scope="module")
def _heard(listener: Any) -> Recording:
    return record(listener, HEARD)


def test_every_stage_of_every_medium_is_recorded(listener: Any, heard: Recording) -> None:
    """An image, a recording and a video leave their inputs, rows and counts, each as many as the prompt has places."""
    arrays, hidden = heard.arrays, heard.arrays["hidden"].shape[1]
    image, sound, video = heard.counts
    assert [count.medium for count in heard.counts] == ["image", "audio", "video"]
    assert all(count.predicted == count.feature_rows <= count.declared_max for count in heard.counts)
    assert (image.declared_max, sound.declared_max, video.declared_max) == (70, 750, 140)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["pixels.0"] == (9 * image.predicted, 768)
    assert shapes["positions.0"] == (9 * image.predicted, 2)
    assert shapes["mm_features.0"] == (image.predicted, hidden)
    assert shapes["audio_input.0"] == ((3000 - 1) // 160, 128)
    assert shapes["audio_features.0"] == (sound.predicted, hidden)
    assert shapes["video_pixels.0"] == (9 * video.predicted, 768)
    assert shapes["video_positions.0"] == (9 * video.predicted, 2)
    assert shapes["video_features.0"] == (video.predicted, hidden)
    assert shapes["logprobs"] == (len(arrays["prompt_ids"]) - 1,)
    if listener.subject == "hf":
        assert shapes["processor_state"] == (1,)
        assert arrays["processor_state"].dtype == np.dtype(np.uint64)


def test_a_call_leaves_the_processor_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state's digest is the same after another call, and another one when a class-level default has moved."""
    engine = _loaded("hf", HEARD.model)
    case = replace(CASE, model=HEARD.model, probe=Probe("repeat"))
    plain, probed = (record(engine, case, probe=probe).arrays["processor_state"] for probe in (False, True))
    assert plain == probed
    monkeypatch.setitem(engine.processor.valid_processor_kwargs._defaults["images_kwargs"], "max_soft_tokens", 140)
    assert record(engine, case).arrays["processor_state"] != plain


def test_forward_of_transformers_refuses_video() -> None:
    """It drops `num_frames_per_video` on its way: the probe `forward` crashes. If it does not, delete this."""
    engine = _loaded("hf", HEARD.model)
    with pytest.raises(ValueError, match="`num_frames_per_video` is required"):
        record(engine, replace(HEARD, parts=(VIDEO,), probe=Probe("forward")), probe=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "I;16", "1"])
def test_colour_modes_are_read_alike(listener: Any, mode: Any) -> None:
    """Native's pixels are those of hf in every mode; a tag of orientation turns nothing in either."""
    image = ImageSpec(30, 20, mode, seed=1)
    upright, tagged = (
        record(listener, replace(HEARD, parts=(Part(image=i),))) for i in (image, replace(image, orientation=6))
    )
    assert np.array_equal(upright.arrays["pixels.0"], tagged.arrays["pixels.0"])
    _MODES.setdefault(mode, upright.arrays["pixels.0"])
    assert np.array_equal(_MODES[mode], upright.arrays["pixels.0"])


_MODES: dict[str, Any] = {}
"""Pixels by mode, of the engine that came first."""
