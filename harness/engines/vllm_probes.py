"""The ways that vLLM can take an input beside the plain one. Layer 2; imports no engine.

Each probe makes sure that it did what it is named after: one batch, several chunks, tokens found in a cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from harness.engines.base import Array, Recording, Rejected, Unsupported
from harness.engines.inputs import Media, with_changed_tensor
from harness.engines.vllm_media import counted, multi_modal_data, prompt
from harness.render import messages, tools
from harness.schema import Medium, ProbeKind, Request, SoftTokenBudget

Arrays = Mapping[str, Array]

_ABSENT: dict[ProbeKind, str] = {
    "padding": "prompts of a batch stand one after another, unpadded",
    "static_cache": "its cache is paged, there is no other",
    "forward": "it has one way to take media",
}


def probe(engine: Any, request: Request, media: Media, arrays: Arrays) -> Recording:
    """Run a case as its probe says.

    Raises:
        Unsupported: vLLM has no such thing, or this prompt is too short for it.
    """
    asked = request.case.probe
    assert asked is not None
    if asked.kind not in _PROBES:
        raise Unsupported(f"vLLM has no {asked.kind}: {_ABSENT[asked.kind]}")
    return _PROBES[asked.kind](engine, request, media, arrays, asked.at)


def _scored(engine: Any, request: Request, media: Media, text: str | list[int] | None = None) -> Recording:
    (output,) = engine.score(engine.prompt(request, media, text))
    recording: Recording = engine.record(request, media, output)
    return recording


def _partly(engine: Any, ids: list[int]) -> Recording:
    """Of a run that scores no prompt."""
    recording = Recording()
    recording.add("prompt_ids", np.array(ids, dtype=np.int64))
    recording.add("hidden", engine.tap.hidden)
    recording.add("steps", np.array(engine.tap.lengths))
    return recording


def _visibility(engine: Any, request: Request, media: Media, _arrays: Arrays, at: int) -> Recording:
    engine.tap.negate = at
    recording = _scored(engine, request, media)
    recording.add("perturbed", np.array([engine.tap.negated]))
    return recording


def _batch(engine: Any, request: Request, media: Media, arrays: Arrays, _at: int) -> Recording:
    """Both prompts in one step; then what is ours is taken out of it."""
    assert request.case.probe is not None
    ours = engine.prompt(request, media)
    theirs = Media.of(request.case.probe.companion, arrays, "companion.")
    other = engine.prompt(request, theirs, request.companion)
    last = request.case.probe.kind == "batch_last"
    outputs = engine.score(*((other, ours) if last else (ours, other)))
    if len(engine.tap.steps) > 1:
        count = sum(len(output.prompt_token_ids) for output in outputs)
        raise Unsupported(f"two prompts of {count:,} tokens in all do not fit in one step")
    nothing = counted(Media())
    engine.tap.keep(int(last), counted(theirs) if last else nothing, counted(media))
    recording: Recording = engine.record(request, media, outputs[int(last)])
    return recording


@contextmanager
def _chunks_of(engine: Any, tokens: int) -> Iterator[None]:
    """The scheduler with a smaller step. Its threshold for long prefills does not hold for a prompt that is alone."""
    with mock.patch.object(engine.core.scheduler, "max_num_scheduled_tokens", tokens):
        yield


def _chunked(engine: Any, request: Request, media: Media, _arrays: Arrays, at: int) -> Recording:
    tokens = 1 + at % 64
    with _chunks_of(engine, tokens):
        recording = _scored(engine, request, media)
    if len(engine.tap.steps) == 1:
        raise Unsupported(f"{len(recording.arrays['prompt_ids'])} tokens are one chunk of up to {tokens}")
    return recording


def go_on(engine: Any, request: Request, media: Media) -> Recording:
    """Write a continuation, or score one behind the prompt's ids."""
    ids = [*_ids_of(engine, request), *request.continuation]
    if request.singly:
        return _forced(engine, request, media, ids, len(request.continuation))
    if request.continuation:
        return _scored(engine, request, media, ids)
    assert request.case.continuation is not None
    seed = request.case.continuation.seed
    drawn = {"temperature": 0.0 if seed is None else 1.0, "seed": seed, "max_tokens": request.generate}
    (output,) = engine.score(engine.prompt(request, media, ids), prompt_logprobs=None, ignore_eos=True, **drawn)
    recording = Recording()
    recording.add("continuation", np.array(output.outputs[0].token_ids, np.int64))
    return recording


