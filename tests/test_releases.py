"""Older releases of transformers and vLLM and other options, on the real packages: what each makes of a few cases.

Left out by default; `uv run pytest -m releases` builds the environments (seconds with a warm cache) and runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.releases import PROMPTS, START_UP_TIMEOUT_S
from harness.campaign import Campaign, Result
from harness.environments import Subject, resolve
from harness.fleet import Options, fleet
from harness.schema import Case, Part, Property
from harness.session import locate

pytestmark = [pytest.mark.engines, pytest.mark.releases]

TEXT, IMAGE, EXTREME, AUDIO, VIDEO = PROMPTS.values()


def run(
    subjects: Sequence[Subject], cases: Sequence[Case], logs: Path, properties: Sequence[Property] = ()
) -> list[Result]:
    options = Options(timeout_s=START_UP_TIMEOUT_S, properties=tuple(properties) or Options.properties)
    with fleet(subjects, options, logs) as workers:
        return list(Campaign(workers, locate).run(cases))


def outcomes(results: Sequence[Result], name: str) -> Iterator[tuple[str, str]]:
    for result in results:
        yield from ((o.outcome, o.message) for o in result.observations if o.subject == name)


def signatures(results: Sequence[Result]) -> set[str]:
    return {finding.signature for result in results for finding in result.findings}


@pytest.mark.parametrize("release", ["5.5.0", "5.8.0", "5.10.4", "5.17.0"])
def test_hf_takes_every_medium(release: str, tmp_path: Path) -> None:
    """Features of images, sound and videos, and pixels, are those of native; tiny-e2b loads whole."""
    cases = [Case("tiny-e2b", parts) for parts in (TEXT, IMAGE, AUDIO, VIDEO)]
    name = f"hf@{release}"
    results = run(resolve([name, "native"]), cases, tmp_path, ("P1", "P2", "P7", "P8", "P10", "P11"))
    assert list(outcomes(results, name)) == [("ok", "")] * 4
    assert signatures(results) == set()


def test_hf_5_5_reads_its_own_keys_without_a_cache(tmp_path: Path) -> None:
    """5.5.0 shares keys and values through the cache alone; 5.8.0 agrees with native on the same text."""
    (result,) = run(resolve(["hf@5.5.0", "hf@5.8.0", "native"]), [Case("tiny-e2b", TEXT)], tmp_path, ("P6",))
    (finding,) = result.findings
    assert (finding.stage, finding.suspect) == ("hidden", "hf@5.5.0")
    assert finding.measured is not None
    assert finding.measured > 1


@pytest.mark.parametrize(("release", "known"), [("5.5.0", False), ("5.8.0", False), ("5.10.4", True), ("5.17.0", True)])
def test_the_12b_appears_in_5_10(release: str, known: bool, tmp_path: Path) -> None:
    """Releases before have no class for it and say so; from 5.10 on it loads and runs."""
    name = f"hf@{release}"
    results = run(resolve([name]), [Case("tiny-12b", parts) for parts in (IMAGE, AUDIO, VIDEO)], tmp_path, ("P1", "P8"))
    found = list(outcomes(results, name))
    if known:
        assert found == [("ok", "")] * 3
    else:
        assert {outcome for outcome, _ in found} == {"unavailable"}
        assert "model type `gemma4_unified` but Transformers does not recognize this architecture" in found[0][1]


def test_the_pil_image_processor_makes_other_pixels(tmp_path: Path) -> None:
    """It runs, its pixels differ from torchvision's, and P7 says so; the text beside is the same."""
    text, image = run(resolve(["hf-pil", "hf"]), [Case("tiny-e2b", TEXT), Case("tiny-e2b", IMAGE)], tmp_path)
    assert list(outcomes([text, image], "hf-pil")) == [("ok", "")] * 2
    assert signatures([text]) == set()
    assert any(signature.startswith("P7/pixels") for signature in signatures([image]))


