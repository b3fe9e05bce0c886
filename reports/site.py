"""The static site of a run: pages, and beside them one style, one script, plotly and the images. Needs no network.

Prompts and messages come from strangers. Jinja2 escapes every one of them; only figures, made in
`reports.figures`, pass as they are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly
from markupsafe import Markup
from PIL import Image

from harness.schema import PROPERTIES
from harness.store import Damaged, write_json
from reports import figures, inputs, measured, overview, soft_tokens
from reports import findings as finding_pages
from reports.columns import COLUMNS, TABLE_MEANINGS
from reports.findings import STAGES
from reports.frames import Frames, grouped_findings, when
from reports.history import History

_TEMPLATES = Path(__file__).parent / "templates"
_PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

PICTURE_PX = 288
"""Longest side of an image on a page; the run keeps larger ones."""

PAGES = {
    "index": "Overview",
    "findings": "Findings",
    "inputs": "Input space",
    "soft_tokens": "Soft tokens",
    "history": "History",
    "noise": "Noise",
    "power": "Power",
    "dictionary": "Dictionary",
}
"""Page -> its name in the menu, which every page has."""

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def build(frames: Frames, out: Path, history: History | None = None) -> Path:
    """Write the site into a directory; returns the path of its first page."""
    _assets(out)
    templates = environment()
    findings = [finding_pages.described(entry) for entry in grouped_findings(frames)]
    shared = _shared(frames, findings)

    def write(path: str, template: str, **variables: Any) -> None:
        text = templates.get_template(template).render(**shared, **variables)
        (out / path).write_text(text, encoding="utf-8")

    # Findings first: what cannot be read is met here, and every page after it says so.
    examples = finding_pages.Examples(frames, {finding["example"] for finding in findings})
    for finding in findings:
        example = examples.of(finding["id"])
        for medium in example["media"]:
            if medium["file"]:
                kept = frames.run.path / "media" / medium["file"]
                medium["file"] = _picture(kept, out / "assets" / "media", frames.damaged)
        capsule = frames.run.path / "capsules" / f"{finding['id']}.json"
        if str(capsule) in frames.damaged:
            write_json(out / "findings" / capsule.name, example["capsule"])
        else:
            shutil.copyfile(capsule, out / "findings" / capsule.name)
        issue = finding_pages.issue_text(finding["deviation"])
        write(
            f"findings/{finding['id']}.html", "finding.html.j2",
            page="findings", root="../", finding=finding, example=example, issue=issue,
        )  # fmt: skip
    for name, variables in _pages(frames, findings, history or History(())):
        write(f"{name}.html", f"{name}.html.j2", page=name, root="", **variables)
    return out / "index.html"


def _pages(frames: Frames, findings: Sequence[Mapping[str, Any]], history: History) -> Iterator[tuple[str, Any]]:
    """Every page but those of single findings, with what its template needs."""
    yield "index", overview.context(frames, findings)
    yield "findings", {}
    yield "inputs", {"heats": inputs.heats(frames)}
    yield "soft_tokens", {**soft_tokens.context(frames), "marks": soft_tokens.MARKS}
    yield "history", history.context()
    yield "noise", measured.noise(frames)
    yield "power", measured.power()
    yield "dictionary", {"tables": COLUMNS, "meanings": TABLE_MEANINGS}


def _shared(frames: Frames, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every page knows of the run."""
    header = frames.header
    return {
        "run_id": frames.run.run_id,
        "started": when(header.get("started", "")),
        "plan": header.get("plan", {}),
        "environment": header.get("environment", {}),
        "subjects": header.get("subjects", {}),
        "timing": header.get("timing", {}),
        "damaged": frames.damaged,
        "run_path": f"{frames.run.path}/",
        "cases_done": len(frames.cases),
        "properties": PROPERTIES,
        "findings": findings,
        "unexpected": [finding for finding in findings if finding["unexpected_cases"]],
        "known": [finding for finding in findings if not finding["unexpected_cases"]],
        "stages": STAGES,
        "figures": figures,
        "menu": PAGES,
    }


def _assets(out: Path) -> None:
    """One copy of everything that pages share; pages of findings that an earlier build left are removed."""
    for name in ("assets/media", "findings"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for left in (out / "findings").iterdir():
        if left.suffix in (".html", ".json"):
            left.unlink()
    shutil.copyfile(_PLOTLY, out / "assets" / "plotly.min.js")
    shutil.copyfile(_TEMPLATES / "page.js", out / "assets" / "site.js")
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8") + figures.role_style()
    (out / "assets" / "site.css").write_text(style, encoding="utf-8")


def _picture(kept: Path, media: Path, damaged: Damaged) -> str:
    """A copy of a stored image, small enough that thousands fit; returns its name, none of a damaged one."""
    target = media / f"{kept.stem}.webp"
    if not target.exists():
        try:
            with Image.open(kept) as image:
                small = image.convert("RGBA" if "A" in image.getbands() else "RGB")
        except (OSError, SyntaxError, ValueError) as error:  # What Pillow raises of files that are no images.
            damaged[str(kept)] = str(error)
            return ""
        small.thumbnail((PICTURE_PX, PICTURE_PX))
        # Few pixels are looked at one by one, many as a whole.
        small.save(target, lossless=small.width * small.height <= 2_304, quality=60)
    return target.name


def environment() -> jinja2.Environment:
    """Templates in which everything is escaped, and a variable that does not exist is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    templates.filters["number"] = _number
    templates.filters["stage"] = finding_pages.stage_words
    templates.filters["prose"] = prose
    return templates


_PROSE = re.compile(r"`([^`]+)`|(https://[^\s;,`]+)|(not reported yet)")


def prose(text: str) -> Markup:
    """A cause or its link, escaped: backticks as code, addresses as links, what nobody was told as a badge."""
    shown, at = Markup(), 0
    for found in _PROSE.finditer(text):
        code, link, badge = found.groups()
        shown += Markup("{}").format(visible(text[at : found.start()]))
        if code:
            shown += Markup("<code>{}</code>").format(visible(code))
        elif link:
            shown += Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(visible(link))
        else:
            shown += Markup('<span class="badge">{}</span>').format(badge)
        at = found.end()
    return shown + Markup("{}").format(visible(text[at:]))


def visible(value: Any) -> Any:
    """Control characters, which a browser hides and HTML partly forbids, as the symbols that stand for them."""
    return value.translate(_CONTROLS) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None) -> str:
    """Three significant digits; whole numbers in full; a dash for none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
