"""A finding as a Python file that needs the engines alone. Layer 3.

The file carries what draws the media, as it stands in this package, and calls the engines as their users do; it
imports nothing of ours.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from harness import media, spec
from harness.checkpoint import Checkpoint
from harness.engines import hf_inputs, hf_paths, inputs, vllm_media
from harness.errors import UserError
from harness.render import is_expanded, render
from harness.schema import PROPERTIES, Capsule, Case, Finding, ImageSpec, Medium, ProbeKind, VideoSpec
from harness.session import locate
from harness.spec import AUDIO, IMAGE, VIDEO

_TEMPLATES = Path(__file__).parent / "templates"
ENGINES = {"hf": "transformers", "vllm": "vllm"}
"""Subjects that a script can run, and the package that each one is."""

ROWS: dict[Medium, str] = {"image": "mm_features", "audio": "audio_features", "video": "video_features"}
PAIR_STAGES = (
    "prompt_ids", "counts", "pixels", "positions", "mm_features", "mm_features.first", "hidden", "outcome",
    "audio_input", "audio_features", "video_pixels", "video_positions", "video_features",
)  # fmt: skip
ALONE_STAGES = ("counts", "logprobs", "frames", "outcome")

WAYS: dict[ProbeKind, str] = {
    "chunked": "generated(model, inputs, prefill_chunk_size={step})",
    "static_cache": 'generated(model, inputs, cache_implementation="static")',
    "forward": "plain(model, inputs, use_cache=False)",
}
"""Probes that are another way through a model of transformers, by its public interface."""


def script(capsule: Capsule) -> str:
    """A Python file that draws the same input, runs the suspect and its counterpart, and prints what it measures.

    Raises:
        UserError: a finding that no such file can show; the message says why.
    """
    if why := refused(capsule):
        raise UserError(f"no script for {capsule.finding.signature}: {why}; use --issue, or `harness replay`")
    finding, case = capsule.finding, capsule.case
    engines = _engines(finding)
    medium = _medium(finding)
    kind = case.probe.kind if case.probe and _is_probed(capsule) else None
    outcome = finding.stage.split(".")[0] == "outcome"
    return fill(
        "script.py.j2",
        finding=finding,
        model=Path(case.model).name,
        promise=PROPERTIES[finding.property],
        versions="; ".join(f"{name}: {found}" for name, found in versions_of(capsule, engines).items()),
        engines=engines,
        left=engines[0],
        right=engines[-1],
        alone=len(engines) == 1,
        stage=finding.stage,
        unit="refusals" if outcome else finding.unit or "difference",
        outcome=outcome,
        medium=medium,
        rows=ROWS[medium],
        kind=kind,
        probe=WAYS[kind].format(step=inputs.step(case.probe.at)) if kind and case.probe else "",
        forward=f"{'video_encoded_first' if case.videos else 'plain'}(model, inputs, use_cache=False)",
        case=case,
        prompt=_prompt_source(case),
        images=list(map(_fields, case.images)),
        audios=list(map(_fields, case.audios)),
        videos=list(map(_fields, case.videos)),
        waves=", ".join(f"{p!r}: {media._WAVES[p].__name__}" for p in dict.fromkeys(a.pattern for a in case.audios)),
        sources=list(dict.fromkeys(_sources_of(capsule))),
        expanded=is_expanded(case),
        dtype=case.dtype or capsule.dtype,
        device=capsule.device,
    )


def _fields(specification: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(specification).items())


def _is_probed(capsule: Capsule) -> bool:
    probe = capsule.case.probe
    return probe is not None and capsule.finding.stage.split(".")[-1] == probe.kind


def _medium(finding: Finding) -> Medium:
    media_of: dict[str, Medium] = {"P10": "video", "P11": "audio"}
    return media_of.get(finding.property, "image")


def refused(capsule: Capsule) -> str:
    """Why a script cannot show this finding; empty if it can."""
    finding, case = capsule.finding, capsule.case
    if finding.stage == "rounding":
        return ""
    engines = _engines(finding)
    if not engines or set(engines) - ENGINES.keys():
        return f"it needs {' or '.join(ENGINES)}, and is about {', '.join(finding.subjects)}"
    if len({video.indices is None for video in case.videos}) > 1:
        return "whole videos and given frames in one prompt need the harness's own sampling"
    if is_expanded(case) and (case.audios or case.videos):
        return "only expanded images go in as token ids"
    return _refused_stage(capsule, engines)


def _refused_stage(capsule: Capsule, engines: list[str]) -> str:
    """Why a script cannot measure at this finding's stage."""
    finding, probe = capsule.finding, capsule.case.probe
    if probe and _is_probed(capsule):
        shown = engines == ["hf"] and probe.kind in WAYS
        return "" if shown else f"probe {probe.kind} of {engines[0]} is not in its public interface"
    alone = len(finding.subjects) == 1
    known = finding.stage in (ALONE_STAGES if alone else PAIR_STAGES)
    if not known or (finding.property, finding.stage) == ("P10", "counts"):
        return f"stage {finding.stage} of {finding.property} needs what the harness measures beside the engines"
    if not alone and finding.stage != "outcome" and len(engines) < 2:
        return f"it needs two of {', '.join(ENGINES)}, and is about {', '.join(finding.subjects)}"
    return ""


