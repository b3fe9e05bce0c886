"""P4: a sample is the same alone and in a batch, first or last, padded or not."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_a_sample_does_not_depend_on_its_batch(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Another prompt beside it, before or behind, or padding in front of it changes nothing in a sample."""
    require(data.draw(cases(models=[model], properties=["P4"]), label="case"), "P4")
