"""P5: a sample is the same whatever way its tokens take: chunks, caches, one by one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, Property
from harness.strategies import cases


@given(data=st.data())
def test_a_sample_does_not_depend_on_how_it_is_computed(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Chunked prefill, decoding from a cache, a prefix cache and a static cache give the plain distributions."""
    require(data.draw(cases(models=[model], properties=["P5"]), label="case"), "P5")
