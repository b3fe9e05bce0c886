"""P9: the same prompt in another form is the same prompt, and no call leaves anything behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Part, Probe, ProbeKind, Property
from harness.strategies import cases


@given(data=st.data())
def test_forms_of_a_prompt_are_equivalent(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Messages, token ids and expanded placeholders give what the text gives, as does the text after another call."""
    require(data.draw(cases(models=[model], properties=["P9"]), label="case"), "P9")


@pytest.mark.parametrize("kind", ["repeat", "chat", "ids"])
@pytest.mark.parametrize(
    "text", ["", "The", "The <bos> shows <|channel> a <|image> square"], ids=["empty", "word", "special"]
)
def test_small_prompts_in_every_form(
    require: Callable[[Case, Property], None], model: str, text: str, kind: ProbeKind
) -> None:
    """No text at all, a word, and special tokens that a user has typed, each as a chat."""
    require(Case(model, (Part(text=text),) if text else (), form="chat", probe=Probe(kind)), "P9")
