"""Texts of a prompt: words, unicode, and special tokens that a user has typed."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.strategies.mix import weighted

_WORDS = ("The", "image", "shows", "a", "red", "square", "and", "two", "cats", "near", "the", "sea", "in", "2026", "?")

# What tokenizers and templates trip over: combining marks, right to left, emoji of several code points, widths, spaces.
_SCRIPTS = (
    "e\u0301 a\u0308\u0323",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 2026",
    "\u202eabc\u202c",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1f3\U0001f1f4\U0001f44d\U0001f3fd",
    "\u4f60\u597d\u3000\uff21",
    "a\u00a0b\u2009c\u200bd",
    "\u2581\u2581x",
    "\ufeffx\u0000y",
    "\r\n\t \n\n\n",
    "  two  spaces  ",
)

SPECIAL_TOKENS = (
    "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<|think|>",
    "<|image>", "<image|>", "<|audio>", "<audio|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>",
    "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip
"""Every special token but the three placeholders, which would be media that nobody gave."""


def words() -> SearchStrategy[str]:
    """Up to 24 words; shrinks to one."""
    return st.lists(st.sampled_from(_WORDS), min_size=1, max_size=24).map(" ".join)


def with_special_tokens() -> SearchStrategy[str]:
    """Special tokens between words, so that none of them stands beside a medium and frames it by accident."""
    between = st.tuples(st.sampled_from(SPECIAL_TOKENS), st.sampled_from(_WORDS)).map(" ".join)
    return st.lists(between, min_size=1, max_size=3).map(lambda pairs: " ".join((_WORDS[0], *pairs)))


@cache
def texts() -> SearchStrategy[str]:
    """Text of at most 170 bytes; one in sixteen holds special tokens. Shrinks to a word."""
    # "<" starts every special token of Gemma 4 and "|" ends one: those come only from their own family.
    anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>|"), min_size=1, max_size=40)
    scripts = st.lists(st.sampled_from(_SCRIPTS), min_size=1, max_size=4).map(" ".join)
    return weighted((8, words()), (4, anything), (3, scripts), (1, with_special_tokens()))


@cache
def perhaps_texts() -> SearchStrategy[str]:
    """Text, or none: that puts media first, last or adjacent. Shrinks to none."""
    return weighted((1, st.just("")), (2, texts()))
