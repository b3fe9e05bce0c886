"""vLLM's adapter on the real engine: media, and each probe beside the plain run, with a proof that it was one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.checkpoint import Checkpoint, tensors
from harness.comparators import Context, Limits, Side, load_side
from harness.comparators.kl import OutputHead
from harness.comparators.probes import check
from harness.environments import Subject, resolve
from harness.fleet import Options
from harness.media import arrays
from harness.pool import Worker
from harness.render import texts
from harness.schema import AudioSpec, Case, ImageSpec, Part, Probe, ProbeKind, PromptForm, Request, Verdict, VideoSpec
from harness.session import locate

pytestmark = pytest.mark.engines

AT = 21
"""Chunks of 22 tokens, so that every medium lies across several; 6 tokens decoded; position 21."""

IMAGES = (Part(image=ImageSpec(100, 90)), Part(text=" and "), Part(image=ImageSpec(64, 64, mode="P", seed=1)))
VIDEO = Part(video=VideoSpec(3, 80, 60, fps=2.0, indices=(0, 50, 130)))
AUDIO = Part(audio=AudioSpec(9000, rate_hz=24_000))
MEDIA = {"tiny-e2b": (*IMAGES, VIDEO), "tiny-31b": (*IMAGES, VIDEO), "tiny-12b": (*IMAGES, AUDIO, VIDEO)}
COMPANION = (Part(text="Another one "), Part(image=ImageSpec(70, 70, seed=4)), Part(text="."))
SAME: tuple[ProbeKind, ...] = (
    "batch", "batch_last", "chunked", "decode", "prefix_cache", "processor_cache", "repeat", "chat", "ids",
)  # fmt: skip


def case(model: str, kind: ProbeKind, media: tuple[Part, ...] | None = None) -> Case:
    parts = MEDIA[model] if media is None else media
    words = Part(text="Tell me in many words what is to be seen, to be heard and to be learned here.")
    companion = COMPANION if kind in ("batch", "batch_last", "repeat") else ()
    form: PromptForm = "chat" if kind == "chat" else "turn"
    return Case(
        model, (Part(text="Look: "), *parts, words), 70, form=form, probe=Probe(kind, at=AT, companion=companion)
    )


@dataclass(frozen=True)
class Engine:
    """A warm worker with a checkpoint, and what comparators need of that."""

    worker: Worker
    checkpoint: Checkpoint
    scratch: Path

    def side(self, case: Case, *, probe: bool = False) -> Side:
        """What the engine makes of a case, or of its probe."""
        companion = case.probe.companion if case.probe else ()
        media = arrays(case.parts) | arrays(companion, "companion.")
        media_path = str(self.scratch / "media") if media else ""
        if media:
            save_file(media, media_path)
        template = self.checkpoint.chat_template if case.form == "chat" else ""
        words = texts(case, template, waves=self.checkpoint.takes_waves)
        arrays_path = str(self.scratch / f"{case.id}{probe}")
        request = Request(case, media_path=media_path, arrays_path=arrays_path, probe=probe, deep=False, **words)
        return load_side(self.worker.run(request))

    def verdicts(self, case: Case, plain: Side, probed: Side) -> list[Verdict]:
        limits = Limits.of("float32")
        context = Context(self.checkpoint.media_tokens, OutputHead.of(self.checkpoint), limits)
        return list(check(case, plain, probed, context))


@pytest.fixture(name="worker", scope="module")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    (subject,) = resolve(["vllm"])
    worker = Worker(subject, tmp_path_factory.mktemp("vllm") / "log", threads=1, timeout_s=Options.timeout_s)
    yield worker
    worker.close()


@pytest.fixture(name="engine", scope="module", params=list(MEDIA))
def _engine(request: pytest.FixtureRequest, worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    checkpoint = Checkpoint.open(locate(request.param))
    worker.load(checkpoint.path, dtype="float32", device="cpu")
    return Engine(worker, checkpoint, tmp_path_factory.mktemp(request.param))


def _model(engine: Engine) -> str:
    return engine.checkpoint.path.name


@pytest.mark.parametrize("kind", SAME)
def test_a_probe_agrees_with_the_plain_run(engine: Engine, kind: ProbeKind) -> None:
    """Within the limit of P6; and it ran the steps that make it that probe, on all rows it should have."""
    asked = case(_model(engine), kind)
    plain, probed = engine.side(asked), engine.side(asked, probe=True)
    assert [plain.observation.message, probed.observation.message] == ["", ""]
    stages = [f"state.{kind}", kind] if kind == "repeat" else [kind]
    judged = [(v.stage, v.verdict) for v in engine.verdicts(asked, plain, probed)]
    assert judged == [(stage, "agree") for stage in stages]
    length, steps = len(plain.arrays["prompt_ids"]), probed.arrays["steps"].tolist()
    assert plain.arrays["steps"].tolist() == [length]
    match kind:
        case "batch" | "batch_last":
            companion = engine.side(replace(asked, parts=COMPANION, probe=None))
            assert steps == [length + len(companion.arrays["prompt_ids"])]
        case "chunked":
            assert steps == [22] * (length // 22) + [length % 22] * (length % 22 > 0)
        case "decode":
            assert steps == [length - 6] + [1] * 6
        case "prefix_cache":
            assert (length - steps[0]) % 32 == 0
            assert 0 < steps[0] < length
        case _:
            assert steps == [length]
    assert len(probed.arrays["hidden"]) == (steps[0] if kind == "prefix_cache" else length)


def test_one_negated_row_moves_itself_and_later_rows_only(engine: Engine) -> None:
    """The position is the probe's; rows before it are the same to the bit, its own is another."""
    asked = case(_model(engine), "visibility", ())
    plain, probed = engine.side(asked), engine.side(asked, probe=True)
    (position,) = probed.arrays["perturbed"].tolist()
    assert position == AT % len(plain.arrays["prompt_ids"])
    moved = np.abs(plain.arrays["hidden"] - probed.arrays["hidden"]).max(axis=1)
    assert not moved[:position].any()
    assert moved[position] > 1e-2
    again = engine.side(asked)
    assert np.array_equal(again.arrays["hidden"], plain.arrays["hidden"])


