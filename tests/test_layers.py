"""The layers of ARCHITECTURE.md: imports point downwards or sideways, never up. Sources are read, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"schema", "errors"}),
    frozenset({"spec", "media", "render", "wording", "bounds", "checkpoint", "zoo", "store"}),
    frozenset(
        {"strategies", "engines", "comparators", "environments", "builds", "deviations", "records", "reductions"}
    ),
    frozenset(
        {"worker", "pool", "fleet", "campaign", "calibration", "comparisons", "session", "sweep", "replay", "hunt"}
        | {"doctor", "explain", "evidence", "transplant", "export", "export_script", "bisect", "generation"}
    ),
    frozenset({"cli", "cli_capsule", "cli_nightly", "cli_sweep", "options", "show", "suite", "__main__"}),
)
"""Layer 0 first; a module belongs to the layer of its first name below `harness`."""

TOP = len(LAYERS) - 1
ISLAND = "harness.native"
ADAPTERS = frozenset(f"harness.engines.{name}" for name in ("hf", "vllm", "native", "sglang", "automodel", "counting"))
FED_AS_HF = "harness.engines.automodel", "harness.engines.hf"
"""Automodel's model takes what transformers' processor makes, and is run the same way."""

ENGINE_PACKAGES = frozenset({"transformers", "vllm", "sglang", "nemo_automodel"})
REPORTS_MAY_IMPORT = frozenset({"harness", "harness.store", "harness.schema", "harness.spec", "harness.errors"})
WORKER_MAY_IMPORT = frozenset({"numpy", "safetensors"})


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {_module(path): path for package in ("harness", "reports") for path in (ROOT / package).rglob("*.py")}


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Absolute names of the modules that a source imports, wherever in it the import stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name` imports a module of that name where there is one.
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & FILES.keys()) or {base}
    return found


@cache
def _imports_of(module: str) -> frozenset[str]:
    path = FILES[module]
    return frozenset(imports(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py"))


def _layer(module: str) -> int | None:
    """The number of a module's layer; None for what has none: other packages, and `harness` itself, which is empty."""
    package, *names = module.split(".")
    if package != "harness" or not names or module.startswith(ISLAND):
        return None
    numbers = [number for number, layer in enumerate(LAYERS) if names[0] in layer]
    assert numbers, f"{module} is in no layer: add it to LAYERS and to ARCHITECTURE.md"
    return numbers[0]


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def violations(module: str, imported: Iterable[str]) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    return [f"{module} imports {name}: {why}" for name in sorted(imported) for why in _reasons(module, name)]


def _reasons(module: str, name: str) -> Iterator[str]:
    top = name.split(".")[0]
    here, there = _layer(module), _layer(name)
    if here is not None and there is not None and there > here:
        yield f"layer {here} imports layer {there}"
    if name in ADAPTERS and (module, name) != FED_AS_HF:
        yield "an adapter is imported by name in its worker only"
    if top in ENGINE_PACKAGES and module not in ADAPTERS:
        yield "only adapters import an engine"
    if _within(name, ISLAND) and not _within(module, ISLAND) and module not in ADAPTERS:
        yield "only its adapter imports the native implementation"
    if _within(module, ISLAND) and top in ("harness", "reports") and not _within(name, ISLAND):
        yield "the native implementation is an island"
    if _within(module, "harness.comparators") and _within(name, "harness.engines"):
        yield "a comparator never sees an engine"
    yield from _reasons_of_reports(module, name, here)


def _reasons_of_reports(module: str, name: str, here: int | None) -> Iterator[str]:
    if _within(name, "reports") and not _within(module, "reports") and here != TOP:
        yield "only the command line imports reports"
    if _within(module, "reports"):
        if name.split(".")[0] == "torch":
            yield "reports need no torch"
        if _within(name, "harness") and name not in REPORTS_MAY_IMPORT:
            yield "reports read the store, the words and the facts, and nothing else"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module: str) -> None:
    """No module imports what stands above it, and none crosses one of the fences."""
    assert violations(module, _imports_of(module)) == []


FABRICATED = {
    "up a layer": ("harness.spec", "from harness.strategies import cases", "layer 1 imports layer 2"),
    "up inside a function": ("harness.pool", "def f():\n    from harness import cli", "layer 3 imports layer 4"),
    "up while type checking": ("harness.media", "if TYPE_CHECKING:\n    import harness.campaign", "layer 1 imports"),
    "relative and up": ("harness.schema", "from . import store", "layer 0 imports layer 1"),
    "an adapter": ("harness.worker", "from harness.engines.hf import HfEngine", "an adapter is imported by name"),
    "an engine": ("harness.spec", "import transformers.models.gemma4", "only adapters import an engine"),
    "off the island": ("harness.native.image", "from ..spec import SIDE_PX", "is an island"),
    "onto the island": ("harness.comparators.kl", "from harness.native import Gemma4", "only its adapter"),
    "engine in comparator": ("harness.comparators.kl", "from harness.engines import create", "never sees an engine"),
    "torch in reports": ("reports.frames", "import torch.nn", "reports need no torch"),
    "comparator in reports": ("reports.frames", "from harness.comparators import kl", "reports read the store"),
    "reports in the library": ("harness.campaign", "from reports import site", "only the command line"),
}


@pytest.mark.parametrize(("module", "source", "words"), FABRICATED.values(), ids=FABRICATED)
def test_each_kind_of_violation_is_reported(module: str, source: str, words: str) -> None:
    """Negative control: a fabricated import of each forbidden kind is found, and named."""
    found = violations(module, imports(source, module))
    assert any(words in violation for violation in found)


def test_a_module_without_a_layer_is_refused() -> None:
    """A new module has to be given a layer before it passes."""
    with pytest.raises(AssertionError, match=r"harness\.surprise is in no layer"):
        violations("harness.surprise", ["harness.spec"])


def test_downward_and_sideways_imports_pass() -> None:
    """Positive control: what the layers allow is not reported."""
    source = (
        "import json\nfrom harness.spec import BOI\nfrom harness.comparators.base import judge\nfrom . import counts"
    )
    found = imports(source, "harness.comparators.kl")
    assert found == {"json", "harness.spec", "harness.comparators.base", "harness.comparators.counts"}
    assert violations("harness.comparators.kl", found) == []


def _reachable(module: str, without: Iterable[str] = ()) -> set[str]:
    """Everything that importing a module imports, packages of every dotted name included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parents = {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}
        if name not in found and name not in without:
            found.add(name)
            waiting += [*parents, *(_imports_of(name) if name in FILES else ())]
    return found


def test_reports_reach_no_torch_through_others() -> None:
    """Importing the dashboard imports no torch and no engine, also not by way of the store."""
    reached = {name.split(".")[0] for module in FILES if _within(module, "reports") for name in _reachable(module)}
    assert "pandas" in reached
    assert not reached & {"torch", *ENGINE_PACKAGES}


def test_a_worker_needs_little_beside_its_engine() -> None:
    """Up to the adapter a worker imports the standard library, numpy and safetensors, so any release can host it."""
    reached = {name.split(".")[0] for name in _reachable("harness.worker", ADAPTERS)}
    assert reached - sys.stdlib_module_names - {"harness"} <= WORKER_MAY_IMPORT


@pytest.mark.parametrize("module", ["harness.schema", "harness.errors"])
def test_the_words_need_nothing(module: str) -> None:
    """Layer 0 imports the standard library alone."""
    assert {name.split(".")[0] for name in _imports_of(module)} <= sys.stdlib_module_names
