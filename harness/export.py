"""A finding for people without this harness: a script that needs the engines alone, or an issue's text. Layer 3."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jinja2

from harness import media
from harness.checkpoint import Checkpoint
from harness.deviations import load_deviations
from harness.engines import inputs
from harness.errors import UserError
from harness.render import is_expanded, render
from harness.replay import target
from harness.schema import PROPERTIES, Capsule, Case, Finding
from harness.session import locate
from harness.spec import AUDIO, IMAGE, VIDEO
from harness.store import read_capsule, runs

_TEMPLATES = Path(__file__).parent / "templates"
ENGINES = {"hf": "transformers", "vllm": "vllm"}
"""Subjects that a script can run, and the package that each one is."""

PAIR_STAGES = ("prompt_ids", "counts", "pixels", "positions", "mm_features", "mm_features.first", "hidden")
ALONE_STAGES = ("counts", "logprobs")


def exportable(name: str, store: Path) -> Capsule:
    """The capsule that a path, or the id of a case with a finding in the store, names.

    Raises:
        UserError: no such thing, or a case without a finding.
    """
    entry = target(name, store)
    if entry.finding is not None:
        return read_capsule(Path(name))
    kept = (path for run in reversed(runs(store)) for path in sorted((run.path / "capsules").glob("*.json")))
    capsule = next((c for c in map(read_capsule, kept) if c.case.id == entry.case.id), None)
    if capsule is None:
        raise UserError(f"case {name} is no finding's example; `harness shrink {name}` makes a capsule of it")
    return capsule


def script(capsule: Capsule) -> str:
    """A Python file that draws the same input, runs the suspect and its counterpart, and prints what it measures.

    Raises:
        UserError: a finding that no such file can show; the message says why.
    """
    if why := refused(capsule):
        raise UserError(f"no script for {capsule.finding.signature}: {why}; use --issue, or `harness replay`")
    finding, case = capsule.finding, capsule.case
    engines = _engines(finding)
    return _render(
        "script.py.j2",
        finding=finding,
        model=Path(case.model).name,
        promise=PROPERTIES[finding.property],
        versions="; ".join(f"{name}: {found}" for name, found in _versions(capsule, engines).items()),
        engines=engines,
        left=engines[0],
        right=engines[-1],
        alone=len(engines) == 1,
        stage=finding.stage,
        case=case,
        prompt=_prompt_source(case),
        images=[", ".join(f"{k}={v!r}" for k, v in asdict(image).items()) for image in case.images],
        sources=list(_sources_of(case)),
        expanded=is_expanded(case),
        dtype=case.dtype or capsule.dtype,
        device=capsule.device,
    )


def refused(capsule: Capsule) -> str:
    """Why a script cannot show this finding; empty if it can."""
    finding, case = capsule.finding, capsule.case
    if finding.stage == "rounding":
        return ""
    if case.probe is not None and finding.stage.split(".")[-1] == case.probe.kind:
        return f"probe {case.probe.kind} is not in public interfaces of the engines alone"
    if case.audios or case.videos:
        return "scripts draw images only"
    stages = ALONE_STAGES if len(finding.subjects) == 1 else PAIR_STAGES
    if finding.stage not in stages:
        return f"stage {finding.stage} is not among {', '.join(stages)}"
    engines = _engines(finding)
    if set(engines) - ENGINES.keys() or (len(finding.subjects) > 1 and len(engines) < 2):
        return f"it needs two of {', '.join(ENGINES)}, and is about {', '.join(finding.subjects)}"
    return ""


def _engines(finding: Finding) -> list[str]:
    """The engines to run: the one that differs from itself, or the reference first and then the suspect."""
    if finding.stage == "rounding":
        return ["hf"]
    if len(finding.subjects) == 1:
        return list(finding.subjects)
    return [name for name in ENGINES if name in finding.subjects]


def _sources_of(case: Case) -> Iterator[str]:
    """The functions that draw the case's images, as they stand in this package."""
    if not case.images:
        return
    functions: list[Callable[..., Any]] = [media._PATTERNS[image.pattern] for image in case.images]
    yield from dict.fromkeys(text for function in [*functions, inputs.picture] for text in _with_helpers(function))


