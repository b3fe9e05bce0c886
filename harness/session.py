"""What `harness run` does: plan, generate, run, keep. Layer 3.

Everything that can be refused is refused before anything is written: subjects, models, deviations, the store.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from harness import calibration, comparisons
from harness.builds import Say, ready
from harness.campaign import Campaign, Result
from harness.checkpoint import Checkpoint
from harness.deviations import DIFFERING, Deviation, Judged, judged_in, load_deviations
from harness.environments import resolve
from harness.errors import UserError
from harness.fleet import Fleet, Options, fleet
from harness.media import thumbnail
from harness.reductions import size
from harness.schema import SCHEMA_VERSION, Capsule, Case, Continuation, Finding, Property
from harness.store import RunStore, kept, locked, read_capsule, validated, write_json
from harness.strategies import aims, shares, stratified
from harness.zoo import FEATURE_NAMES, NAMES, ensure

ZOO = Path(".harness/zoo")
DEFAULT_SUBJECTS = ("hf", "vllm", "native")
THUMBNAIL_PX = 512
_SEED_STEP = 7_919
"""Between models; a prime, so that runs with neighbouring seeds share no inputs."""

_SHORT = 40
"""Fewer cases than this of a model make a short run."""

PROFILES = {"smoke": 75, "ci": 250, "nightly": 3_840}
"""Profile -> cases in all, spread evenly over the models, and within each over the properties that it is asked for."""

CALIBRATED = {"smoke": 0, "ci": 5, "nightly": 20}
"""Profile -> cases a model that measure noise before its own cases run; each is given to the engines four times."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run, as the user gave it or as the defaults are."""

    models: tuple[str, ...] = NAMES
    subjects: tuple[str, ...] = DEFAULT_SUBJECTS
    cases: int = PROFILES["smoke"]
    seed: int = 0
    properties: tuple[Property, ...] = Options.properties
    dtype: str = "float32"
    device: str = "cpu"
    timeout_s: float = Options.timeout_s
    deviations: bool = True
    calibrate: int = 0
    continuation_tokens: int = 0
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    @property
    def calibrates(self) -> bool:
        """Whether noise is measured: some is asked for, and a property is that is compared with it."""
        return bool(self.calibrate and {"P6", "P7"} & {*self.properties})

    @property
    def options(self) -> Options:
        """How subjects are run."""
        return Options(self.dtype, self.device, self.timeout_s, self.properties)


def locate(model: str) -> Path:
    """The checkpoint directory of a model: a zoo name, built at first use, or a path.

    Raises:
        UserError: neither.
    """
    if model in (*NAMES, *FEATURE_NAMES):
        return ensure(model, ZOO)
    directory = Path(model)
    if not directory.is_dir():
        known = ", ".join((*NAMES, *FEATURE_NAMES))
        raise UserError(f"{model} is neither a zoo model nor a directory; zoo models: {known}")
    return Checkpoint.open(directory).path


def require_available(names: Sequence[str], say: Say = lambda _: None) -> None:
    """Refuse subjects that were asked for by name and cannot run here. Environments that are not there are built.

    Raises:
        EngineUnavailable: with the reason.
    """
    for subject in resolve(names):
        ready(subject, say)


def generated(plan: Plan) -> list[Case]:
    """The plan's cases, grouped by model; each model gets inputs of its own, so that more of them are tried.

    Models that no property of the plan applies to get none, and the others their part. A reduced type needs a load of
    its own, so a short run asks P12 of one model in three.
    """
    able = {model: 1 for model in plan.models if aims(model, plan.properties)}
    drawn: list[Case] = []
    for k, (model, share) in enumerate(shares(plan.cases, able).items()):
        spared = share < _SHORT and (k + plan.seed) % 3
        asked = [prop for prop in plan.properties if not (spared and prop == "P12")] or plan.properties
        drawn += stratified(model, asked, count=share, seed=plan.seed + _SEED_STEP * k)
    if plan.continuation_tokens:
        # Greedily and sampled in turns; whatever the seed, the same prompts go on in the same way.
        seeds = [None if k % 2 == 0 else plan.seed + k for k in range(len(drawn))]
        return [
            replace(case, continuation=Continuation(plan.continuation_tokens, seed))
            for case, seed in zip(drawn, seeds, strict=True)
        ]
    return drawn


