"""P2: predicted count = placeholders in the prompt = feature rows <= declared maximum, image by image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schema import Case, ImageSpec, Part, Property
from harness.strategies import cases


@given(data=st.data())
def test_counts_agree_image_by_image(
    require: Callable[[Case, Property], None], model: str, data: st.DataObject
) -> None:
    """Each engine puts as many rows into the prompt as it made placeholders for, and no more than it declared."""
    require(data.draw(cases(models=[model], properties=["P2"], min_images=1), label="case"), "P2")


@pytest.mark.parametrize("size", [(900, 3), (3, 900)], ids=["900x3", "3x900"])
def test_a_side_that_vanishes_is_lifted_to_one_unit(
    require: Callable[[Case, Property], None], model: str, size: tuple[int, int]
) -> None:
    """The published failure: 900 x 3 px at budget 280 becomes 280 soft tokens in every engine, and none dies."""
    case = Case(model, (Part(text="The"), Part(image=ImageSpec(*size)), Part(text="sea")), 280)
    require(case, "P2")
    require(case, "P1")
