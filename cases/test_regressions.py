"""Every capsule in cases/regressions is run again: smallest inputs that once showed something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.schema import Case, Property
from harness.store import read_capsule

CAPSULES = sorted((Path(__file__).parent / "regressions").glob("*.json"))


@pytest.mark.parametrize("path", CAPSULES, ids=[path.stem for path in CAPSULES])
def test_finding_is_gone_or_known(require: Callable[[Case, Property], None], path: Path) -> None:
    """A stored finding does not come back unless a deviation explains it."""
    capsule = read_capsule(path)
    require(capsule.case, capsule.finding.property)
