"""The site in a real browser: Debian's Chromium, from files, at the width of a desk and of a phone.

`.ci/run` installs Chromium where apt can; where it is not there these tests are skipped, and say how to get it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from harness.store import RunStore
from reports import site
from reports.frames import load_run
from tests.made_run import HOSTILE, LONG, RIGHT_TO_LEFT, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""Nothing of the browser's own may look like a request of a page."""

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium on PATH: `apt-get install chromium`, or run .ci/run, which does"
)


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return make_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(name="out", scope="module")
def _out(run: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site.build(load_run(run), tmp_path_factory.mktemp("site")).parent


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses root without it.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *sandbox])
        yield browser
        browser.close()


class Watched:
    """A browser's window that remembers what pages said and asked for."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        context.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: Path, query: str = "") -> Page:
        """Go to a file and wait until its scripts ran."""
        self.page.goto(f"{path.as_uri()}{query}", wait_until="load")
        return self.page


@pytest.fixture(name="watched", params=SIZES)
def _watched(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    width, height = SIZES[request.param]
    phone = request.param == "phone"
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    yield Watched(context)
    context.close()


def test_every_page_is_quiet_and_fits(out: Path, watched: Watched) -> None:
    """Each page opens from a file with no word on the console, no request but for files, and no sideways scrolling."""
    paths = sorted(out.rglob("*.html"))
    assert len(paths) == len(site.PAGES) + 2
    for path in paths:
        page = watched.open(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path.name} scrolls sideways"
        for plot in page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("svg.main-svg").first.wait_for()
    assert watched.said == []
    assert watched.asked
    assert [url for url in watched.asked if not url.startswith(("file://", "data:", "blob:"))] == []


def test_what_a_page_says_is_heard(out: Path, watched: Watched, tmp_path: Path) -> None:
    """Negative control: a page with an error, a word on the console and a request of the network is noticed."""
    (tmp_path / "bad.html").write_text(
        "<script>console.log('word'); fetch('http://localhost:9/x').catch(() => {}); oops()</script>"
    )
    page = watched.open(tmp_path / "bad.html")
    page.wait_for_timeout(200)
    assert "word" in watched.said
    assert any("oops" in words for words in watched.said)
    assert any(url.startswith("http:") for url in watched.asked)
    page = watched.open(out / "index.html")
    page.evaluate("fetch('http://localhost:9/x').catch(() => {})")
    assert any("Content Security Policy" in words for words in watched.said), "the pages' own policy forbids it"


def test_a_hostile_prompt_is_text(out: Path, watched: Watched) -> None:
    """Markup, quotes, right-to-left words and 10,000 characters stand in the prompt as letters, and nothing ran."""
    page = watched.open(out / "findings" / f"{0x30:08x}.html")
    prompt = page.get_by_label("Prompt").text_content() or ""
    assert HOSTILE in prompt
    assert RIGHT_TO_LEFT in prompt
    assert LONG in prompt
    assert page.locator("img[onerror], img[src^='http']").count() == 0
    assert page.title().startswith("P6/hidden/vllm on tiny-31b")
    assert watched.said == []


def test_search_by_keyboard_and_filters(out: Path, watched: Watched) -> None:
    """The key / goes to the search; words and filters leave the rows that fit; the address keeps them."""
    page = watched.open(out / "findings.html")
    rows = page.locator("#findings-table tbody tr:not(.head):visible")
    assert rows.count() == 2
    page.keyboard.press("/")
    page.keyboard.type("crashed vllm")
    assert rows.count() == 1
    assert page.locator("#shown").text_content() == "1 of 2 findings"
    assert "q=crashed+vllm" in page.url
    page.keyboard.press("Escape")
    assert rows.count() == 2
    page.get_by_label("Property").select_option("P6")
    assert [row.get_attribute("data-property") for row in rows.all()] == ["P6"]
    page.get_by_label("Model").select_option("tiny-e2b")
    assert rows.count() == 0
    assert page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Clear").click()
    rows.nth(1).wait_for()
    watched.open(out / "findings.html", "?property=P1&q=boom")
    assert page.locator("#nothing").is_visible()
    watched.open(out / "findings.html", "?property=P1")
    assert rows.count() == 1
    assert watched.said == []


def test_search_from_any_page_leads_to_findings(out: Path, watched: Watched) -> None:
    """What is typed into the search of another page is asked of the findings."""
    page = watched.open(out / "findings" / f"{0x30:08x}.html")
    page.keyboard.press("/")
    page.keyboard.type("tiny-e2b")
    page.keyboard.press("Enter")
    page.wait_for_url("**/findings.html?q=tiny-e2b")
    assert page.locator("#shown").text_content() == "1 of 2 findings"
    hit = page.locator("#findings-table a:visible").first
    assert hit.evaluate("link => link === document.activeElement"), "Enter goes to the first hit"


def test_a_head_sorts_its_table_and_a_button_copies_it(out: Path, watched: Watched) -> None:
    """Numbers sort as numbers, up and down, by mouse and by keyboard; what is shown is copied with tabs."""
    page = watched.open(out / "power.html")
    head = page.locator("thead th", has_text="cases tried")
    cells = page.locator("tbody td:last-child")

    def numbers() -> list[int]:
        return [int(text) for text in cells.all_text_contents()]

    before = numbers()
    head.click()
    assert numbers() == sorted(before) != before
    head.press("Enter")
    assert numbers() == sorted(before, reverse=True)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.locator("button.copy").first.evaluate("button => button.click()")
    lines = page.evaluate("window.copied").split("\n")
    assert len(lines) == len(before) + 1
    assert lines[0].startswith("Fault\t")
    assert {line.count("\t") for line in lines} == {6}


def test_a_reason_stays_below_its_comparison(watched: Watched, tmp_path: Path) -> None:
    """Sorting moves a comparison with the line of its reason, and the page says how its numbers are read."""
    run = make_run(tmp_path / "store")
    keys = {"model": "m", "property": "P6", "stage": "hidden", "left": "hf", "right": "vllm", "verdict": "agree"}
    run.append({"comparisons": [keys | {"effect": effect, "reason": f"why {effect:g}"} for effect in (3.0, 1.0, 2.0)]})
    page = watched.open(site.build(load_run(run), tmp_path / "site").with_name("noise.html"))
    assert page.get_by_role("heading", name="How to read a KL").is_visible()
    page.locator("thead th", has_text="effect").click()
    assert page.locator("table tr.foot").all_text_contents() == ["why 1", "why 2", "why 3"]
    assert page.locator("table tr:not(.foot) + tr.foot").count() == 3
    assert watched.said == []


def test_a_wide_table_keeps_its_first_column_on_a_phone(out: Path, watched: Watched) -> None:
    """On a phone the first cell of a row stays in view; a column's name is not broken within a word anywhere."""
    page = watched.open(out / "findings.html")
    first = page.locator("#findings-table tbody tr:not(.head) > :first-child").first
    phone = page.evaluate("innerWidth") == SIZES["phone"][0]
    assert (first.evaluate("cell => getComputedStyle(cell).position") == "sticky") == phone
    wraps = page.locator("thead th").evaluate_all("heads => heads.map((head) => getComputedStyle(head).overflowWrap)")
    assert set(wraps) == {"normal"}


def test_dark_is_dark_and_light_is_light(out: Path, browser: Browser) -> None:
    """The pages and their figures follow the reader's colour scheme."""
    shades = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        page = Watched(context).open(out / "findings" / f"{0x30:08x}.html")
        page.locator(".plot").scroll_into_view_if_needed()
        page.locator(".plot .xtick text").first.wait_for()
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        words = page.locator(".plot .xtick text").first.evaluate("text => getComputedStyle(text).fill")
        shades[scheme] = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, words)]
        context.close()
    assert shades["light"][0] > 600 > shades["light"][1]
    assert shades["dark"][0] < 200 < shades["dark"][1]