def _engines(finding: Finding) -> list[str]:
    """The engines to run: the one that differs from itself, or the reference first and then the suspect."""
    if finding.stage == "rounding":
        return ["hf"]
    if len(finding.subjects) == 1:
        return list(finding.subjects)
    return [name for name in ENGINES if name in finding.subjects]


def _sources_of(capsule: Capsule) -> Iterator[str]:
    """What the script takes over of this package: drawing, counting rules, ways through the model."""
    case, finding = capsule.case, capsule.finding
    pictured: tuple[ImageSpec | VideoSpec, ...] = (*case.images, *case.videos)
    functions: list[Callable[..., Any]] = [media._PATTERNS[framed.pattern] for framed in pictured]
    functions += [inputs.picture] * bool(case.images)
    functions += [media._WAVES[audio.pattern] for audio in case.audios]
    engines = _engines(finding)
    if case.videos:
        functions += [hf_inputs._metadata] * ("hf" in engines) + [vllm_media.metadata] * ("vllm" in engines)
    if finding.stage == "frames":
        functions.append(spec.shown_frames)
    if finding.property == "P11" and finding.stage == "counts":
        functions += [spec.audio_tokens, spec.waveform_tokens]
    for function in functions:
        yield from _with_helpers(function)
    if "hf" in engines and finding.stage != "rounding":
        yield inspect.getsource(hf_paths.plain)
        if case.probe and "generated" in WAYS.get(case.probe.kind, ""):
            yield inspect.getsource(hf_paths.generated)
        if case.videos:
            yield f"_ENCODERS = {hf_paths._ENCODERS!r}\n"
            yield inspect.getsource(hf_paths.video_encoded_first)


def _with_helpers(function: Callable[..., Any]) -> Iterator[str]:
    """The source of a function, after those of the functions and numbers of its module that it names."""
    module = vars(sys.modules[function.__module__])
    for name in function.__code__.co_names:
        helper = module.get(name)
        if inspect.isfunction(helper) and helper.__module__ == function.__module__:
            yield from _with_helpers(helper)
        if isinstance(helper, int):
            yield f"{name} = {helper!r}\n"
    yield inspect.getsource(function)


def _prompt_source(case: Case) -> str:
    """The prompt as a Python expression; runs of a placeholder are written as a product."""
    opened = Checkpoint.open(locate(case.model))
    template = opened.chat_template if case.form == "chat" else ""
    tokens = f"((?:{'|'.join(map(re.escape, (IMAGE, AUDIO, VIDEO)))})+)"
    pieces = re.split(tokens, render(case, template, waves=opened.takes_waves))
    written = []
    for piece in filter(None, pieces):
        token = next((token for token in (IMAGE, AUDIO, VIDEO) if piece == token * (len(piece) // len(token))), "")
        count = len(piece) // len(token) if token else 1
        written.append(f"{token!r} * {count}" if count > 1 else repr(piece))
    return " + ".join(written)


def versions_of(capsule: Capsule, names: list[str]) -> dict[str, str]:
    """What each subject ran with, in words."""
    found = {name: capsule.subjects.get(name, {}) for name in names}
    return {
        name: ", ".join(f"{package} {version}" for package, version in packages.items() if package != "engine")
        for name, packages in found.items()
    }


def fill(name: str, **values: Any) -> str:
    """A template of this package with its values."""
    templates = jinja2.Environment(  # noqa: S701 - Python and Markdown, in which nothing is HTML
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(name).render(**values)
