"""How far NeMo Automodel's model is from transformers' with its vision-aware mask and without: KL and gen_kl.

    uv run python -m benchmarks.gen_kl [--release 0.7.0] [--cases 20] [--seed 0]

Prompts are generated; those without an image and those with one are told apart, and the roles of positions within the
latter.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.time_machine import pinned_transformers
from harness.campaign import Campaign, Result
from harness.comparators.estimators import gen_kl_error, policy_kl_error
from harness.environments import Subject, resolve
from harness.fleet import Options, fleet
from harness.schema import ROLES, Case
from harness.session import locate
from harness.strategies import generate
from harness.strategies.cases import cases

MODEL = "tiny-26b-a4b"

Row = tuple[float, ...]
"""gen_kl both ways, mean |difference| of log-probabilities, mean and largest KL of one prompt."""


def subjects(release: str) -> list[Subject]:
    """The transformers that a release of Automodel pins, and that release as it is and with the fault planted."""
    own, fault = resolve([f"automodel@{release}", f"automodel-planted-causal@{release}"])
    return [*resolve([f"hf@{pinned_transformers(own)}"]), own, fault]


def prompts(count: int, seed: int) -> list[Case]:
    """As many generated prompts without a medium as with images."""
    text = cases(models=[MODEL], properties=["P6"]).filter(lambda case: not case.images)
    images = cases(models=[MODEL], properties=["P6"], min_images=1).filter(lambda c: not (c.audios or c.videos))
    drawn = [generate(strategy, count=count, seed=seed) for strategy in (text, images)]
    return [case for group in drawn for case in group if not (case.audios or case.videos)]


def measured(results: Iterator[Result], reference: str, *names: str) -> dict[tuple[str, str], list[Row]]:
    """(kind of prompt, subject) -> a row a prompt, for each subject beside the first."""
    rows: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for result in results:
        logprobs = {side.name: side.arrays["logprobs"] for side in result.sides if "logprobs" in side.arrays}
        kind = "with images" if result.case.images else "text only"
        for name in names:
            kl = result.arrays.get(f"kl/{reference}/{name}")
            if kl is None:
                continue
            gen, train = logprobs[reference], logprobs[name]
            gap = np.abs(gen.astype(np.float64) - train).mean() if len(gen) else 0.0
            numbers = gen_kl_error(gen, train), policy_kl_error(gen, train), float(gap)
            rows[kind, name].append((*numbers, float(kl.mean()), float(kl.max())))
            for role in np.unique(result.arrays["roles"]) if result.case.images else ():
                of_role = kl[result.arrays["roles"] == role]
                rows[f"  {ROLES[role]}", name].append((*[np.nan] * 3, float(of_role.mean()), float(of_role.max())))
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--release", default="0.7.0", help="of nemo-automodel")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chosen = subjects(given.release)
    with tempfile.TemporaryDirectory() as logs, fleet(chosen, Options(), Path(logs)) as workers:
        results = Campaign(workers, locate).run(prompts(given.cases, given.seed))
        rows = measured(results, *(subject.name for subject in chosen))
        print(workers.versions)
    print("| prompts | subject | n | gen_kl_error | policy_kl_error | mean abs | mean KL, nats | largest KL, nats |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (kind, name), numbers in rows.items():
        *means, largest = [np.array(column) for column in zip(*numbers, strict=True)]
        words = " | ".join(f"{column.mean():.3g}" for column in means)
        print(f"| {kind} | {name} | {len(numbers)} | {words} | {largest.max():.3g} |")


if __name__ == "__main__":
    main()
