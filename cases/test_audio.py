"""P11: how many soft tokens a recording becomes, at every length, and what is in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.schema import AudioSpec, Case, Part, Property
from harness.strategies import applies, cases


@given(data=st.data())
def test_recordings_agree(require: Callable[[Case, Property], None], model: str, data: st.DataObject) -> None:
    """Lengths, framing, soft tokens and features of every recording are the same in all engines."""
    if not applies(model, "P11"):
        pytest.skip(f"{model} takes no audio")
    require(data.draw(cases(models=[model], properties=["P11"]), label="case"), "P11")


@pytest.mark.parametrize("samples", [0, 1, 160, 161, 320, 321, 640, 641, 1_281, 480_000, 480_001])
def test_lengths_beside_every_boundary(require: Callable[[Case, Property], None], model: str, samples: int) -> None:
    """Nothing, less than a frame, a frame, a token and the cap of 30 s, and one sample more of each."""
    if not applies(model, "P11"):
        pytest.skip(f"{model} takes no audio")
    case = Case(model, (Part(text="The"), Part(audio=AudioSpec(samples)), Part(text="sea")), 70)
    require(case, "P11")
    require(case, "P1")
