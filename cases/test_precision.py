"""P12: in bfloat16 and float16 every number stays finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, ModelType, Property
from harness.strategies import cases


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@given(data=st.data())
def test_reduced_precision_stays_finite(
    require: Callable[[Case, Property], None], model: str, dtype: ModelType, data: st.DataObject
) -> None:
    """Hidden states and log-probabilities of a prompt in a reduced type are numbers, and near those of float32."""
    case = data.draw(cases(models=[model], properties=["P12"]), label="case")
    require(replace(case, dtype=dtype), "P12")
