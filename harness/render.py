"""A case as the text that every engine is given, or as the messages of a chat. Layer 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.schema import Case, Part, ToolUse
from harness.spec import (
    AUDIO,
    AUDIO_MAX_SAMPLES,
    AUDIO_RATE_HZ,
    BOA,
    BOI,
    BOS,
    EOA,
    EOI,
    IMAGE,
    QUOTE,
    TURN_END,
    TURN_START,
    VIDEO,
    VIDEO_BUDGET,
    VIDEO_FRAMES,
    audio_tokens,
    shown_frames,
    soft_tokens,
    timestamp,
    waveform_tokens,
)

_BARE = {"image": IMAGE, "audio": AUDIO, "video": VIDEO}


def has_rule(part: Part) -> bool:
    """Whether the rules of `harness.spec` say how a medium is written out, whatever the engine.

    Not of sound at another rate, which some resample and others do not, nor beyond the cap, nor of less than one soft
    token; not of a whole video that is too short to take frames from.
    """
    if part.audio:
        samples = part.audio.samples
        return part.audio.rate_hz == AUDIO_RATE_HZ and samples <= AUDIO_MAX_SAMPLES and audio_tokens(samples) > 0
    if part.video:
        return part.video.indices is not None or part.video.frames >= VIDEO_FRAMES
    return part.image is not None


def written_out(part: Part, max_soft_tokens: int, *, waves: bool = False) -> str:
    """A medium with its marks and one placeholder per soft token, by the rules of `harness.spec`.

    `waves` is the rule of models that take sound as it is, the 12B. A frame of a video stands behind its time.
    """
    if part.image:
        count = soft_tokens(part.image.width_px, part.image.height_px, max_soft_tokens).reference
        return f"{BOI}{IMAGE * count}{EOI}"
    if part.audio:
        return f"{BOA}{AUDIO * (waveform_tokens if waves else audio_tokens)(part.audio.samples)}{EOA}"
    assert part.video is not None
    video = part.video
    frame = f"{BOI}{VIDEO * soft_tokens(video.width_px, video.height_px, VIDEO_BUDGET).reference}{EOI}"
    numbers = shown_frames(video.frames, video.indices) if has_rule(part) else range(video.frames)
    return " ".join(f"{timestamp(number, video.fps)} {frame}" for number in numbers)


def render(case: Case, template: str = "", *, waves: bool = False) -> str:
    """The prompt as text, one BOS first: the parts as they are, as a user turn, or through a chat template.

    `template` is the checkpoint's chat_template.jinja; only the form `chat` needs it. It comes from a file of whoever
    made the checkpoint, so it is rendered in a sandbox. `waves` as in `written_out`.
    """
    if case.form == "chat":
        return _templated(case, template)
    body = "".join(_rendered(part, case.max_soft_tokens, waves=waves) for part in case.parts)
    if case.form == "turn":
        instruction = case.system + (declaration(case.tool) if case.tool else "")
        system = f"{TURN_START}system\n{instruction}{TURN_END}\n" if instruction else ""
        used = use(case.tool) if case.tool else ""
        body = f"{system}{TURN_START}user\n{body}{TURN_END}\n{TURN_START}model\n{used}"
    return BOS + body


def texts(case: Case, template: str = "", *, waves: bool = False) -> dict[str, Any]:
    """What a request has in words, by its field: the prompt, its companion, and all written out where a probe asks."""
    probe = case.probe
    found = {"prompt": render(case, template, waves=waves)}
    if probe and probe.companion:
        found["companion"] = render(replace(case, parts=probe.companion, tool=None), template, waves=waves)
    if probe and probe.kind == "expanded":
        written = tuple(replace(part, expanded=part.medium is not None) for part in case.parts)
        found["expanded"] = render(replace(case, parts=written), template, waves=waves)
    return found


def _rendered(part: Part, max_soft_tokens: int, *, waves: bool) -> str:
    if part.expanded:
        return written_out(part, max_soft_tokens, waves=waves)
    return _BARE[part.medium] if part.medium else part.text


def messages(case: Case) -> list[dict[str, Any]]:
    """The case as a chat: a system turn where it has one, a user turn of text and media, a tool's call and answer."""
    content = [{"type": part.medium} if part.medium else _text(part.text) for part in case.parts]
    system = [{"role": "system", "content": [_text(case.system)]}] if case.system else []
    return [*system, {"role": "user", "content": content}, *_used(case.tool)]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _used(tool: ToolUse | None) -> Sequence[dict[str, Any]]:
    if tool is None:
        return ()
    function = {"name": tool.name, "arguments": {"text": tool.argument, "limit": _LIMIT}}
    call = {"id": "call-1", "type": "function", "function": function}
    answer = {"role": "tool", "tool_call_id": "call-1", "name": tool.name, "content": [_text(tool.response)]}
    return ({"role": "assistant", "content": [], "tool_calls": [call]}, answer)


_LIMIT = 2
_PROPERTIES = {
    "text": {"description": "What to look for", "type": "string"},
    "limit": {"description": "How many", "type": "integer"},
}
"""In an order that is not the alphabet's: in a prompt keys are sorted."""


def tools(case: Case) -> list[dict[str, Any]]:
    """The tools that a chat declares."""
    if case.tool is None:
        return []
    parameters = {"type": "object", "properties": _PROPERTIES, "required": ["text"]}
    function = {"name": case.tool.name, "description": "Looks around", "parameters": parameters}
    return [{"type": "function", "function": function}]


def declaration(tool: ToolUse) -> str:
    """A tool in the system turn, written as the published template does."""

    def quoted(text: str) -> str:
        return f"{QUOTE}{text}{QUOTE}"

    properties = ",".join(
        f"{name}:{{description:{quoted(entry['description'])},type:{quoted(entry['type'].upper())}}}"
        for name, entry in sorted(_PROPERTIES.items())
    )
    required = f"required:[{quoted('text')}],type:{quoted('OBJECT')}"
    parameters = f"parameters:{{properties:{{{properties}}},{required}}}"
    return f"<|tool>declaration:{tool.name}{{description:{quoted('Looks around')},{parameters}}}<tool|>"


def use(tool: ToolUse) -> str:
    """The call of a tool and its answer; the model's turn goes on behind them."""
    call = f"<|tool_call>call:{tool.name}{{limit:{_LIMIT},text:{QUOTE}{tool.argument}{QUOTE}}}<tool_call|>"
    return f"{call}<|tool_response>response:{tool.name}{{value:{QUOTE}{tool.response}{QUOTE}}}<tool_response|>"


def _templated(case: Case, template: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    return compiled.render(
        messages=messages(case), tools=tools(case) or None, bos_token=BOS, add_generation_prompt=True
    )


def is_expanded(case: Case) -> bool:
    """Whether the prompt has media and all of them are expanded already."""
    media = [part for part in case.parts if part.medium]
    return bool(media) and all(part.expanded for part in media)