@dataclass(frozen=True)
class Progress:
    """What a run tells whoever watches: a stage, or a finished case."""

    stage: Literal["generating", "starting", "case"]
    done: int
    total: int
    text: str = ""


Watch = Callable[[Progress], None]


def check(plan: Plan) -> None:
    """Refuse what cannot be run before anything is drawn or written.

    Raises:
        UserError: an unknown subject, no model or one that is no checkpoint, only properties that apply to none of the
            models, a deviation file that is none.
    """
    resolve(plan.subjects)
    if not plan.models:
        raise UserError(f"no model given; known: {', '.join(NAMES)}, or the path of a checkpoint")
    for model in plan.models:
        locate(model)
    if not any(aims(model, plan.properties) for model in plan.models):
        raise UserError(f"none of {', '.join(plan.properties)} applies to {', '.join(plan.models)}: ask for others")
    load_deviations()


def start(plan: Plan, store: Path, watch: Watch) -> RunStore:
    """Draw a checked plan's cases and open a run for them."""
    watch(Progress("generating", 0, plan.cases))
    return RunStore.create(store, {"plan": plan, "environment": environment()}, generated(plan))


def carry_out(run: RunStore, plan: Plan, watch: Watch) -> None:
    """Run every case that has no rows yet, keeping each result; Ctrl-C keeps what is finished."""
    with locked(run):
        run.discard_unfinished_parts()
        beside = calibration.beside() if plan.calibrates else []
        with fleet(resolve(plan.subjects), plan.options, run.path / "logs", beside) as workers:
            run_on(workers, run, plan, watch)


def run_on(workers: Fleet, run: RunStore, plan: Plan, watch: Watch) -> None:
    """Measure noise and run what remains on workers that are there, then say what all cases together come to."""
    finished, cases, calibrations = run.finished(), run.cases(), _calibrations(run, plan)
    remaining = [case for case in cases if case.id not in finished]
    calibrating = {case.id for drawn in calibrations.values() for case in drawn}
    number, total = len(finished), len(cases)
    watch(Progress("starting", number, total, ", ".join(plan.subjects)))
    campaign = Campaign(workers, locate, load_deviations() if plan.deviations else [])
    calibrator = calibration.Calibrator(campaign, run.rows("noise"))
    keeper = Keeper(run, plan, workers)
    try:
        for result in campaign.run(calibration.before(remaining, calibrations), calibrating):
            if result.case.id in calibrating:
                if rows := calibrator.take(result):
                    with kept(run):
                        run.append({"noise": rows})
                continue
            with kept(run):
                keeper.keep(result)
            number += 1
            watch(Progress("case", number, total, result.case.model))
    finally:
        with kept(run):
            _close_header(run, workers, campaign)
    if plan.calibrates and run.frame("comparisons").empty:
        with kept(run):
            run.append({"comparisons": comparisons.of_run(run, plan.dtype, plan.device)})


def _calibrations(run: RunStore, plan: Plan) -> dict[str, list[Case]]:
    """Model -> the cases by which its noise is measured, without those that were measured already."""
    if not plan.calibrates:
        return {}
    cases, measured = run.cases(), set(run.frame("noise")["case_id"])
    known, models = {case.id for case in cases}, dict.fromkeys(case.model for case in cases)
    drawn = {
        model: calibration.drawn(model, plan.calibrate, plan.seed + _SEED_STEP * k, known)
        for k, model in enumerate(models)
    }
    return {model: [case for case in own if calibration.key(case) not in measured] for model, own in drawn.items()}


def _close_header(run: RunStore, workers: Fleet, campaign: Campaign) -> None:
    header, subjects = run.header(), {}
    for name, subject in workers.subjects.items():
        status, reason = workers.status(name)
        before = header.get("subjects", {}).get(name, {})
        if status == "ok" and before.get("status", "ok") != "ok":  # It is so of cases before a --resume.
            status, reason = before["status"], before["reason"]
        versions = workers.versions.get(name) or before.get("version", {})
        subjects[name] = {"engine": subject.engine, "version": versions, "status": status, "reason": reason}
    if campaign.timing.engine_s or "timing" not in header:
        header |= {"timing": campaign.timing.as_dict(), "subjects": subjects}
    run.write_header(header)


