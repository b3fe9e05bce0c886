"""P6: on the same token ids, every engine gives every next token the same probability."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_distributions_agree_position_by_position(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """The full-vocabulary KL of every pair stays within its limit at every position, text and soft tokens alike."""
    require(data.draw(cases(models=[model], properties=["P6"]), label="case"), "P6")
