"""What Hugging Face's processor makes of prompts with media. It is handed the processor and imports none.

Prompts go through the processor as its users call it: text, Pillow images, sound as it was recorded, video as an array
of frames with its metadata. Prompts that are expanded already go in as token ids beside tensors, see `by_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from harness.engines.base import Unsupported
from harness.engines.inputs import Sample
from harness.schema import VideoSpec


def by_text(processor: Any, samples: Sequence[Sample]) -> Any:
    """Model inputs of a batch of prompts."""
    given: dict[str, Any] = {"text": [sample.prompt for sample in samples]}
    if any(sample.media.images for sample in samples):
        given["images"] = [sample.media.pictures for sample in samples]
    if recordings := [wave for sample in samples for _, wave in sample.media.audios]:
        given["audio"] = recordings
    videos, options = _videos(processor, samples)
    if videos:
        given["videos"] = videos
    return processor(**given, **_options(samples, options), return_tensors="pt")


def by_chat(processor: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]], sample: Sample) -> Any:
    """Model inputs of a chat whose media parts lack their media, by the checkpoint's own template."""
    videos, options = _videos(processor, [sample])
    queues: dict[str, Any] = {
        "image": iter(sample.media.pictures),
        "audio": iter(wave for _, wave in sample.media.audios),
        "video": iter(videos),
    }
    for part in (part for message in messages for part in message["content"]):
        if part["type"] in queues:
            part[part["type"]] = next(queues[part["type"]])
    return processor.apply_chat_template(
        messages,
        tools=tools or None,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=_options([sample], options),
    )


def by_ids(processor: Any, samples: Sequence[Sample]) -> Any:
    """Model inputs of prompts that are expanded already.

    The processor takes bare placeholders only: it counts the placeholders of an expanded prompt as images. Whoever
    holds an expanded prompt gives its ids to the model, and so does this adapter. For a prompt that is partly expanded
    no such way exists; the processor refuses it.
    """
    inputs = processor.tokenizer(
        [sample.prompt for sample in samples], add_special_tokens=False, padding=True, return_tensors="pt"
    )
    types = processor.create_mm_token_type_ids(inputs["input_ids"].tolist())
    inputs["mm_token_type_ids"] = inputs["input_ids"].new_tensor(types)
    options = _options(samples, {})
    if pictures := [picture for sample in samples for picture in sample.media.pictures]:
        inputs.update(processor.image_processor(pictures, **options["images_kwargs"], return_tensors="pt"))
    if recordings := [wave for sample in samples for _, wave in sample.media.audios]:
        inputs.update(processor.feature_extractor(recordings, **options["audio_kwargs"], return_tensors="pt"))
    videos, frames = _videos(processor, samples)
    if videos:
        inputs.update(processor.video_processor(videos, **frames, return_tensors="pt"))
    for name in getattr(processor, "unused_input_names", ()):  # Of later releases than 5.8.
        inputs.pop(name, None)
    return inputs


def _options(samples: Sequence[Sample], videos: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arguments by medium. Made anew for each call, for `apply_chat_template` writes into what it is given."""
    rates = {spec.rate_hz for sample in samples for spec, _ in sample.media.audios}
    if len(rates) > 1:
        raise Unsupported(f"sound at {sorted(rates)} Hz in one call; the processor takes one sampling rate")
    options: dict[str, dict[str, Any]] = {}
    if rates:
        options["audio_kwargs"] = {"sampling_rate": rates.pop()}
    if any(sample.media.images for sample in samples):
        options["images_kwargs"] = {"max_soft_tokens": samples[0].max_soft_tokens}
    if videos:
        options["videos_kwargs"] = videos
    return options


def _videos(processor: Any, samples: Sequence[Sample]) -> tuple[list[Any], dict[str, Any]]:
    """The videos, and the processor's options for them.

    Sampling is switched for all videos of a call at once. So where one comes with the numbers of its shown frames, the
    frames of whole videos beside it are chosen by the processor's own function before.
    """
    shown = [video for sample in samples for video in sample.media.videos]
    if not shown:
        return [], {}
    choosing = all(spec.indices is None for spec, _ in shown)
    metadata = [_metadata(spec, len(frames)) for spec, frames in shown]
    videos = [frames for _, frames in shown]
    for k, (spec, frames) in enumerate(shown):
        if spec.indices is None and not choosing:
            whole = SimpleNamespace(total_num_frames=len(frames), fps=spec.fps)
            chosen = [int(index) for index in processor.video_processor.sample_frames(whole)]
            videos[k], metadata[k]["frames_indices"] = frames[chosen], chosen
    return videos, {"video_metadata": metadata, "do_sample_frames": choosing, "input_data_format": "channels_last"}


def _metadata(spec: VideoSpec, frames: int) -> dict[str, Any]:
    if spec.indices is None:
        return {"total_num_frames": frames, "fps": spec.fps}
    return {"total_num_frames": max(spec.indices) + 1, "fps": spec.fps, "frames_indices": list(spec.indices)}
