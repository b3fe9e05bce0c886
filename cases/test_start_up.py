"""P8: a checkpoint loads whole, and each of its tensors matters."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_every_tensor_matters(require: Callable[[Case, Property], None], model: str, data: st.DataObject) -> None:
    """A changed tensor changes the output, in a case that runs every tower; none is missing or made up."""
    require(data.draw(cases(models=[model], properties=["P8"]), label="case"), "P8")