def _decode(engine: Any, request: Request, media: Media, _arrays: Arrays, at: int) -> Recording:
    """All but the last tokens as a prompt, whose generation is then forced to be those."""
    ids = _ids_of(engine, request)
    config = engine.llm.model_config.hf_config
    ends = {getattr(config, f"{name}_token_id", None) for name in ("image", "audio", "video", "eoi", "eoa")}
    after_media = next((count for count, token in enumerate(reversed(ids)) if token in ends), len(ids))
    n = min(1 + at % 8, after_media - 1)
    if n < 1:
        raise Unsupported(f"{after_media} tokens after the last medium: none is left to decode after a prefill")
    return _forced(engine, request, media, ids, n)


def _forced(engine: Any, request: Request, media: Media, ids: list[int], n: int) -> Recording:
    engine.tap.forced.extend(ids[-n:])
    # One more is sampled than is read; the end of a turn is a token like any other here.
    options = {"max_tokens": n + 1, "prompt_logprobs": None, "skip_reading_prefix_cache": True, "ignore_eos": True}
    (output,) = engine.score(engine.prompt(request, media, ids[:-n]), **options)
    if engine.tap.lengths[1:] != [1] * n:
        raise RuntimeError(f"expected a prefill and {n} steps of one token, ran steps of {engine.tap.lengths}")
    return _partly(engine, [*output.prompt_token_ids, *output.outputs[0].token_ids[:n]])


def _prefix_cache(engine: Any, request: Request, media: Media, _arrays: Arrays, _at: int) -> Recording:
    """Twice, with media known by their content; a probe before may have left wrong blocks in the cache."""
    _forget(engine)
    made = prompt(request.prompt, media, request.case.max_soft_tokens)
    engine.score(made, prompt_logprobs=None)
    engine.tap.clear()
    (output,) = engine.score(made, prompt_logprobs=None)
    if not output.num_cached_tokens:
        raise Unsupported(f"a prompt of {len(output.prompt_token_ids)} tokens: no prefix of it can be found again")
    return _partly(engine, output.prompt_token_ids)


def _processor_cache(engine: Any, request: Request, media: Media, _arrays: Arrays, _at: int) -> Recording:
    """With the cache of processed media that is usual: our media at another budget, then twice at our own."""
    if not media.images:
        raise Unsupported("only images have a budget that could be changed")
    other, ours = (
        prompt(request.prompt, media, budget) for budget in (_other_budget(request), request.case.max_soft_tokens)
    )
    with engine.processor_cache() as cache:
        for made in (other, ours, ours):
            _forget(engine)  # So that only the processor's cache is looked at.
            engine.tap.clear()
            with _identified(engine) as known:
                (output,) = engine.score(made)
        hits = cache.make_stats().hits
    if not hits:
        raise Unsupported("what the processor made does not fit its cache")
    engine.tap.share(known)
    recording: Recording = engine.record(request, media, output)
    return recording


@contextmanager
def _identified(engine: Any) -> Iterator[dict[Medium, list[str]]]:
    """Yields what the encoder's cache will know the media of the next request by, filled in when it is added."""
    known: dict[Medium, list[str]] = {"image": [], "audio": [], "video": []}
    add_request = engine.core.add_request

    def add(asked: Any, *args: Any) -> Any:
        for feature in asked.mm_features:
            if feature.mm_position.length:
                known[feature.modality].append(feature.identifier)
        return add_request(asked, *args)

    with mock.patch.object(engine.core, "add_request", add):
        yield known


def _other_budget(request: Request) -> SoftTokenBudget:
    return 140 if request.case.max_soft_tokens == 70 else 70


def _forget(engine: Any) -> None:
    engine.llm.reset_prefix_cache()
    engine.core.reset_encoder_cache()


