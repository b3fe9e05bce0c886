"""P7: resized pixels, patch positions and projected rows are the same in every engine."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_features_agree_stage_by_stage(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Pixels and positions are equal, rows agree within their limit, and soft token 0 is looked at by itself."""
    require(data.draw(cases(models=[model], properties=["P7"], min_images=1), label="case"), "P7")
