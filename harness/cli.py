"""The `harness` command. Layer 4: reads options, shows progress, prints results; decides nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness import doctor, session, show
from harness import sweep as sweeping
from harness.campaign import Options
from harness.deviations import load_deviations
from harness.environments import resolve
from harness.errors import EngineUnavailable, UserError
from harness.schema import PROPERTIES, Case, Finding, Property
from harness.spec import SOFT_TOKEN_BUDGETS
from harness.store import DEFAULT_STORE, RunStore, find_case, plain, read_capsule, write_json
from harness.zoo import FEATURE_NAMES, NAMES, describe
from reports import frames as reports_frames
from reports import site

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the inputs on which implementations of Gemma 4 disagree: who is wrong, where, and by how much.",
    epilog="Exit status: 0 nothing unexpected; 1 unexpected findings; 2 wrong use; 3 a subject cannot run here.",
)
zoo_app = typer.Typer(
    no_args_is_help=True, help="Tiny random checkpoints: the five published variants, and models with one feature each."
)
app.add_typer(zoo_app, name="zoo")

StoreOption = Annotated[Path, typer.Option(help="Where runs are kept.")]
DTYPES = ("float32", "bfloat16", "float16")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{option} {value}: must be one of {', '.join(allowed)}")
    return value


def _properties(text: str) -> tuple[Property, ...]:
    if text == "all":
        return tuple(PROPERTIES)
    for name in _split(text):
        _one_of("--properties", name, tuple(PROPERTIES))
    chosen = tuple(prop for prop in PROPERTIES if prop in _split(text))
    if not chosen:
        raise UserError(f"--properties names none; known: {', '.join(PROPERTIES)}")
    return chosen


def _device(name: str) -> str:
    _one_of("--device", name, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


@contextmanager
def _watched(console: Console) -> Iterator[session.Watch]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("drawing cases", total=None)

        def watch(step: session.Progress) -> None:
            words = {"generating": "drawing cases", "starting": f"starting {step.text}", "case": step.text}
            bar.update(task, description=words[step.stage], completed=step.done, total=step.total)

        yield watch


@app.command()
def run(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help=f"How many cases: {session.PROFILES}.")] = "smoke",
    subjects: Annotated[str, typer.Option(help="Comma-separated; the first is the reference of KL.")] = "",
    models: Annotated[str, typer.Option(help="all, zoo names, or checkpoint directories; comma-separated.")] = "all",
    cases: Annotated[int | None, typer.Option(min=1, help="Cases in all, spread over the models.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other cases.")] = 0,
    properties: Annotated[str, typer.Option(help="all, or P1 to P12, comma-separated.")] = "all",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "float32",
    store: StoreOption = DEFAULT_STORE,
    json_file: Annotated[
        str, typer.Option("--json", help="Write the result here; - is stdout and silences the rest.")
    ] = "",
    deviations: Annotated[bool, typer.Option(help="Expect the findings in cases/deviations.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also when a deviation no longer holds.")] = False,
    resume: Annotated[str, typer.Option(metavar="RUN_ID", help="Finish a run that was stopped.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds one subject may take for one case.")] = 120.0,
) -> None:
    """Run generated cases through the subjects, compare, report.

    Without options: 75 cases, five models, three subjects.
    """
    console = Console(stderr=json_file == "-")
    if resume:
        _refuse_with_resume(context)
        kept = RunStore.open(store, resume)
        plan = session.plan_of(kept)
    else:
        plan = session.Plan(
            models=NAMES if models == "all" else _split(models),
            subjects=_split(subjects) or session.DEFAULT_SUBJECTS,
            cases=cases or session.PROFILES[_one_of("--profile", profile, tuple(session.PROFILES))],
            seed=seed,
            properties=_properties(properties),
            dtype=_one_of("--dtype", dtype, DTYPES),
            device=_device(device),
            timeout_s=timeout_s,
            deviations=deviations,
        )
        session.check(plan)
        if subjects:
            session.require_available(plan.subjects)
        with _watched(console) as watch:
            kept = session.start(plan, store, watch)
    _carry_out(kept, plan, console)
    frames = reports_frames.load_run(kept)
    document = reports_frames.document(frames)
    page = site.build(frames, kept.path / "site")
    stale = session.stale_deviations(kept, plan)
    show.run(console, frames, document, stale, page)
    _write_document(json_file, document)
    raise typer.Exit(_status(document, strict and bool(stale), named=bool(subjects)))


def _status(document: dict[str, Any], stale: bool, *, named: bool) -> int:
    """The exit status of a run: findings first, then subjects that were asked for by name and did not run."""
    if stale or any(finding["unexpected_cases"] for finding in document["findings"]):
        return 1
    absent = any(subject["status"] != "ok" for subject in document["subjects"].values())
    return EngineUnavailable.exit_status if named and absent else 0


def _refuse_with_resume(context: typer.Context) -> None:
    """A run that goes on has its plan; options that would change it are refused, not ignored."""
    free = {"resume", "store", "json_file", "strict"}
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if changed := [f"--{name.replace('_', '-')}" for name in given if name not in free]:
        raise UserError(f"--resume goes on with the run's own plan; leave out {', '.join(changed)}")


def _carry_out(kept: RunStore, plan: session.Plan, console: Console) -> None:
    try:
        with _watched(console) as watch:
            session.carry_out(kept, plan, watch)
    except KeyboardInterrupt:
        console.print(
            f"stopped; nothing finished is lost: harness run --store {kept.path.parent} --resume {kept.run_id}"
        )
        raise typer.Exit(130) from None


def _write_document(target: str, document: dict[str, Any]) -> None:
    if target == "-":
        print(json.dumps(plain(document), indent=1))
    elif target:
        _writable(lambda: write_json(Path(target), document), target)


def _writable(action: Callable[[], None], target: str) -> None:
    try:
        action()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def _wanted(name: str, store: Path) -> tuple[str, Case, Finding | None, Options | None]:
    """A capsule's path, or the id of a case in the store."""
    if Path(name).suffix == ".json" or Path(name).exists():
        capsule = read_capsule(Path(name))
        return name, capsule.case, capsule.finding, Options(capsule.dtype, capsule.device)
    return name, find_case(store, name), None, None


