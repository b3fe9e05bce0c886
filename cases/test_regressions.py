"""Every capsule in cases/regressions is run again: smallest inputs that once showed something."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.replay import as_measured, not_asked, target
from harness.suite import Suite

CAPSULES = sorted((Path(__file__).parent / "regressions").glob("*.json"))


@pytest.mark.parametrize("path", CAPSULES, ids=[path.stem for path in CAPSULES])
def test_finding_is_gone_or_known(suite: Suite, path: Path) -> None:
    """A stored finding does not come back unless a deviation explains it; without its suspect nothing is known."""
    entry = target(str(path), path.parent)
    assert entry.finding is not None
    if entry.device not in ("cpu", suite.options.device):
        pytest.skip(f"found on {entry.device}, and these subjects run on {suite.options.device}: give --device")
    result = suite.examine(as_measured(entry))
    if missing := not_asked(entry.finding, result):
        pytest.skip(f"nothing is known of {entry.finding.signature}: {missing}; give --subjects")
    suite.require(result, entry.finding.property)