def capsule_of(finding: Finding, case: Case, workers: Fleet) -> Capsule:
    """What replays a finding anywhere: parameters, and the versions that it was seen with."""
    return Capsule(SCHEMA_VERSION, finding, case, workers.described, workers.options.dtype, workers.options.device)


class Keeper:
    """Writes results to a run: rows at once, and for each finding its smallest example as a capsule."""

    def __init__(self, run: RunStore, plan: Plan, workers: Fleet) -> None:
        """Keep results of these workers in this run."""
        self.run, self.plan, self.workers = run, plan, workers
        capsules = (run.path / "capsules").glob("*.json")
        self._smallest = {path.stem: size(read_capsule(path).case) for path in capsules}

    def keep(self, result: Result) -> None:
        """Store one result. Examples first: a row must never point at a capsule that is not there."""
        for finding in result.findings:
            found = size(result.case)
            if finding.id not in self._smallest or found < self._smallest[finding.id]:
                self._smallest[finding.id] = found
                self._keep_example(finding, result)
        self.run.append(result.rows)

    def _keep_example(self, finding: Finding, result: Result) -> None:
        capsule = capsule_of(finding, result.case, self.workers)
        self.run.write_arrays(result.case.id, result.arrays)
        for index, image in enumerate(result.case.images):
            thumbnail(image, THUMBNAIL_PX).save(self.run.path / "media" / f"{result.case.id}-{index}.png")
        write_json(self.run.path / "capsules" / f"{finding.id}.json", capsule)


def environment() -> dict[str, Any]:
    """What the parent process ran on."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hypothesis": metadata.version("hypothesis"),
        "harness": metadata.version("gemma4-conformance"),
        "revision": revision.stdout.strip() or "not a git checkout",
    }


def plan_of(run: RunStore) -> Plan:
    """The plan that a run was started with."""
    return validated(Plan, json.dumps(run.header()["plan"]), f"the plan of run {run.run_id}")


def stale_deviations(run: RunStore, plan: Plan) -> list[str]:
    """Deviations that should have explained a finding of this run and explained none."""
    if not plan.deviations:
        return []
    explained = set(run.frame("findings", ["deviation"])["deviation"])
    asked = {*plan.properties}
    return [
        deviation.name
        for deviation in _tried(run, plan, agreeing=True)
        if deviation.always
        and deviation.name not in explained
        and {signature.split("/")[0] for signature in deviation.signatures} & asked
    ]


def unmet_deviations(run: RunStore, plan: Plan) -> list[str]:
    """Deviations that no case of this run could have shown."""
    if not plan.deviations:
        return []
    met = {deviation.name for deviation in _tried(run, plan)}
    return [deviation.name for deviation in load_deviations() if deviation.name not in met]


def _tried(run: RunStore, plan: Plan, *, agreeing: bool = False) -> list[Deviation]:
    """Deviations with a case of this run that was judged where they would have shown; if so asked, and agreed there.

    Where something differs that another known cause explains as well, nobody knows that this one went away.
    """
    ran = {n: {"engine": s["engine"], **s["version"]} for n, s in run.header().get("subjects", {}).items()}
    columns = ["case_id", "property", "stage", "left", "right", "verdict"]
    by_case = run.frame("verdicts", columns).groupby("case_id")
    rows = {str(case_id): cast("Any", found.to_dict("records")) for case_id, found in by_case}
    judged = {case_id: judged_in(found) for case_id, found in rows.items()}
    differing = {case_id: judged_in(found, DIFFERING) for case_id, found in rows.items()}
    cases = [case for case in run.cases() if case.id in judged]
    features = {model: Checkpoint.open(locate(model)).features for model in {case.model for case in cases}}

    def met(deviation: Deviation, case: Case, by: dict[str, frozenset[Judged]]) -> bool:
        return deviation.tried(case, by[case.id], ran, plan.device, features[case.model])

    return [
        deviation
        for deviation in load_deviations()
        if any(met(deviation, case, judged) and not (agreeing and met(deviation, case, differing)) for case in cases)
    ]
