"""The static site: complete, offline, and safe against what strangers write into prompts and messages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from harness.schema import SCHEMA_VERSION, Capsule
from harness.store import RunStore, find_case, read_capsule, runs, write_json
from reports import figures, findings, site
from reports.frames import VERDICTS, document, load_run
from tests.made_run import BY_KL, HOSTILE, LONG, RIGHT_TO_LEFT, VERDICTS_BY_CASE, finding_of, make_run


class Page(HTMLParser):
    """A page's elements with their attributes, the text that a reader sees, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        """Parse a page."""
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts = "", ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self.words += " " * (tag in ("td", "th", "li", "dd", "dt"))

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts += data
        elif self._inside != "style":
            self.words += data

    def attributes(self, name: str) -> list[str]:
        """Every value of an attribute, in order."""
        return [str(attributes[name]) for _, attributes in self.elements if name in attributes]


Site = dict[str, Page]


def read(out: Path) -> Site:
    return {str(path.relative_to(out)): Page(path.read_text(encoding="utf-8")) for path in sorted(out.rglob("*.html"))}


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return make_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(name="pages", scope="module")
def _pages(run: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    out = tmp_path_factory.mktemp("site")
    (out / "findings").mkdir()
    (out / "findings" / "left.html").write_text("of an earlier build")
    assert site.build(load_run(run), out) == out / "index.html"
    for capsule in (run.path / "capsules").iterdir():
        assert (out / "findings" / capsule.name).read_bytes() == capsule.read_bytes()
    yield read(out)
    assert not (out / "findings" / "left.html").exists()


KL_PAGE, CRASH_PAGE = f"findings/{0x30:08x}.html", f"findings/{0x10:08x}.html"


def test_every_page_is_there(run: RunStore, pages: Site) -> None:
    """The site has the pages of the menu and one for each finding, and every link between them leads somewhere."""
    ids = set(run.frame("findings")["id"])
    assert set(pages) == {f"{name}.html" for name in site.PAGES} | {f"findings/{name}.html" for name in ids}
    for place, page in pages.items():
        for link in page.attributes("href"):
            path = link.partition("#")[0].partition("?")[0]
            if path.endswith(".html"):
                target = (Path("/", place).parent / path).resolve().relative_to("/")
                assert str(target) in pages, f"{place} links to {link}"


def test_hostile_text_is_shown_as_text(pages: Site) -> None:
    """Markup in prompts, messages and reasons is shown letter by letter and never becomes an element, on any page."""
    everything = "".join(page.words for page in pages.values())
    assert pages[KL_PAGE].words.count(HOSTILE) >= 3, "prompt, detail and reason"
    assert HOSTILE in pages[CRASH_PAGE].words, "message"
    assert everything.count(HOSTILE) >= 6
    assert RIGHT_TO_LEFT in pages[KL_PAGE].words
    assert LONG in pages[KL_PAGE].words
    assert "alert" not in "".join(page.scripts for page in pages.values())
    assert not any(attributes.get("onerror") for page in pages.values() for _, attributes in page.elements)


def test_control_characters_are_made_visible(pages: Site) -> None:
    """Control characters of a prompt, which HTML forbids or hides, appear as the symbols that stand for them."""
    assert "after ␀␛[31m" in pages[KL_PAGE].words


def test_every_finding_can_be_linked_and_replayed(run: RunStore, pages: Site) -> None:
    """Each finding has a page of its own, and commands, to read and to copy, that name the capsule beside it."""
    for name in sorted(set(run.frame("findings")["id"])):
        page, capsule = pages[f"findings/{name}.html"], f"{name}.json"
        commands = page.attributes("data-copy")
        verbs = [command.split()[3] for command in commands]
        assert verbs == ["replay", "shrink", "explain", "export", "export"]
        assert all(command.split()[4] == capsule and command in page.words for command in commands)
        assert capsule in page.attributes("href")
        assert "at revision abc123, pip install uv" in page.words
        assert str(run.path) not in "".join([page.words, *commands]), "a path that the reader does not have"
        assert f"findings/{name}.html" in pages["findings.html"].attributes("href")
        assert f"findings/{name}.html" in pages["index.html"].attributes("href")


def test_pages_load_nothing_from_the_network(pages: Site) -> None:
    """Scripts, styles and images come from beside the pages, and the content policy forbids anything else."""
    for page in pages.values():
        loading = [attributes for tag, attributes in page.elements if tag in ("script", "link", "img")]
        sources = [str(attributes.get(name) or "") for attributes in loading for name in ("src", "href")]
        assert not [source for source in sources if source.lower().startswith(("http:", "https:", "//"))]
        assert [source.rpartition("../")[2] for source in sources if source.endswith("site.js")] == ["assets/site.js"]
        assert any("default-src 'none'" in content for content in page.attributes("content"))


def test_matrix_counts_the_stored_verdicts(run: RunStore, pages: Site) -> None:
    """Every number of the agreement matrix equals the verdict rows of that pair, property and kind."""
    shown: dict[tuple[str, str, str], int] = {}
    pair = prop = ""
    for _, attributes in pages["index.html"].elements:
        pair = attributes.get("data-pair") or pair
        prop = attributes.get("data-property") or prop
        if kind := attributes.get("data-verdict"):
            shown[pair, prop, kind] = int(attributes["data-count"] or -1)
    verdicts = run.frame("verdicts")
    names = verdicts["left"].where(verdicts["left"] == verdicts["right"], verdicts["left"] + " - " + verdicts["right"])
    stored = verdicts.assign(pair=names).groupby(["pair", "property", "verdict"]).size().to_dict()
    assert shown == stored
    assert {kind for _, _, kind in shown} == set(VERDICTS)


def test_a_curve_is_drawn_or_its_absence_explained(pages: Site) -> None:
    """A finding with arrays gets its KL by position; a crash says in words why there is none."""
    assert pages[KL_PAGE].attributes("data-figure") == [f"data-kl-{0x30:08x}"]
    assert "There is no curve" in pages[CRASH_PAGE].words
    assert f"No curve of hf – vllm: vllm crashed {HOSTILE}." in pages[CRASH_PAGE].words, "the verdict's own reason"
    assert "1 position not drawn" in pages[KL_PAGE].words, "the NaN"


def test_what_is_broken_and_how_far_is_told(pages: Site) -> None:
    """A crash breaks the promise to answer, not that of prompt ids; an example's number stands beside the worst."""
    assert "Broken promise: the engine answers" in pages[CRASH_PAGE].words
    assert "Broken promise P6: " in pages[KL_PAGE].words
    text = " ".join(pages[KL_PAGE].words.split())
    assert "Measured in this example 5.5 nats Worst measured, in its only case 5.5 nats" in text


def test_a_cause_is_prose_and_nothing_else() -> None:
    """Backticks become code, addresses links, what nobody was told a badge; markup and other schemes stay letters."""
    shown = site.prose("`<b>` is <i>; for it not reported yet: https://a.example/1; javascript:x")
    code, link = "<code>&lt;b&gt;</code>", '<a href="https://a.example/1" rel="noreferrer">https://a.example/1</a>'
    badge = '<span class="badge">not reported yet</span>'
    assert shown == f"{code} is &lt;i&gt;; for it {badge}: {link}; javascript:x"


def test_counts_stand_beside_both_rules(pages: Site) -> None:
    """An image shows the reference rule, the exact contract, each subject's counts and its placeholders."""
    text = " ".join(pages[KL_PAGE].words.split())
    assert "reference rule, as shipped 252 280 image 1 exact contract 280 280 image 1 hf 252 252" in text
    assert "Rounding-sensitive" in text
    assert "hf 2; vllm 2." in text
    assert "stretched to 28 × 9 units" in text


def test_stages_stand_in_the_order_of_the_computation(pages: Site) -> None:
    """The ledger goes from the outcome to the probabilities, whatever order verdicts were stored in; probes follow."""
    text = " ".join(pages[KL_PAGE].words.split())
    assert text.index("counts P2") < text.index("prompt_ids P1") < text.index("pixels P7") < text.index("hidden P6")
    stages = ["hidden", "chunked", "layer.3", "outcome", "mm_features.first", "prompt_ids.batch"]
    ordered = findings.in_order([{"stage": stage, "left": "a", "right": "b"} for stage in stages])
    expected = ["outcome", "mm_features.first", "layer.3", "hidden", "prompt_ids.batch", "chunked"]
    assert [row["stage"] for row in ordered] == expected


def test_figures_escape_what_ends_a_script() -> None:
    """JSON of a figure never holds the characters that could close its script element."""
    arrays = {"roles": np.zeros(2, dtype=np.int8), "kl/a/</script><b>": np.ones(2)}
    assert "<" not in figures.kl_positions(arrays, {})


@pytest.mark.parametrize("cases", [0, 2])
def test_site_of_a_run_without_findings(tmp_path: Path, cases: int) -> None:
    """A run in which all agreed, and one that ended before its first case, still give every page, and say so."""
    run = make_run(tmp_path, with_findings=False) if cases else RunStore.create(tmp_path, {}, [])
    site.build(load_run(run), tmp_path / "site")
    pages = read(tmp_path / "site")
    assert set(pages) == {f"{name}.html" for name in site.PAGES}
    text = " ".join(pages["index.html"].words.split())
    assert f"{cases} cases, 0 unexpected findings, 0 known" in text
    assert ("every property held" if cases else "no case has finished") in text
    assert ("Not tried" if cases else "nothing was tried") in pages["inputs.html"].words


def test_what_is_new_and_what_is_gone_since_the_run_before(tmp_path: Path) -> None:
    """Beside the run before, findings are new, still there, or gone, with the cases that could have shown them."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    older = tmp_path / "store" / "20000101-000000-1"
    newer = tmp_path / "store" / "20000102-000000-1"
    newer.parent.mkdir()
    first.path.rename(older)
    second.path.rename(newer)
    for path, started in ((older, "2000-01-01T00:00:00+00:00"), (newer, "2000-01-02T00:00:00+00:00")):
        run = RunStore(path)
        run.write_header(run.header() | {"started": started})
    extra = dataclasses.replace(finding_of(BY_KL, VERDICTS_BY_CASE[BY_KL][0], 1), signature="P1/prompt_ids/gone")
    RunStore(older).append({"findings": [dataclasses.asdict(extra) | {"subjects": "[]"}]})
    site.build(load_run(RunStore(newer)), tmp_path / "site")
    text = " ".join(read(tmp_path / "site")["index.html"].words.split())
    assert "0 new" in text
    assert "Type Cases" in text, "float32 and bfloat16 are rows of their own"
    assert "hf ‖ vllm tiny-31b float32 1" in text
    assert "2 still there" in text
    assert "1 not seen any more P1/prompt_ids/gone tiny-31b, fixed, or missed in 1 case" in text


@pytest.mark.parametrize("text", ["cause = 'the `known` cause'\nlink = 'javascript:alert(1)'", "not toml", None])
def test_known_cause_is_told_if_its_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """A known deviation shows its cause; a file that is gone or broken stops no page, nor does a bad link."""
    monkeypatch.setattr(findings, "DEVIATIONS", tmp_path)
    monkeypatch.setattr(findings, "ISSUES", tmp_path)
    if text:
        (tmp_path / "known.toml").write_text(text)
        (tmp_path / "known.md").write_text("# The issue <b>\n<details>its script")
    run = make_run(tmp_path / "store", with_findings=False)
    finding = dataclasses.replace(finding_of(BY_KL, VERDICTS_BY_CASE[BY_KL][2], 1), deviation="known")
    run.append({"findings": [dataclasses.asdict(finding) | {"subjects": "[]"}]})
    write_json(run.path / "capsules" / "00000001.json", Capsule(SCHEMA_VERSION, finding, BY_KL, {}, "float32", "cpu"))
    site.build(load_run(run), tmp_path / "site")
    pages = read(tmp_path / "site")
    page, searched = pages["findings/00000001.html"], pages["findings.html"].attributes("data-words")
    assert any("`known` cause" in words for words in searched) == bool(text and text.startswith("cause"))
    assert ("the known cause" if text and text.startswith("cause") else "no longer in cases/deviations/") in page.words
    assert ("# The issue <b>" in page.words) == bool(text)
    assert ("The smallest known case, from docs/findings/known.md; not this example" in page.words) == bool(text)
    assert "its script" not in page.words
    assert not any(href.startswith("javascript") for href in page.attributes("href"))


def test_pictures_are_small_and_those_of_few_pixels_exact(tmp_path: Path) -> None:
    """A large image is reduced to the site's size; one of a few pixels, looked at one by one, loses nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (600, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:7, :5]).save(tmp_path / "small.png")
    with Image.open(tmp_path / site._picture(tmp_path / "large.png", tmp_path, {})) as large:
        assert max(large.size) == site.PICTURE_PX
    with Image.open(tmp_path / site._picture(tmp_path / "small.png", tmp_path, {})) as small:
        assert (np.asarray(small.convert("RGB")) == noise[:7, :5]).all()


MADE_TABLES = ("cases", "images", "observations", "verdicts", "divergences", "findings")
HARM: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "garbage": lambda data: b"\x00garbage" * 40,
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize(
    "kind",
    ["cases.json", *(f"parts/000001/{table}.parquet" for table in MADE_TABLES), "capsules/*", "media/*", "arrays/*"],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path, kind: str, harm: str) -> None:
    """One file that cannot be read costs what it held: it is named, the others are shown, and nothing raises."""
    run = make_run(tmp_path / "store")
    files = sorted(run.path.glob(kind))
    files[0].write_bytes(HARM[harm](files[0].read_bytes()))
    frames = load_run(run)
    pages = read(site.build(frames, tmp_path / "site").parent)
    assert list(frames.damaged) == [str(files[0])]
    assert str(files[0].relative_to(run.path)) in pages["index.html"].words
    shown = {name for name in pages if name.startswith("findings/")}
    lost = {CRASH_PAGE, KL_PAGE} - shown
    assert lost == set() or "findings.parquet" in kind, "only the table of findings says that there was one"
    if kind == "capsules/*":
        assert read_capsule(tmp_path / "site" / "findings" / files[0].name).case in VERDICTS_BY_CASE, "told by the rest"
    assert document(frames)["cases"] == len(frames.cases)


def test_a_whole_run_names_no_damage(run: RunStore, pages: Site) -> None:
    """Where every file can be read, no page says otherwise."""
    assert load_run(run).damaged == {}
    assert "cannot be read" not in pages["index.html"].words


def test_a_damaged_run_does_not_hide_a_case_of_another(tmp_path: Path) -> None:
    """A case is found in a store beside a run whose list of cases is damaged; one that is nowhere names that file."""
    make_run(tmp_path)
    newer = RunStore(tmp_path / "99991231-000000-1")
    shutil.copytree(runs(tmp_path)[0].path, newer.path)
    (newer.path / "cases.json").write_bytes(b"[")
    assert find_case(tmp_path, BY_KL.id)[1] == BY_KL
    with pytest.raises(UserError, match=r"99991231-000000-1/cases\.json"):
        find_case(tmp_path, "0" * 12)


def test_each_curve_has_the_roles_of_its_own_pair() -> None:
    """Two pairs that were given different prompts are coloured each by its own; a run of before has one for all."""
    kl = {"kl/a/b": np.zeros(3), "kl/c/d": np.zeros(2), "kl/e/f": np.zeros(3)}
    own = {"roles/a/b": np.array([0, 2, 2], np.int8), "roles/c/d": np.array([0, 5], np.int8)}
    arrays = {**kl, **own, "roles": own["roles/a/b"]}
    assert list(figures.kl_by_pair(arrays)) == [("a", "b"), ("c", "d"), ("e", "f")]
    assert '"runs":[[[0,1],[2,2]],[[0,1],[5,1]],[[0,1],[2,2]]]' in figures.kl_positions(arrays, {}).replace(" ", "")
