"""A case as the text that every engine is given. Layer 1."""

from __future__ import annotations

from harness.schema import Case, ImageSpec, Part
from harness.spec import BOI, BOS, EOI, IMAGE, TURN_END, TURN_START, soft_tokens


def placeholders(image: ImageSpec, max_soft_tokens: int) -> str:
    """An expanded image: begin, one placeholder per soft token, end. Counts by the reference rule."""
    count = soft_tokens(image.width_px, image.height_px, max_soft_tokens).reference
    return f"{BOI}{IMAGE * count}{EOI}"


def render(case: Case) -> str:
    """The prompt as text, one BOS first: the parts as they are, or as a user turn that awaits the answer."""
    body = "".join(_rendered(part, case.max_soft_tokens) for part in case.parts)
    if case.form == "turn":
        body = f"{TURN_START}user\n{body}{TURN_END}\n{TURN_START}model\n"
    return BOS + body


def _rendered(part: Part, max_soft_tokens: int) -> str:
    if part.image is None:
        return part.text
    return placeholders(part.image, max_soft_tokens) if part.expanded else IMAGE


def is_expanded(case: Case) -> bool:
    """Whether the prompt has images and all of them are expanded already."""
    return bool(case.images) and all(part.expanded for part in case.parts if part.image is not None)
