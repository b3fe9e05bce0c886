"""P1: every engine expands the same prompt to the same token ids, or takes it as expanded already."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_expanded_prompt_ids_are_identical(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Whatever the images and wherever they stand, all engines see the same token ids."""
    require(data.draw(cases(models=[model], properties=["P1"]), label="case"), "P1")