def _with_helpers(function: Callable[..., Any]) -> Iterator[str]:
    """The source of a function, after those of the functions of its module that it calls."""
    module = vars(sys.modules[function.__module__])
    for name in function.__code__.co_names:
        helper = module.get(name)
        if inspect.isfunction(helper) and helper.__module__ == function.__module__:
            yield from _with_helpers(helper)
    yield inspect.getsource(function)


def _prompt_source(case: Case) -> str:
    """The prompt as a Python expression; runs of a placeholder are written as a product."""
    template = Checkpoint.open(locate(case.model)).chat_template if case.form == "chat" else ""
    pieces = re.split(f"((?:{'|'.join(map(re.escape, (IMAGE, AUDIO, VIDEO)))})+)", render(case, template))
    written = []
    for piece in filter(None, pieces):
        token = next((token for token in (IMAGE, AUDIO, VIDEO) if piece == token * (len(piece) // len(token))), "")
        count = len(piece) // len(token) if token else 1
        written.append(f"{token!r} * {count}" if count > 1 else repr(piece))
    return " + ".join(written)


def issue(capsule: Capsule) -> str:
    """Markdown for the tracker of the engine that is suspected."""
    finding, case = capsule.finding, capsule.case
    why = refused(capsule)
    known = next((d for d in load_deviations() if d.name == finding.deviation), None)
    text = _render(
        "issue.md.j2",
        title=_title(finding),
        expected=_expected(finding),
        observed=_observed(finding),
        cause=known.cause if known else "",
        input=_input(case),
        case=json.dumps(asdict(replace(case, model=Path(case.model).name)), ensure_ascii=False),
        versions=_versions(capsule, list(capsule.subjects)),
        dtype=case.dtype or capsule.dtype,
        device=capsule.device,
        model=Path(case.model).name,
        steps="harness replay capsule.json" if why else f"python reproduce.py .harness/zoo/{Path(case.model).name}",
        script="" if why else script(capsule),
        script_refused=f"There is no script that needs the engine alone: {why}" if why else "",
    )
    return without_paths(text)


def _title(finding: Finding) -> str:
    who = finding.suspect if finding.suspect != "undecided" else " and ".join(finding.subjects)
    return f'Gemma 4: {who} breaks "{PROPERTIES[finding.property]}" at {finding.stage}'


def _expected(finding: Finding) -> str:
    limit = f" (limit {finding.limit:g} {finding.unit})" if finding.limit is not None else ""
    return f"{PROPERTIES[finding.property].capitalize()}{limit}."


def _observed(finding: Finding) -> str:
    measured = f"{finding.measured:.6g} {finding.unit}" if finding.measured is not None else "No number"
    compared = f", compared: {', '.join(finding.subjects)}" if len(finding.subjects) > 1 else ""
    return f"{measured} at stage {finding.stage}{compared}. {finding.detail}".strip()


def _input(case: Case) -> str:
    """The input in a sentence."""
    images = [f"a {i.width_px} x {i.height_px} px {i.mode} image ({i.pattern})" for i in case.images]
    audios = [f"a recording of {a.samples} samples at {a.rate_hz} Hz" for a in case.audios]
    videos = [f"a video of {v.frames} frames of {v.width_px} x {v.height_px} px" for v in case.videos]
    texts = [f"the text {part.text!r}" for part in case.parts if part.text]
    expanded = " with its placeholders expanded already" if any(part.expanded for part in case.parts) else ""
    probe = f", taken once more by probe `{case.probe.kind}`" if case.probe else ""
    things = ", ".join([*images, *audios, *videos, *texts])
    return f"A prompt of {things}{expanded}, budget {case.max_soft_tokens} soft tokens{probe}."


def _versions(capsule: Capsule, names: list[str]) -> dict[str, str]:
    found = {name: capsule.subjects.get(name, {}) for name in names}
    return {
        name: ", ".join(f"{package} {version}" for package, version in packages.items() if package != "engine")
        for name, packages in found.items()
    }


def without_paths(text: str) -> str:
    """Absolute paths of this machine, which an engine's error may name, taken out of prose."""
    return re.sub(r"(?<![\w.:/<])/(?:[\w.\-]+/)+[\w.\-]*", "PATH", text)


def _render(name: str, **values: Any) -> str:
    templates = jinja2.Environment(  # noqa: S701 - Python and Markdown, in which nothing is HTML
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(name).render(**values)
