"""Documentation that can be checked: docstrings where a reader looks for them, and links that lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.comparators import Limits

ROOT = Path(__file__).resolve().parent.parent
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

TESTS = [path for folder in ("tests", "cases") for path in sorted((ROOT / folder).rglob("*.py"))]
LIBRARY = [path for folder in ("harness", "reports") for path in sorted((ROOT / folder).rglob("*.py"))]


def _names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def _definitions(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Definition]]:
    """Functions and classes of a module, and those inside its classes; what a function holds is its own affair."""
    for node in tree.body:
        if isinstance(node, Definition):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in _definitions(node))


def undocumented_tests(source: str) -> list[str]:
    """Test functions without a docstring."""
    found = _definitions(ast.parse(source))
    return [name for name, node in found if node.name.startswith("test_") and not ast.get_docstring(node)]


def undocumented_names(source: str) -> list[str]:
    """Public classes, functions and methods without a docstring, and `module` if it has none."""
    tree = ast.parse(source)
    public = [(name, node) for name, node in _definitions(tree) if not re.search(r"(^|\.)_", name)]
    module = [] if ast.get_docstring(tree) else ["module"]
    return module + [name for name, node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", TESTS, ids=_names(TESTS))
def test_every_test_says_what_it_promises(path: Path) -> None:
    """Each test function of the suite and of the harness has a docstring."""
    assert undocumented_tests(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", LIBRARY, ids=_names(LIBRARY))
def test_every_public_name_is_documented(path: Path) -> None:
    """Each module, public class, function and method has a docstring."""
    assert undocumented_names(path.read_text(encoding="utf-8")) == []


def test_missing_docstrings_are_found() -> None:
    """Negative control: what has no docstring is named, what is private or nested is not."""
    source = (
        'class A:\n    """."""\n    def b(self): ...\n    def _c(self): ...\ndef d():\n    def e(): ...\ndef _f(): ...'
    )
    assert undocumented_names(source) == ["module", "A.b", "d"]
    assert undocumented_tests('def test_a(): ...\ndef test_b():\n    """."""\ndef helper(): ...') == ["test_a"]


def _pages() -> list[Path]:
    """Markdown files of the repository; what is generated or installed lies in hidden directories."""
    pages = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(ROOT / page for page in pages if not any(part.startswith(".") for part in page.parts))


def broken_links(text: str, page: Path) -> list[str]:
    """Relative links of a Markdown text whose file does not exist. Code is no text, and other sites are not asked."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    inline = re.findall(r"\]\(<?([^)\s>]+)", prose)
    defined = re.findall(r"^\[[^\]]+\]:\s*<?([^\s>]+)", prose, flags=re.MULTILINE)
    targets = [link.split("#")[0] for link in [*inline, *defined] if not re.match(r"[a-z]+:|#", link)]
    return [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", _pages(), ids=_names(_pages()))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page points to a file or folder that exists."""
    assert broken_links(page.read_text(encoding="utf-8"), page) == []


def test_broken_links_are_found() -> None:
    """Negative control: links to missing files are named; anchors, sites, code and what exists are not."""
    text = (
        "[a](tests/test_docs.py) [b](no/such.md#x) [c](#here) [d](https://example.org/x.md) ![e](<gone.png> 'title')\n"
        "`[f](in/code.md)`\n```\n[g](in/block.md)\n```\n[h]: lost.md\n"
    )
    assert broken_links(text, ROOT / "README.md") == ["no/such.md", "gone.png", "lost.md"]


def _written(dtype: str) -> list[float]:
    """The limits of a compute type as decision 0003 writes them: KL, features, log-probabilities, pixels."""
    text = (ROOT / "docs" / "decisions" / "0003-limits.md").read_text(encoding="utf-8")
    line = text.partition(f"**{dtype}**:")[2].replace("pixels equal", "pixels 0")
    found = re.match(
        r" KL (\S+) nats, features (\S+)(?: relative)?, log-probabilities (\S+?)(?: nats)?, pixels (\S+)\.", line
    )
    assert found, line
    return [2.0 ** int(number[2:]) if number.startswith("2^") else float(number) for number in found.groups()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_limits_are_those_of_the_decision(dtype: str) -> None:
    """The table in the source follows docs/decisions/0003-limits.md."""
    limits = Limits.of(dtype)
    in_source = [limits.kl_nats, limits.feature_relative, limits.logprob_nats, limits.pixel_absolute]
    assert in_source == _written(dtype)
