"""P3: what a position sees is what the mask rule of the model says."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_a_change_reaches_the_positions_that_may_see_it(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """A row that enters the decoder is negated: exactly the positions that the mask rule lets see it may move."""
    require(data.draw(cases(models=[model], properties=["P3"]), label="case"), "P3")