def test_a_changed_tensor_changes_the_numbers_and_is_gone_afterwards(engine: Engine) -> None:
    """A reload in place gives other hidden states; the true weights then give the first ones to the bit."""
    names = sorted(name for name, _ in tensors(engine.checkpoint.path))
    at = names.index("model.language_model.layers.1.self_attn.q_proj.weight")
    asked = replace(case(_model(engine), "tensor", ()), probe=Probe("tensor", at))
    plain, probed, again = engine.side(asked), engine.side(asked, probe=True), engine.side(asked)
    assert np.abs(plain.arrays["hidden"] - probed.arrays["hidden"]).max() > 1e-2
    assert plain.observation.digests == again.observation.digests


def test_an_image_known_without_its_budget_is_found(tmp_path: Path) -> None:
    """Negative control: where the cache does not look at the processor's options, the probe has another prompt."""
    poisoned = Worker(
        Subject("poisoned", "tests.poisoned_vllm:PoisonedVllm"),
        tmp_path / "log",
        threads=1,
        timeout_s=Options.timeout_s,
    )
    try:
        checkpoint = Checkpoint.open(locate("tiny-31b"))
        poisoned.load(checkpoint.path, dtype="float32", device="cpu")
        engine = Engine(poisoned, checkpoint, tmp_path)
        asked = case("tiny-31b", "processor_cache", (Part(image=ImageSpec(100, 90)),))
        (verdict,) = engine.verdicts(asked, engine.side(asked), engine.side(asked, probe=True))
    finally:
        poisoned.close()
    assert (verdict.stage, verdict.verdict) == ("prompt_ids.processor_cache", "differ")


def test_media_that_stand_twice_are_encoded_once_and_recorded_twice(engine: Engine) -> None:
    """Where media are known by their content; their rows are those of the plain run, which encoded each."""
    asked = case(_model(engine), "processor_cache", (*IMAGES, VIDEO, IMAGES[0], VIDEO))
    plain, probed = engine.side(asked), engine.side(asked, probe=True)
    assert probed.observation.message == ""
    assert [verdict.verdict for verdict in engine.verdicts(asked, plain, probed)] == ["agree"]
    for name in ("mm_features.0", "mm_features.1", "mm_features.2", "video_features.0", "video_features.1"):
        assert np.allclose(probed.arrays[name], plain.arrays[name], atol=1e-5)


def test_a_cache_of_media_needs_an_image(engine: Engine) -> None:
    """Sound and video have no budget that could be another."""
    observation = engine.side(case(_model(engine), "processor_cache", (VIDEO,)), probe=True).observation
    assert (observation.outcome, "only images have a budget" in observation.message) == ("unavailable", True)


def test_what_vllm_does_not_have_is_unavailable(engine: Engine) -> None:
    """Not a finding, and with the reason."""
    for kind in ("padding", "static_cache"):
        observation = engine.side(case(_model(engine), kind), probe=True).observation
        assert (observation.outcome, observation.message.split(":")[0]) == ("unavailable", f"vLLM has no {kind}")
    alone = replace(case(_model(engine), "decode"), parts=IMAGES, form="raw")
    assert engine.side(alone, probe=True).observation.outcome == "unavailable"


def test_media_are_recorded_stage_by_stage(engine: Engine) -> None:
    """Rows, samples and positions of each medium, and as many rows as counted, predicted and declared at most."""
    plain = engine.side(case(_model(engine), "ids"))
    shapes = {name: array.shape for name, array in plain.arrays.items()}
    hidden = shapes["hidden"][1]
    unified = _model(engine) == "tiny-12b"
    patches, values = (1, 6912) if unified else (9, 768)
    soft = {f"mm_features.{k}": rows for k, rows in enumerate((56, 64))} | {"video_features.0": 189}
    for name, rows in soft.items():
        samples, positions = (
            name.replace("mm_features", "pixels").replace("features", "pixels"),
            name.replace("mm_features", "positions").replace("features", "positions"),
        )
        assert [shapes[name], shapes[samples], shapes[positions]] == [
            (rows, hidden), (patches * rows, values), (patches * rows, 2)
        ]  # fmt: skip
    counts = [(entry.medium, entry.predicted, entry.feature_rows) for entry in plain.observation.counts]
    audio = [("audio", 10, 10)] if unified else []
    assert counts == [("image", 56, 56), ("image", 64, 64), *audio, ("video", 189, 189)]
    assert all(entry.feature_rows <= entry.declared_max for entry in plain.observation.counts)
    if unified:
        assert [shapes["audio_features.0"], shapes["audio_input.0"]] == [(10, hidden), (10, 640)]


def test_a_request_that_broke_leaves_the_engine_as_it_was(engine: Engine) -> None:
    """Whatever becomes of a recording (on CPU the audio tower of vLLM 0.32 raises), the next run is the same."""
    asked = case(_model(engine), "ids", IMAGES)
    before = engine.side(asked)
    starts = engine.worker.starts
    engine.side(case(_model(engine), "ids", (AUDIO,)))
    after = engine.side(asked)
    assert before.observation.digests == after.observation.digests
    assert engine.worker.starts == starts
