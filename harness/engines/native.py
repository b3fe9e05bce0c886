"""The native implementation, as a subject."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.engines.base import (
    Array,
    Recording,
    Rejected,
    Unsupported,
    chosen,
    give_back_memory,
    package_versions,
)
from harness.engines.inputs import Sample, read_singly, step, with_changed_tensor
from harness.native import Gemma4, Prepared, Recorder, Transplant, Video, read_chat_style, render_chat
from harness.native.config_media import AudioTowerConfig
from harness.render import messages, tools
from harness.schema import Counts, LoadReport, ProbeKind, Request

RATE_HZ = 16_000
_FEATURES = ("mm_features.", "audio_features.", "video_features.")
_DEEP = ("merged_embeddings", "layer.")
_MOST_AUDIO_TOKENS = 750
"""Of the log-mel tower, which hears 30 s; the 12B has no limit and so declares what it predicts."""


@dataclass(frozen=True)
class Negation:
    """A tap that turns the sign of one row of what enters the decoder."""

    row: int

    def record(self, name: str, tensor: Tensor) -> Tensor:
        """The stage, its row negated where it is the decoder's input."""
        if name != "merged_embeddings":
            return tensor
        turned = tensor.clone()
        turned[self.row] *= -1
        return turned


class NativeEngine:
    """Our own Gemma 4: shares no code with what it judges."""

    def __init__(self, dtype: str = "") -> None:
        """`dtype` overrides the run's: in float64 it is the anchor by which rounding is measured."""
        self.own_dtype = chosen("dtype", dtype, ("", "float64", "float32", "bfloat16", "float16"))

    def versions(self) -> dict[str, str]:
        """Packages that the result depends on."""
        return package_versions("gemma4-conformance", "torch", "tokenizers", "pillow", "numpy")

    def load(self, checkpoint: Path, *, dtype: str, device: str, audit: bool = False) -> LoadReport:
        """Load a checkpoint in place of the one before; a missing tensor raises."""
        vars(self).pop("model", None)
        gc.collect()
        give_back_memory()
        self.checkpoint, self.dtype, self.device = checkpoint, self.own_dtype or dtype, device
        self.model = Gemma4.load(checkpoint, dtype=getattr(torch, self.dtype), device=device)
        report = self.model.report
        return LoadReport(missing=report.missing, unexpected=report.unexpected, unused=report.unused)

    def run(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Score the prompt in one pass, or as the probe says; given stages of another engine replace our own."""
        self.deep = request.deep
        self.grafts = load_file(request.grafts_path) if request.grafts_path else {}
        if not request.probe or request.case.probe is None:
            return self._plain(Sample.of(request, arrays))
        kind = request.case.probe.kind
        if kind not in _WAYS:
            raise Unsupported(f"{kind}: {_ABSENT[kind]}")
        return _WAYS[kind](self, request, arrays, request.case.probe.at)

    def _plain(self, sample: Sample, *, as_ids: bool = False) -> Recording:
        prepared, graft = self._prepare(sample, as_ids=as_ids), Transplant(self.grafts)
        tap = Recorder(graft)
        recording = self._record(sample, prepared, self.model.forward(prepared, tap=tap), tap)
        if graft.unused:
            raise Unsupported(f"this prompt has no stage {', '.join(sorted(graft.unused))} to be replaced")
        return recording

    def _visibility(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        sample = Sample.of(request, arrays)
        prepared = self._prepare(sample)
        row = at % len(prepared.token_ids)
        tap = Recorder(Negation(row))
        recording = self._record(sample, prepared, self.model.forward(prepared, tap=tap), tap)
        recording.add("perturbed", np.array([row], np.int64))
        return recording

    def _batch(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._packed(request, arrays, ours=0)

    def _batch_last(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._packed(request, arrays, ours=1)

    def _packed(self, request: Request, arrays: Mapping[str, Array], ours: int) -> Recording:
        """Two prompts in one pass: packed one after the other, as this implementation batches."""
        sample, other = Sample.of(request, arrays), Sample.companion_of(request, arrays)
        prepared = self._prepare(sample)
        pair = [prepared, self._prepare(other)]
        hidden = self.model.forward_packed(pair if ours == 0 else pair[::-1])[ours]
        return self._record(sample, prepared, hidden)

    def _chunked(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        sample = Sample.of(request, arrays)
        prepared = self._prepare(sample)
        return self._record(sample, prepared, self.model.forward(prepared, chunk_tokens=step(at)))

    def _decode(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        sample = Sample.of(request, arrays)
        prepared = self._prepare(sample)
        count = read_singly(at, prepared.media_types.tolist())
        return self._record(sample, prepared, self._singly(prepared, count))

    def go_on(self, request: Request, arrays: Mapping[str, Array]) -> Recording:
        """Write a continuation, or score one."""
        sample = Sample.of(request, arrays)
        prepared = self._prepare(sample)
        if request.generate:
            return self._written(request, prepared)
        ids = torch.tensor(request.continuation)
        longer = replace(
            prepared,
            token_ids=torch.cat([prepared.token_ids, ids]),
            media_types=torch.cat([prepared.media_types, torch.zeros_like(ids)]),
        )
        hidden = self._singly(longer, len(ids)) if request.singly else self.model.forward(longer)
        return self._record(sample, longer, hidden)

    def _written(self, request: Request, prepared: Prepared) -> Recording:
        """Tokens drawn one by one; the end of a turn is a token like any other."""
        assert request.case.continuation is not None
        seed, cache = request.case.continuation.seed, self.model.new_cache()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        last, written = self.model.forward(prepared, cache=cache)[-1:], list[int]()
        for _ in range(request.generate):
            logits = self.model.logits(last)[0].double().cpu()
            drawn = torch.multinomial(logits.softmax(0), 1, generator=generator) if generator else logits.argmax()
            written.append(int(drawn))
            last = self.model.decode(written[-1:], cache)
        recording = Recording()
        recording.add("continuation", np.array(written, np.int64))
        return recording

    def _singly(self, prepared: Prepared, count: int) -> Tensor:
        """Hidden states of all tokens, the last ones read one by one."""
        first, cache = len(prepared.token_ids) - count, self.model.new_cache()
        begun = replace(prepared, token_ids=prepared.token_ids[:first], media_types=prepared.media_types[:first])
        hidden = [self.model.forward(begun, cache=cache)]
        hidden += [self.model.decode([token], cache) for token in prepared.token_ids[first:].tolist()]
        return torch.cat(hidden)

    def _repeat(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        self._plain(Sample.before(request, arrays))
        return self._plain(Sample.of(request, arrays))

    def _ids(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._plain(Sample.of(request, arrays), as_ids=True)

    def _expanded(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        return self._plain(Sample.expanded_of(request, arrays))

    def _chat(self, request: Request, arrays: Mapping[str, Array], _at: int) -> Recording:
        if request.case.form != "chat":
            raise Unsupported(f"a case of form {request.case.form} is no chat")
        style = read_chat_style(self.checkpoint)
        text = render_chat(messages(request.case), style, tools=tools(request.case))
        return self._plain(replace(Sample.of(request, arrays), prompt=text))

    def _tensor(self, request: Request, arrays: Mapping[str, Array], at: int) -> Recording:
        true, dtype, device = self.checkpoint, self.dtype, self.device
        with tempfile.TemporaryDirectory() as directory:
            path = with_changed_tensor(true, at, Path(directory))
            try:
                self.load(path, dtype=dtype, device=device)
                return self.run(replace(request, probe=False), arrays)
            finally:
                self.load(true, dtype=dtype, device=device)

    def _prepare(self, sample: Sample, *, as_ids: bool = False) -> Prepared:
        """The model's input. It takes sound at 16 kHz and leaves resampling to others."""
        media = sample.media
        if other := {spec.rate_hz for spec, _ in media.audios} - {RATE_HZ}:
            raise Unsupported(
                f"sound at {other} Hz; the native implementation takes {RATE_HZ} Hz and resamples nothing"
            )
        prompt: str | Sequence[int] = sample.prompt
        if as_ids:
            prompt = self.model.tokenizer.encode(sample.prompt, add_special_tokens=False).ids
        try:
            return self.model.prepare(
                prompt,
                [np.asarray(image.convert("RGB")) for image in media.pictures],
                [samples for _, samples in media.audios],
                [Video(list(frames), spec.fps, spec.indices) for spec, frames in media.videos],
                max_soft_tokens=sample.max_soft_tokens,
            )
        except ValueError as error:
            raise Rejected(f"{type(error).__name__}: {error}") from error

    def _record(self, sample: Sample, prepared: Prepared, hidden: Tensor, tap: Recorder | None = None) -> Recording:
        """Everything of one run; a run that cannot be tapped has no features."""
        recording, rows = Recording(), tap.tensors if tap else {}
        recording.add("prompt_ids", prepared.token_ids)
        recording.add("hidden", hidden)
        logprobs = torch.log_softmax(self.model.logits(hidden[:-1]).float(), dim=-1)
        recording.add("logprobs", logprobs.gather(1, prepared.token_ids[1:, None].to(logprobs.device))[:, 0])
        for k, image in enumerate(prepared.images):
            recording.add(f"pixels.{k}", image.patches)
            recording.add(f"positions.{k}", image.positions)
        for k, audio in enumerate(prepared.audios):
            recording.add(f"audio_input.{k}", audio.frames)
        for k, video in enumerate(prepared.videos):
            recording.add(f"video_pixels.{k}", torch.cat([frame.patches for frame in video.frames]))
            recording.add(f"video_positions.{k}", torch.cat([frame.positions for frame in video.frames]))
        for name, feature in rows.items():
            if name.startswith(_FEATURES) or (self.deep and name.startswith(_DEEP)):
                recording.add(name, feature)
        if tap:
            recording.counts = self._counts(sample, prepared, rows)
        return recording

    def _counts(self, sample: Sample, prepared: Prepared, rows: Mapping[str, Tensor]) -> tuple[Counts, ...]:
        hears_mel = isinstance(self.model.config.audio, AudioTowerConfig)
        counts = [
            Counts(image.soft_tokens, len(rows[f"mm_features.{k}"]), sample.max_soft_tokens)
            for k, image in enumerate(prepared.images)
        ]
        for k, audio in enumerate(prepared.audios):
            declared = _MOST_AUDIO_TOKENS if hears_mel else audio.soft_tokens
            counts.append(Counts(audio.soft_tokens, len(rows[f"audio_features.{k}"]), declared, "audio"))
        for k, video in enumerate(prepared.videos):
            declared = self.model.config.video.max_soft_tokens * len(video.frames)
            predicted = sum(frame.soft_tokens for frame in video.frames)
            counts.append(Counts(predicted, len(rows[f"video_features.{k}"]), declared, "video"))
        return tuple(counts)


_Way = Callable[[NativeEngine, Request, Mapping[str, Array], int], Recording]

_WAYS: dict[ProbeKind, _Way] = {
    "visibility": NativeEngine._visibility,
    "batch": NativeEngine._batch,
    "batch_last": NativeEngine._batch_last,
    "chunked": NativeEngine._chunked,
    "decode": NativeEngine._decode,
    "repeat": NativeEngine._repeat,
    "ids": NativeEngine._ids,
    "expanded": NativeEngine._expanded,
    "tensor": NativeEngine._tensor,
    "chat": NativeEngine._chat,
}

_ABSENT: dict[ProbeKind, str] = {
    "padding": "native packs its batches and has no padding",
    "prefix_cache": "native keeps nothing from one prompt to the next",
    "processor_cache": "native keeps nothing from one prompt to the next",
    "static_cache": "native has one kind of cache",
    "forward": "native has one way to take media",
}
