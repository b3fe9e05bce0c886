"""Upper bounds on the tokens of a prompt, so that no case is too long for the context that engines start with."""

from __future__ import annotations

from collections.abc import Iterable

from harness.render import declaration, use
from harness.schema import Case, Part
from harness.strategies.audio import RATE_HZ
from harness.strategies.video import SAMPLED_FRAMES

CONTEXT_TOKENS = 4_096
PROMPT_TOKENS = 3_000
USUAL_TOKENS = 900
COMPANION_TOKENS = 900
"""A batch holds a prompt and its companion; both bounds together stay below the context."""

FRAMING_TOKENS = 64
"""BOS, turn markers, roles, an empty thought."""

_VIDEO_FRAME_TOKENS = 70 + 2 + 10
_GAPS = 4


def part_tokens_at_most(part: Part, max_soft_tokens: int) -> int:
    """Tokens of one part: a byte of text is at most one; a medium has a frame and blank lines around it."""
    if part.video is not None:
        shown = part.video.frames if part.video.indices is not None else min(part.video.frames, SAMPLED_FRAMES)
        return shown * _VIDEO_FRAME_TOKENS + _GAPS
    if part.audio is not None:
        samples = max(part.audio.samples, part.audio.samples * RATE_HZ // part.audio.rate_hz)
        return samples // 640 + 1 + 2 + _GAPS
    return max_soft_tokens + 2 + _GAPS if part.image is not None else len(part.text.encode())


def parts_tokens_at_most(parts: Iterable[Part], max_soft_tokens: int) -> int:
    """Tokens of several parts."""
    return sum(part_tokens_at_most(part, max_soft_tokens) for part in parts)


def tokens_at_most(case: Case) -> int:
    """Tokens of a whole prompt, and of its companion in the same batch."""
    companion = case.probe.companion if case.probe else ()
    parts = parts_tokens_at_most((*case.parts, *companion), case.max_soft_tokens)
    used = len((declaration(case.tool) + use(case.tool)).encode()) if case.tool else 0
    return parts + len(case.system.encode()) + used + FRAMING_TOKENS * (2 if companion else 1)
