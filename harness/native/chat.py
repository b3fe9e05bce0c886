"""From chat messages to the text of a prompt, by rules of its own: the template that a checkpoint ships is not run.

Only the style is read from that template, for the published ones differ in two things: blank lines around images and
videos, and an empty thought with which a large model's answer begins.

Tools are declared in the system turn. A call and its answer stand in one turn of the model, which stays open behind
them; keys are sorted, strings stand between `<|"|>`:

    <|tool>declaration:NAME{...}<tool|>
    <|tool_call>call:NAME{...}<tool_call|><|tool_response>response:NAME{...}<tool_response|>
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TURN_BEGIN, TURN_END = "<|turn>", "<turn|>\n"
THOUGHT_BEGIN, THOUGHT_END = "<|channel>", "<channel|>"
EMPTY_THOUGHT = f"{THOUGHT_BEGIN}thought\n{THOUGHT_END}"
SYSTEM = ("system", "developer")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatStyle:
    """What the published templates differ in."""

    media_gap: str
    empty_thought: bool


def read_chat_style(directory: Path) -> ChatStyle:
    """The style of a checkpoint's chat_template.jinja."""
    path = directory / "chat_template.jinja"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; only instruction-tuned checkpoints have chat messages, give text")
    template = path.read_text(encoding="utf-8")
    # In one string, or as a sum of strings.
    gap = re.search(r"\\n\\n(' *[+~] *')?<\|image\|>", template)
    return ChatStyle("\n\n" if gap else "", EMPTY_THOUGHT.replace("\n", r"\n") in template)


def render_chat(
    messages: Sequence[Message],
    style: ChatStyle,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    awaits_answer: bool = True,
    thinking: bool = False,
) -> str:
    """The text of a conversation, with one bare placeholder for each item.

    Args:
        messages: each has a `role` and a `content`, which is text or a list of parts of `type` text, image, audio or
            video. Only text has more to it, `text`; media are given to `Gemma4.prepare`, in the order of their parts.
            The model's may have `tool_calls`; messages of the role `tool` answer them, by `tool_call_id`.
        style: that of the checkpoint.
        tools: those that may be called, each a `function` with a name, a description and flat parameters.
        awaits_answer: open the turn of the model at the end, unless a call has left it open.
        thinking: ask the model to think.
    """
    if not messages:
        raise ValueError("a conversation has at least one message, got none")
    instructed = messages[0]["role"] in SYSTEM
    text = "<bos>"
    if thinking or instructed or tools:
        instruction = _body(messages[0], style) if instructed else ""
        declared = "".join(f"<|tool>{_declaration(tool['function'])}<tool|>" for tool in tools)
        text += f"{TURN_BEGIN}system\n{'<|think|>' + chr(10) if thinking else ''}{instruction}{declared}{TURN_END}"
    calls: list[Message] = []  # Of a turn of the model that is still open.
    for message in messages[1:] if instructed else messages:
        if message["role"] == "tool":
            text += _answer(message, calls)
            continue
        spoken = message["role"] in ("assistant", "model")
        text += TURN_END if calls and not spoken else ""
        text += "" if calls and spoken else f"{TURN_BEGIN}{'model' if spoken else message['role']}\n"
        calls = list(message.get("tool_calls") or ()) if spoken else []
        body = _body(message, style)
        text += "".join(map(_call, calls)) + (without_thoughts(body) if spoken else body)
        text += "" if calls else TURN_END
    if awaits_answer and not calls:
        text += f"{TURN_BEGIN}model\n" + (EMPTY_THOUGHT if style.empty_thought and not thinking else "")
    return text


def _declaration(function: Mapping[str, Any]) -> str:
    text = f"declaration:{function['name']}{{description:{_value(function['description'])}"
    if parameters := function.get("parameters"):
        entries = (
            f"{name}:{{description:{_value(entry['description'])},type:{_value(entry['type'].upper())}}}"
            for name, entry in _sorted(parameters["properties"])
        )
        text += f",parameters:{{properties:{{{','.join(entries)}}},"
        if parameters.get("required"):
            text += f"required:{_value(parameters['required'])},"
        text += f"type:{_value(parameters['type'].upper())}}}"
    return text + "}"


def _call(call: Mapping[str, Any]) -> str:
    arguments = _fields(call["function"]["arguments"])
    return f"<|tool_call>call:{call['function']['name']}{{{arguments}}}<tool_call|>"


def _answer(message: Message, calls: Sequence[Mapping[str, Any]]) -> str:
    names = {call["id"]: call["function"]["name"] for call in calls}
    name = names.get(message.get("tool_call_id"), message.get("name") or "unknown")
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return f"<|tool_response>response:{name}{{value:{_value(text)}}}<tool_response|>"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{_fields(value)}}}"
    return f"[{','.join(map(_value, value))}]" if isinstance(value, Sequence) else str(value)


def _fields(mapping: Mapping[str, Any]) -> str:
    return ",".join(f"{key}:{_value(value)}" for key, value in _sorted(mapping))


def _sorted(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Sorted without regard to case, as a template's `dictsort` does."""
    return sorted(mapping.items(), key=lambda entry: entry[0].lower())


def without_thoughts(text: str) -> str:
    """An earlier answer without what the model thought: later turns are not shown it."""
    return "".join(piece.split(THOUGHT_BEGIN)[0] for piece in text.split(THOUGHT_END)).strip()


def _body(message: Message, style: ChatStyle) -> str:
    content = message["content"] or ""
    return content.strip() if isinstance(content, str) else "".join(_part(part, style) for part in content)


def _part(part: Mapping[str, Any], style: ChatStyle) -> str:
    media = {"image": style.media_gap, "video": style.media_gap, "audio": ""}
    kind = part["type"]
    if kind == "text":
        return str(part["text"]).strip()
    if kind not in media:
        raise ValueError(f"a part of type {kind!r} is not supported; use text, {', '.join(media)}")
    return f"{media[kind]}<|{kind}|>{media[kind]}"
