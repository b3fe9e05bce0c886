"""From chat messages to the text of a prompt, by rules of its own: the template that a checkpoint ships is not run.

Only the style is read from that template, for the published ones differ in two things: blank lines around images and
videos, and an empty thought with which a large model's answer begins. Tools are not written.
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
    messages: Sequence[Message], style: ChatStyle, *, awaits_answer: bool = True, thinking: bool = False
) -> str:
    """The text of a conversation, with one bare placeholder for each item.

    Args:
        messages: each has a `role` and a `content`, which is text or a list of parts of `type` text, image, audio or
            video. Only text has more to it, `text`; media are given to `Gemma4.prepare`, in the order of their parts.
        style: that of the checkpoint.
        awaits_answer: open the turn of the model at the end.
        thinking: ask the model to think.
    """
    if not messages:
        raise ValueError("a conversation has at least one message, got none")
    instructed = messages[0]["role"] in SYSTEM
    turns = []
    if thinking or instructed:
        instruction = _body(messages[0], style) if instructed else ""
        turns.append(("system", ("<|think|>\n" if thinking else "") + instruction))
    for message in messages[1:] if instructed else messages:
        answered = message["role"] in ("assistant", "model")
        body = _body(message, style)
        turns.append(("model", without_thoughts(body)) if answered else (message["role"], body))
    text = "<bos>" + "".join(f"{TURN_BEGIN}{role}\n{body}{TURN_END}" for role, body in turns)
    if awaits_answer:
        text += f"{TURN_BEGIN}model\n" + (EMPTY_THOUGHT if style.empty_thought and not thinking else "")
    return text


def without_thoughts(text: str) -> str:
    """An earlier answer without what the model thought: later turns are not shown it."""
    return "".join(piece.split(THOUGHT_BEGIN)[0] for piece in text.split(THOUGHT_END)).strip()


def _body(message: Message, style: ChatStyle) -> str:
    content = message["content"]
    return content.strip() if isinstance(content, str) else "".join(_part(part, style) for part in content)


def _part(part: Mapping[str, Any], style: ChatStyle) -> str:
    media = {"image": style.media_gap, "video": style.media_gap, "audio": ""}
    kind = part["type"]
    if kind == "text":
        return str(part["text"]).strip()
    if kind not in media:
        raise ValueError(f"a part of type {kind!r} is not supported; use text, {', '.join(media)}")
    return f"{media[kind]}<|{kind}|>{media[kind]}"
