"""The verbs of the project; `uv run nox -l` lists them. Arguments go on: `nox -s conformance -- --models tiny-e2b`."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests", "lint", "types"]


def _uv(session: nox.Session, *command: str) -> None:
    """Run in the project's own environment, which uv brings up to date first."""
    session.run("uv", "run", *command, *session.posargs, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that CI tests: the harness itself, and the conformance suite over real engines."""
    _uv(session, "pytest")


@nox.session
def conformance(session: nox.Session) -> None:
    """The conformance suite alone; `-- --hypothesis-profile nightly` looks longer."""
    _uv(session, "pytest", "cases", "-rxX")


@nox.session
def replay(session: nox.Session) -> None:
    """Run capsules again: `nox -s replay -- cases/regressions/*.json`."""
    _uv(session, "harness", "replay")


@nox.session
def shrink(session: nox.Session) -> None:
    """The smallest case with a capsule's finding: `nox -s shrink -- .harness/failures/NAME.json`."""
    _uv(session, "harness", "shrink")


@nox.session
def sweep(session: nox.Session) -> None:
    """Every size up to 5,000 x 5,000 px at every budget, asked of each engine's own counting function."""
    _uv(session, "harness", "sweep", "--budget", "all", "--max-side", "5000")


@nox.session
def nightly(session: nox.Session) -> None:
    """The nightly profile over the release matrix; fails by what is new: `nox -s nightly -- --summary night.md`."""
    _uv(session, "harness", "nightly", "--junit", ".harness/nightly.xml")


@nox.session
def power(session: nox.Session) -> None:
    """Seeded faults: cases to detect each, time to its smallest case, and false alarms of correct engines."""
    _uv(session, "python", "-m", "benchmarks.power", "--null", "2000", "--table", "docs/power.md")


@nox.session
def calibration(session: nox.Session) -> None:
    """False alarms of engines beside themselves, the smallest effect seen, where planted faults are found."""
    for arguments in (("null", "--engine", "hf"), ("null", "--engine", "native"), ("power",)):
        _uv(session, "python", "-m", "benchmarks.calibration", *arguments)
    _uv(session, "python", "-m", "benchmarks.transplant")


@nox.session
def time_machine(session: nox.Session) -> None:
    """The founding failures, found by generated cases on the releases that had them; builds some 20 environments."""
    _uv(session, "python", "-m", "benchmarks.time_machine", "--table", "docs/time-machine.md")


@nox.session
def bench(session: nox.Session) -> None:
    """What the harness adds to what the engines take, as a ratio."""
    _uv(session, "python", "benchmarks/overhead.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, rules and format."""
    _uv(session, "ruff", "check")
    session.run("uv", "run", "ruff", "format", "--check", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over everything."""
    _uv(session, "mypy")