def test_eager_attention_inverts_the_audio_mask(tmp_path: Path) -> None:
    """It runs; rows of sound differ from those with sdpa, those of an image do not."""
    image, audio = run(resolve(["hf-eager", "hf"]), [Case("tiny-e2b", IMAGE), Case("tiny-e2b", AUDIO)], tmp_path)
    assert list(outcomes([image, audio], "hf-eager")) == [("ok", "")] * 2
    assert signatures([image]) == set()
    assert any(signature.startswith("P11/audio_features") for signature in signatures([audio]))


@pytest.mark.parametrize(("release", "clamps"), [("0.20.0", False), ("0.21.0", True)])
def test_vllm_0_20_makes_more_placeholders_than_rows(release: str, clamps: bool, tmp_path: Path) -> None:
    """vLLM #40796, live: 900 x 3 px at budget 280 dies in the engine; the case after it runs. 0.21.0 clamps."""
    name = f"vllm@{release}"
    found = list(outcomes(run(resolve([name]), [Case("tiny-e2b", EXTREME), Case("tiny-e2b", IMAGE)], tmp_path), name))
    assert found[1] == ("ok", "")
    if clamps:
        assert found[0] == ("ok", "")
    else:
        assert found[0][0] == "crashed"
        assert "multimodal tokens to 289 placeholders" in found[0][1]


def test_vllm_0_19_norms_after_it_projects(tmp_path: Path) -> None:
    """Same pixels, other feature rows: its projector has the norm behind the projection; 0.20.0 has it before."""
    (result,) = run(resolve(["vllm@0.19.0", "vllm@0.20.0", "native"]), [Case("tiny-e2b", IMAGE)], tmp_path, ("P7",))
    assert {finding.stage for finding in result.findings} == {"mm_features", "mm_features.first"}
    assert {finding.suspect for finding in result.findings} == {"vllm@0.19.0"}


def test_vllm_0_22_gets_through_a_12b_by_fours_and_wrongly(tmp_path: Path) -> None:
    """Hub thread 18: its Transformers backend takes the keys of each layer for those of a sliding one.

    A full layer of the 12B has a quarter of the numbers, so the first forward of a prompt dies unless the tokens are a
    multiple of four; of these every four are taken for one, and the distribution is off by nats.
    """
    words = "The quick brown fox jumps over the lazy dog and tells all that it has seen."
    cases = [Case("tiny-12b", (Part(text=words[:count]),)) for count in range(12, 75, 6)]
    results = run(resolve(["vllm@0.22.1", "native"]), cases, tmp_path, ("P6",))
    tokens = [len(side.arrays["prompt_ids"]) for r in results for side in r.sides if side.name == "native"]
    assert {count % 4 for count in tokens} >= {0, 2, 3}
    for count, result, (outcome, message) in zip(tokens, results, outcomes(results, "vllm@0.22.1"), strict=True):
        if count % 4:
            assert outcome == "crashed"
            assert f"shape '[-1, 8, 32]' is invalid for input of size {64 * count}" in message
        else:
            assert outcome == "ok"
            assert result.arrays["kl/vllm@0.22.1/native"].max() > 0.1


def test_vllm_0_22_counts_an_image_of_a_12b_by_the_budget_of_the_engine(tmp_path: Path) -> None:
    """The engine was started with 1,120: a prompt at 280 is processed at 280 and cut by the count at 1,120."""
    name = "vllm@0.22.1"
    ((outcome, message),) = outcomes(run(resolve([name]), [Case("tiny-12b", IMAGE, 280)], tmp_path, ("P1",)), name)
    assert outcome == "crashed"
    assert "sum exactly to 255" in message
    assert "got split_sizes=[1085]" in message


@pytest.mark.parametrize("model", ["tiny-e2b", "tiny-31b", "tiny-12b"])
def test_vllm_on_transformers_code_does_not_start(model: str, tmp_path: Path) -> None:
    """vLLM 0.32 asks the audio config for a length that it has not; the outcome says so, for each variant."""
    results = run(resolve(["vllm-transformers"]), [Case(model, TEXT)], tmp_path, ("P1", "P8"))
    ((outcome, message),) = outcomes(results, "vllm-transformers")
    assert outcome == "unavailable"
    assert "Unable to get max input length from" in message
    assert [finding.stage for finding in results[0].findings] == ["load"]