def _repeat(engine: Any, request: Request, media: Media, arrays: Arrays, _at: int) -> Recording:
    """After the companion, or after our own prompt with another budget, whatever becomes of that."""
    assert request.case.probe is not None
    case = request.case
    if request.companion:
        others = Media.of(request.case.probe.companion, arrays, "companion.")
        other = engine.prompt(request, others, request.companion)
    else:
        other = engine.prompt(replace(request, case=replace(case, max_soft_tokens=_other_budget(request))), media)
    try:
        engine.score(other)
    except Rejected as error:
        print(f"the run before was rejected, which is no matter here: {error}")
    engine.tap.clear()
    return _scored(engine, request, media)


def _chat(engine: Any, request: Request, media: Media, _arrays: Arrays, _at: int) -> Recording:
    """vLLM's own chat path, but for the decoding of audio and video files: it is handed what they would give."""
    if request.case.form != "chat":
        raise Unsupported(f"a prompt of form {request.case.form} is no chat")
    data = multi_modal_data(media)
    chat = messages(request.case)
    waiting = {name: iter(items) for name, items in data.items()}
    types = {"image": "image_pil", "audio": "audio_url", "video": "video_url"}
    for number, part in enumerate(part for message in chat for part in message["content"]):
        name = part["type"]
        if name in types:
            value = next(waiting[name])
            kept = value if name == "image" else None
            part.update({"type": types[name], types[name]: kept, "uuid": f"chat{engine.named}-{number}"})
    engine.named += 1
    renderer = engine.llm.renderer
    render_messages = renderer.render_messages

    def with_media(*args: Any, **kwargs: Any) -> Any:
        conversation, made = render_messages(*args, **kwargs)
        return conversation, {**made, "multi_modal_data": data} if data else made

    # What vLLM finds by itself for the published template; the zoo's loops over parts in a macro, where it sees none.
    options = {"chat_template_content_format": "openai", "use_tqdm": False, "tools": tools(request.case) or None}
    if data:
        options["mm_processor_kwargs"] = {"max_soft_tokens": request.case.max_soft_tokens}
    with mock.patch.object(renderer, "render_messages", with_media):
        (output,) = engine.finish(lambda params: engine.llm.enqueue_chat(chat, params, **options))
    recording: Recording = engine.record(request, media, output)
    return recording


def _ids_of(engine: Any, request: Request) -> list[int]:
    ids: list[int] = engine.llm.get_tokenizer().encode(request.prompt, add_special_tokens=False)
    return ids


def _ids(engine: Any, request: Request, media: Media, _arrays: Arrays, _at: int) -> Recording:
    return _scored(engine, request, media, _ids_of(engine, request))


def _expanded(engine: Any, request: Request, media: Media, _arrays: Arrays, _at: int) -> Recording:
    if not request.expanded or request.case.form == "chat":
        raise Unsupported("a chat has no expanded form")
    return _scored(engine, request, media, request.expanded)


def _tensor(engine: Any, request: Request, media: Media, _arrays: Arrays, at: int) -> Recording:
    """With other weights, reloaded in place: to the bit what another engine gives, in a fifth of the time."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        _weights_of(engine, with_changed_tensor(engine.checkpoint, at, Path(scratch))),
    ):
        return _scored(engine, request, media)


@contextmanager
def _weights_of(engine: Any, checkpoint: Path) -> Iterator[None]:
    """Other weights; afterwards the true ones again, or another engine where they could not be loaded."""

    def reload(path: Path) -> None:
        _forget(engine)
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        engine.llm.model_config.model = str(engine.checkpoint)  # Where its processor is still to be found.

    engine.broken = True
    reload(checkpoint)
    try:
        yield
    finally:
        reload(engine.checkpoint)
        engine.broken = False


_PROBES: dict[ProbeKind, Callable[[Any, Request, Media, Arrays, int], Recording]] = {
    "visibility": _visibility,
    "batch": _batch,
    "batch_last": _batch,
    "chunked": _chunked,
    "decode": _decode,
    "prefix_cache": _prefix_cache,
    "processor_cache": _processor_cache,
    "repeat": _repeat,
    "chat": _chat,
    "ids": _ids,
    "expanded": _expanded,
    "tensor": _tensor,
}
