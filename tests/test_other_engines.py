"""SGLang's processor and NeMo Automodel's model in environments of their own, on generated prompts.

uv run pytest -m releases tests/test_other_engines.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.campaign import Campaign, Result
from harness.comparators.estimators import gen_kl_error, policy_kl_error
from harness.environments import Subject, releases, resolve
from harness.fleet import Options, fleet
from harness.render import written_out
from harness.schema import Case, ImageSpec, Part, Probe, Property
from harness.session import locate
from harness.spec import IMAGE
from harness.strategies import generate
from harness.strategies.cases import cases

MISMATCH = "Mismatch: More 'IMAGE' tokens found than corresponding data provided."
REFUSED = "ValueError: The total number of <|image|> tokens in the prompts should be the same as the number of images"
EXPANDED = {
    "0.5.11": ("crashed", MISMATCH),
    "0.5.13.post1": ("crashed", MISMATCH),
    "0.5.14": ("crashed", "RuntimeError: coroutine raised StopIteration"),
    "0.5.16": ("rejected", REFUSED),
    "0.5.23": ("rejected", REFUSED),
}
"""What a release of SGLang does with an expanded prompt beside raw images: outcome, and how its signature starts."""

UNIFIED = {
    "0.5.11": "this release of SGLang has no processor for Gemma4UnifiedForConditionalGeneration",
    "0.5.13.post1": "Transformers does not recognize this architecture",
    "0.5.14": "Transformers does not recognize this architecture",
    "0.5.16": "",
    "0.5.23": "",
}
"""Why a release cannot load the 12B layout; empty where it can."""

ROUNDS = "0.4.0"
"""The release of Automodel whose vision tower turns by rounded frequencies."""

pytestmark = [pytest.mark.releases, pytest.mark.engines]


def carried_out(
    subjects: Sequence[Subject], drawn: Sequence[Case], logs: Path, properties: tuple[Property, ...]
) -> list[Result]:
    with fleet(subjects, Options(properties=properties), logs) as workers:
        return list(Campaign(workers, locate).run(drawn))


def with_images(model: str, count: int, *properties: Property) -> list[Case]:
    """Generated prompts with images and no other medium."""
    drawn = generate(cases(models=[model], properties=properties, min_images=1), count=count, seed=0)
    return [case for case in drawn if not (case.audios or case.videos)]


def markers(case: Case) -> int:
    """Image placeholders in the text of a case: one for a bare image, one a soft token for an expanded one."""
    text = [written_out(p, case.max_soft_tokens) if p.expanded else IMAGE for p in case.parts if p.image]
    return sum(entry.count(IMAGE) for entry in text)


def pinned(automodel: Subject) -> Subject:
    """Transformers at the release that a release of Automodel pins."""
    assert automodel.recipe is not None
    (pin,) = (line for line in automodel.recipe.requirements if line.startswith("transformers=="))
    (subject,) = resolve([pin.replace("transformers==", "hf@")])
    return subject


@pytest.mark.parametrize("release", releases()["sglang"])
def test_sglang_takes_bare_prompts_as_transformers_does_and_no_expanded_one(release: str, tmp_path: Path) -> None:
    """Bare: ids, counts, pixels and positions are those of transformers. More placeholders than images: it fails."""
    drawn = [case for case in with_images("tiny-e2b", 50, "P1") if case.probe is None]
    results = carried_out(resolve(["hf", f"sglang@{release}"]), drawn, tmp_path, ("P1", "P2", "P7"))
    bare = [r for r in results if markers(r.case) == len(r.case.images)]
    expanded = [r for r in results if markers(r.case) > len(r.case.images)]
    assert min(len(bare), len(expanded)) >= 4
    for result in bare:
        ran = {o.subject: o.outcome for o in result.observations}
        said = {v.verdict for v in result.verdicts if v.left != "reference" and "mm_" not in v.stage}
        if ran["hf"] == "ok":
            assert ran[f"sglang@{release}"] == "ok"
            assert said == {"agree"}
    outcome, words = EXPANDED[release]
    for result in expanded:
        (seen,) = (o for o in result.observations if o.subject == f"sglang@{release}")
        assert (seen.outcome, seen.signature[: len(words)]) == (outcome, words), result.case


@pytest.mark.parametrize("release", releases()["sglang"])
def test_sglang_by_probe(release: str, tmp_path: Path) -> None:
    """Ids and a repetition give the same prompt; the expanded form is a finding; what needs a model is unavailable."""
    parts = (Part(text="a"), Part(image=ImageSpec(154, 220)), Part(text="z"))
    kinds = ("ids", "repeat", "expanded", "visibility")
    drawn = [Case("tiny-e2b", parts, 70, probe=Probe(kind)) for kind in kinds]  # type: ignore[arg-type]
    results = carried_out(resolve([f"sglang@{release}"]), drawn, tmp_path, ("P3", "P9"))
    verdicts = [{v.stage: v.verdict for v in result.verdicts} for result in results]
    assert verdicts[:2] == [{"ids": "not comparable"}, {"repeat": "not comparable"}]
    assert verdicts[2:] == [{"outcome.expanded": "differ"}, {"outcome.visibility": "not comparable"}]


@pytest.mark.parametrize("release", releases()["sglang"])
def test_sglang_and_the_12b(release: str, tmp_path: Path) -> None:
    """A release that has no way to load the 12B layout says so; one that has counts as transformers does."""
    drawn = [Case("tiny-12b", (Part(text="a"), Part(image=ImageSpec(900, 3)), Part(text="z")), 140)]
    (result,) = carried_out(resolve(["hf", f"sglang@{release}"]), drawn, tmp_path, ("P1", "P2", "P7"))
    (seen,) = (o for o in result.observations if o.subject == f"sglang@{release}")
    assert (seen.outcome == "ok") == (not UNIFIED[release])
    assert UNIFIED[release] in seen.message
    assert not any(v.verdict == "differ" for v in result.verdicts if v.left != "reference")


@pytest.mark.parametrize("release", releases()["automodel"])
def test_automodel_follows_transformers_until_its_mask_is_taken(release: str, tmp_path: Path) -> None:
    """Text: noise, planted fault or not. Images: noise, and nats with the fault planted; gen_kl shows it both ways.

    The reference is transformers at the release that Automodel pins: its mask rule changed between releases. 0.4.0
    rounds the frequencies of the vision tower's rotary embedding to bfloat16, so its images are off without a fault.
    """
    text = cases(models=["tiny-26b-a4b"], properties=["P6"]).filter(lambda case: not case.parts[0].medium)
    drawn = [case for case in generate(text, count=12, seed=0) if not (case.images or case.audios or case.videos)]
    drawn += with_images("tiny-26b-a4b", 10, "P6")
    sound, planted = resolve([f"automodel@{release}", f"automodel-planted-causal@{release}"])
    hf = pinned(sound)
    results = carried_out([hf, sound, planted], drawn, tmp_path, ("P1", "P2", "P6", "P7"))
    compared = [result for result in results if f"kl/{hf.name}/{sound.name}" in result.arrays]
    assert min(sum(bool(r.case.images) == kind for r in compared) for kind in (False, True)) >= 4
    far = []
    for result in compared:
        as_it_is, fault = (result.arrays[f"kl/{hf.name}/{subject.name}"] for subject in (sound, planted))
        own = {side.name: side.arrays["logprobs"] for side in result.sides}
        estimates = [estimate(own[hf.name], own[planted.name]) for estimate in (gen_kl_error, policy_kl_error)]
        if release != ROUNDS or not result.case.images:
            assert as_it_is.max() < 1e-5
            assert gen_kl_error(own[hf.name], own[sound.name]) < 1e-5
        if result.case.images:
            far.append((fault.mean(), *estimates))
        else:
            assert max(fault.max(), *estimates) < 1e-5
    # An image of one soft token has nobody to see behind it, so it is their mean that is far off.
    assert (np.mean(far, axis=0) > 0.1).all()


@pytest.mark.parametrize("release", releases()["automodel"])
def test_the_planted_fault_is_one_of_visibility(release: str, tmp_path: Path) -> None:
    """A negated soft token is seen by its image as the rule says; with the fault planted those before it do not."""
    parts = (Part(text="a"), Part(image=ImageSpec(154, 220)), Part(text="some words behind it"))
    drawn = [Case("tiny-26b-a4b", parts, 70, probe=Probe("visibility", 20)), Case("tiny-31b", parts, 70)]
    sound, planted = resolve([f"automodel@{release}", f"automodel-planted-causal@{release}"])
    masked, dense = carried_out([sound, planted], drawn, tmp_path, ("P3", "P8"))
    judged = {(v.left, v.stage): v.verdict for v in masked.verdicts if v.property == "P3"}
    assert judged[sound.name, "visibility.too_little"] == judged[sound.name, "visibility.too_much"] == "agree"
    assert judged[planted.name, "visibility.too_little"] == "differ"
    assert {o.outcome for o in dense.observations} == {"unavailable"}
    assert {v.verdict for v in dense.verdicts} == {"not comparable"}
