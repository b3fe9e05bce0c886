"""A case as the text that every engine is given, or as the messages of a chat. Layer 1."""

from __future__ import annotations

from typing import Any

from harness.schema import Case, ImageSpec, Part
from harness.spec import AUDIO, BOI, BOS, EOI, IMAGE, TURN_END, TURN_START, VIDEO, soft_tokens

_BARE = {"image": IMAGE, "audio": AUDIO, "video": VIDEO}


def placeholders(image: ImageSpec, max_soft_tokens: int) -> str:
    """An expanded image: begin, one placeholder per soft token, end. Counts by the reference rule."""
    count = soft_tokens(image.width_px, image.height_px, max_soft_tokens).reference
    return f"{BOI}{IMAGE * count}{EOI}"


def render(case: Case, template: str = "") -> str:
    """The prompt as text, one BOS first: the parts as they are, as a user turn, or through a chat template.

    `template` is the checkpoint's chat_template.jinja; only the form `chat` needs it. It comes from a file of whoever
    made the checkpoint, so it is rendered in a sandbox.
    """
    if case.form == "chat":
        return _templated(case, template)
    body = "".join(_rendered(part, case.max_soft_tokens) for part in case.parts)
    if case.form == "turn":
        system = f"{TURN_START}system\n{case.system}{TURN_END}\n" if case.system else ""
        body = f"{system}{TURN_START}user\n{body}{TURN_END}\n{TURN_START}model\n"
    return BOS + body


def _rendered(part: Part, max_soft_tokens: int) -> str:
    if part.image is not None and part.expanded:
        return placeholders(part.image, max_soft_tokens)
    return _BARE[part.medium] if part.medium else part.text


def messages(case: Case) -> list[dict[str, Any]]:
    """The case as a chat: a system turn where it has one, and a user turn of text and media parts in order."""
    content = [{"type": part.medium} if part.medium else {"type": "text", "text": part.text} for part in case.parts]
    system = [{"role": "system", "content": [{"type": "text", "text": case.system}]}] if case.system else []
    return [*system, {"role": "user", "content": content}]


def _templated(case: Case, template: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    return compiled.render(messages=messages(case), bos_token=BOS, add_generation_prompt=True)


def is_expanded(case: Case) -> bool:
    """Whether the prompt has media and all of them are expanded already."""
    media = [part for part in case.parts if part.medium]
    return bool(media) and all(part.expanded for part in media)
