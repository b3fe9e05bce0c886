"""The `harness` command. Layer 4: reads options, shows progress, prints results; decides nothing else."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from harness import builds, cli_capsule, cli_nightly, cli_sweep, doctor, session, show
from harness.deviations import load_deviations
from harness.errors import EngineUnavailable, HarnessBug, UserError, want
from harness.options import (
    StoreOption,
    available,
    carry_out,
    chosen_subjects,
    destination,
    listed,
    listed_models,
    one_of,
    seconds,
    split,
    watched,
    writable,
)
from harness.schema import PROPERTIES, Property
from harness.store import DEFAULT_STORE, RunStore, plain, write_json
from harness.zoo import DEFAULT_LAYERS, FEATURE_NAMES, LARGE, NAMES, describe, ensure, large_name
from reports import frames as reports_frames
from reports import nights, site
from reports.history import History

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the inputs on which implementations of Gemma 4 disagree: who is wrong, where, and by how much.",
    epilog="Exit status: 0 nothing unexpected; 1 unexpected findings; 2 wrong use; 3 a subject cannot run here; "
    "4 the harness or the machine failed (out of memory or disk, a bug of ours).",
)
zoo_app = typer.Typer(
    no_args_is_help=True, help="Tiny random checkpoints: the five published variants, and models with one feature each."
)
app.add_typer(zoo_app, name="zoo")

DTYPES = ("float32", "bfloat16", "float16")


def _properties(text: str) -> tuple[Property, ...]:
    if text == "all":
        return tuple(PROPERTIES)
    for name in split(text):
        one_of("--properties", name, tuple(PROPERTIES))
    chosen = tuple(prop for prop in PROPERTIES if prop in split(text))
    if not chosen:
        raise UserError(f"--properties names none; known: {', '.join(PROPERTIES)}")
    return chosen


def _device(name: str) -> str:
    one_of("--device", name, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


@app.command()
def run(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help=f"How many cases: {session.PROFILES}.")] = "smoke",
    subjects: Annotated[str, typer.Option(help="Comma-separated; the first is the reference of KL.")] = "",
    models: Annotated[
        str,
        typer.Option(
            help="variants (the five published ones), all (every zoo model), zoo names, or checkpoint directories; "
            "comma-separated. Default: variants, and all for the nightly profile."
        ),
    ] = "",
    cases: Annotated[int | None, typer.Option(min=1, help="Cases in all, spread over the models.")] = None,
    calibrate: Annotated[
        int | None,
        typer.Option(min=0, help=f"Cases a model that measure noise. Default, by profile: {session.CALIBRATED}."),
    ] = None,
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
    continue_by: Annotated[
        int, typer.Option(min=0, max=8, help="Tokens that each subject goes on with, for the others to score.")
    ] = 0,
) -> None:
    """Run generated cases through the subjects, compare, report.

    Without options: 75 cases, five models, three subjects.
    """
    console = Console(stderr=json_file == "-")
    destination("--json", json_file)
    one_of("--profile", profile, tuple(session.PROFILES))
    if resume:
        _refuse_with_resume(context)
        kept = RunStore.open(store, resume)
        plan = session.plan_of(kept)
    else:
        plan = session.Plan(
            models=listed_models("--models", models or ("all" if profile == "nightly" else "variants")),
            subjects=listed("--subjects", subjects) if subjects else session.DEFAULT_SUBJECTS,
            cases=cases or session.PROFILES[profile],
            calibrate=session.CALIBRATED[profile] if calibrate is None else calibrate,
            seed=seed,
            properties=_properties(properties),
            dtype=one_of("--dtype", dtype, DTYPES),
            device=_device(device),
            timeout_s=seconds("--timeout-s", timeout_s),
            deviations=deviations,
            continuation_tokens=continue_by,
        )
        session.check(plan)
        if subjects:
            available(plan.subjects, console)
        with watched(console) as watch:
            kept = session.start(plan, store, watch)
    carry_out(kept, plan, console)
    frames = reports_frames.load_run(kept)
    document = reports_frames.document(frames)
    page = site.build(frames, kept.path / "site")
    stale = session.stale_deviations(kept, plan)
    show.run(console, frames, document, stale, page)
    show.forecasts(console, kept.frame("forecasts"))
    show.unmet(console, session.unmet_deviations(kept, plan))
    _write_document(json_file, document)
    raise typer.Exit(_status(document, strict and bool(stale), named=bool(subjects)))


def _status(document: dict[str, Any], stale: bool, *, named: bool) -> int:
    """The exit status of a run: findings first, then failures of ours, then named subjects that did not run."""
    if stale or any(finding["unexpected_cases"] for finding in document["findings"]):
        return 1
    if document["failures"] or any(subject["status"] == "failed" for subject in document["subjects"].values()):
        return HarnessBug.exit_status
    absent = any(subject["status"] != "ok" for subject in document["subjects"].values())
    return EngineUnavailable.exit_status if named and absent else 0


def _refuse_with_resume(context: typer.Context) -> None:
    """A run that goes on has its plan; options that would change it are refused, not ignored."""
    free = {"resume", "store", "json_file", "strict"}
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if changed := [f"--{name.replace('_', '-')}" for name in given if name not in free]:
        raise UserError(f"--resume goes on with the run's own plan; leave out {', '.join(changed)}")


def _write_document(target: str, document: dict[str, Any]) -> None:
    if target == "-":
        print(json.dumps(plain(document), indent=1))
    elif target:
        writable(lambda: write_json(Path(target), document), target)


for _command in (
    cli_capsule.replay,
    cli_capsule.shrink,
    cli_capsule.explain,
    cli_capsule.bisect,
    cli_capsule.export,
    cli_sweep.sweep,
    cli_nightly.nightly,
):
    app.command()(_command)


@app.command()
def report(
    store: StoreOption = DEFAULT_STORE,
    run_id: Annotated[str, typer.Option("--run", help="A run's id; default: the newest.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the site goes; default: into the run.")] = None,
    history: Annotated[Path, typer.Option(help="The nights of the page History.")] = nights.DEFAULT_HISTORY,
) -> None:
    """Write the static page of a run: no server, opens from a file, works offline."""
    frames = reports_frames.load(store, run_id or None)
    target = out or frames.run.path / "site"
    pages: list[Path] = []
    kept = History(nights.read(history))
    writable(lambda: pages.append(site.build(frames, target, kept)), str(target))
    for path, why in frames.damaged.items():
        print(f"harness: {path} cannot be read, what it held is left out: {why}", file=sys.stderr)
    print(pages[0])


@app.command("doctor")
def doctor_command(
    subjects: Annotated[str, typer.Option(help="Comma-separated; builds their environments. Default: all.")] = "",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the environments in .harness/envs that nothing runs in.")
    ] = False,
) -> None:
    """Say which subjects run here, what they can do, and why the others do not. Starts every engine that is there.

    Exit status 3 if one that was asked for by name cannot start.
    """
    console = Console()
    if prune and subjects:
        raise UserError("--prune removes every environment that nothing runs in; leave out --subjects")
    if prune:
        for place in builds.prune():
            console.print(f"removed {place}", soft_wrap=True)
        return
    names = chosen_subjects(subjects, console)
    with console.status("starting engines", spinner="dots"):
        examined = doctor.examine(names)
    show.subjects(console, examined)
    if names and any(entry.reason for entry in examined):
        raise typer.Exit(EngineUnavailable.exit_status)


@zoo_app.command("list")
def zoo_list() -> None:
    """Say what each tiny checkpoint is."""
    show.zoo(Console(), [describe(name) for name in (*NAMES, *FEATURE_NAMES, large_name(DEFAULT_LAYERS))])


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help=f"One model, or {LARGE}. Without it every tiny one.")] = "",
    layers: Annotated[int, typer.Option(help=f"Decoder layers of {LARGE}.")] = DEFAULT_LAYERS,
) -> None:
    """Build what is missing or of another recipe, and print where.

    e2b-shape has E2B's published widths and vocabulary, 1.73 G parameters with 10 layers: for memory and time. No
    group of --models has it; give its directory.
    """
    if name and name != LARGE:
        one_of("NAME", name, (*NAMES, *FEATURE_NAMES, LARGE))
    if name == LARGE:
        print(ensure(large_name(layers), session.ZOO))
        return
    for each in (name,) if name else (*NAMES, *FEATURE_NAMES):
        print(session.locate(each))


@zoo_app.command("verify")
def zoo_verify(
    models: Annotated[str, typer.Option(help="all, zoo names, or checkpoint directories; comma-separated.")] = "all",
    subjects: Annotated[str, typer.Option(help="Comma-separated.")] = "hf,vllm,native",
) -> None:
    """Load each checkpoint in each engine and compare every tensor by content. Exit status 1 if one is wrong."""
    console = Console()
    chosen, names = listed_models("--models", models), chosen_subjects(subjects, console)
    for model in chosen:
        session.locate(model)
    with console.status("loading checkpoints", spinner="dots"):
        verified = doctor.verify(chosen, names or session.DEFAULT_SUBJECTS)
    show.verified(console, verified)
    raise typer.Exit(0 if all(entry.sound for entry in verified) else 1)


@app.command("deviations")
def deviations_command() -> None:
    """List the known deviations: what is expected to differ, why, and where it is reported."""
    show.deviations(Console(), load_deviations())


def main() -> None:
    """Entry point: errors that we know are one clear line and their exit status; SIGTERM and SIGHUP end like Ctrl-C."""
    stopped = _stopped_like_ctrl_c()
    try:
        app()
    except (UserError, HarnessBug) as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BaseException as error:
        if stopped:  # Whatever cleaning up came to: there may be no terminal any more.
            sys.exit(128 + stopped[0])
        if not (needed := want(error)):
            raise
        print(f"harness: {needed}: {error}", file=sys.stderr)
        sys.exit(HarnessBug.exit_status)


def _stopped_like_ctrl_c() -> list[int]:
    """Have the signals of a cancelled job and of a closed terminal interrupt the main thread; which one came."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        if not stopped:
            stopped.append(number)
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)
    return stopped