@app.command()
def replay(
    targets: Annotated[list[str], typer.Argument(metavar="CAPSULE|CASE_ID ...")],
    subjects: Annotated[str, typer.Option(help="Comma-separated; default: hf, vllm and native.")] = "",
    store: StoreOption = DEFAULT_STORE,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Run findings again: FIXED, FAILED or NOT COMPARABLE for each capsule. Exit status 1 if one is not fixed."""
    wanted = [_wanted(target, store) for target in targets]
    options = next((entry[3] for entry in wanted if entry[3]), None) or Options()
    if any(entry[3] not in (None, options) for entry in wanted):
        raise UserError("these capsules were measured with different dtypes or devices; replay them apart")
    names = _split(subjects) or session.DEFAULT_SUBJECTS
    session.require_available(names)
    console = Console(stderr=json_output)
    with console.status("running engines", spinner="dots"):
        replayed = list(session.replay([entry[:3] for entry in wanted], names, options))
    show.replayed(console, replayed)
    if json_output:
        print(json.dumps(plain(replayed), indent=1))
    raise typer.Exit(1 if any(entry.failed for entry in replayed) else 0)


@app.command()
def report(
    store: StoreOption = DEFAULT_STORE,
    run_id: Annotated[str, typer.Option("--run", help="A run's id; default: the newest.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the site goes; default: into the run.")] = None,
) -> None:
    """Write the static page of a run: no server, opens from a file, works offline."""
    frames = reports_frames.load(store, run_id or None)
    target = out or frames.run.path / "site"
    pages: list[Path] = []
    _writable(lambda: pages.append(site.build(frames, target)), str(target))
    print(pages[0])


@app.command()
def sweep(
    budget: Annotated[str, typer.Option(help="all, or budgets; comma-separated.")] = "all",
    max_side: Annotated[int, typer.Option(min=1, max=20_000, help="Largest width and height, in px.")] = 1_000,
    samples: Annotated[int, typer.Option(min=1, help="Recordings shorter than this, at 16 kHz.")] = 500_000,
    subjects: Annotated[str, typer.Option(help="Comma-separated.")] = "hf,vllm,native",
    model: Annotated[str, typer.Option(help="A zoo name or a checkpoint directory.")] = "tiny-e2b",
    out: Annotated[Path, typer.Option(help="Where the disagreements are kept, as Parquet.")] = Path(".harness/sweeps"),
    json_file: Annotated[
        str, typer.Option("--json", help="Write the result here; - is stdout and silences the rest.")
    ] = "",
) -> None:
    """Ask each engine's own counting function for every size: arithmetic only, no engine started.

    Exit status 1 if two subjects part where no deviation says so.
    """
    console = Console(stderr=json_file == "-")
    budgets = SOFT_TOKEN_BUDGETS if budget == "all" else [_budget(name) for name in _split(budget)]
    session.require_available(_split(subjects))
    with _counting(console) as watch:
        swept = sweeping.sweep(resolve(_split(subjects)), session.locate(model), budgets, max_side, samples, watch)
    deviations = sweeping.explained(swept, model)
    _writable(lambda: sweeping.keep(swept, deviations, out), str(out))
    show.sweep(console, swept, deviations, out)
    _write_document(json_file, sweeping.document(swept, deviations))
    raise typer.Exit(1 if (deviations == "").any() or len(swept.audio) else 0)


def _budget(text: str) -> int:
    return int(_one_of("--budget", text, tuple(map(str, SOFT_TOKEN_BUDGETS))))


@contextmanager
def _counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of calls, a task for each subject."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def watch(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        yield watch


@app.command("doctor")
def doctor_command() -> None:
    """Say which subjects run here, and why the others do not. Starts every engine."""
    console = Console()
    with console.status("starting engines", spinner="dots"):
        examined = doctor.examine()
    show.subjects(console, examined)


@zoo_app.command("list")
def zoo_list() -> None:
    """Say what each tiny checkpoint is."""
    show.zoo(Console(), [describe(name) for name in (*NAMES, *FEATURE_NAMES)])


@zoo_app.command("build")
def zoo_build() -> None:
    """Build what is missing or of another recipe, and print where."""
    for name in (*NAMES, *FEATURE_NAMES):
        print(session.locate(name))


@zoo_app.command("verify")
def zoo_verify(
    models: Annotated[str, typer.Option(help="all, zoo names, or checkpoint directories; comma-separated.")] = "all",
    subjects: Annotated[str, typer.Option(help="Comma-separated.")] = "hf,vllm,native",
) -> None:
    """Load each checkpoint in each engine and compare every tensor by content. Exit status 1 if one is wrong."""
    console = Console()
    session.require_available(_split(subjects))
    with console.status("loading checkpoints", spinner="dots"):
        verified = doctor.verify(NAMES if models == "all" else _split(models), _split(subjects))
    show.verified(console, verified)
    raise typer.Exit(0 if all(entry.sound for entry in verified) else 1)


@app.command("deviations")
def deviations_command() -> None:
    """List the known deviations: what is expected to differ, why, and where it is reported."""
    show.deviations(Console(), load_deviations())


def main() -> None:
    """Entry point: a `UserError` is one clear line and its exit status."""
    try:
        app()
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
