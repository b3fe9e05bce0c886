"""Roles of prompt positions, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.comparators.roles import AFTER_MEDIA_TOKENS, token_roles
from harness.schema import ROLES
from harness.spec import MediaTokens

BOI, IMAGE, EOI, TEXT = 10, 11, 12, 5
TOKENS = MediaTokens(BOI, IMAGE, EOI)
SHORT = {"text_before": "t", "boi": "b", "soft": "s", "eoi": "e", "after_media": "a", "rest": "r"}
PROMPTS = {
    "": "",
    "TTT": "ttt",
    "TBIIET": "tbssea",
    "BIE": "bse",
    "TBIIE" + "T" * 10: "tbsse" + "a" * 8 + "rr",
    "BIETBIET": "bseabsea",
    "BIE" + "T" * 9 + "BIET": "bse" + "a" * 8 + "r" + "bsea",
    "BIEBIET": "bsebsea",
    "TIIT": "tssa",
    "TET": "tea",
}
"""T text, B begin of image, I placeholder, E end of image -> the first letter of each role."""


@pytest.mark.parametrize("prompt", PROMPTS)
def test_roles_of_a_prompt(prompt: str) -> None:
    """Text is before, just after or far from the last medium; media are what their token says."""
    ids = [{"T": TEXT, "B": BOI, "I": IMAGE, "E": EOI}[letter] for letter in prompt]
    assert "".join(SHORT[role] for role in token_roles(ids, TOKENS)) == PROMPTS[prompt]


@settings(max_examples=200)
@given(st.lists(st.sampled_from((TEXT, BOI, IMAGE, EOI, 999)), max_size=60))
def test_every_position_has_one_role(ids: list[int]) -> None:
    """There are as many roles as tokens, each a known one, and media roles stand exactly where media tokens do."""
    roles = token_roles(ids, TOKENS)
    assert len(roles) == len(ids)
    assert set(roles) <= set(ROLES)
    assert [role in ("boi", "soft", "eoi") for role in roles] == [token in (BOI, IMAGE, EOI) for token in ids]
    assert roles.count("after_media") <= AFTER_MEDIA_TOKENS * max(1, sum(token in (BOI, IMAGE, EOI) for token in ids))
