"""`run`, `plan`, `resume` and `rerun`: the commands that plan and drive."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.completion import FILE_ARGUMENT, FROM_OPTION, RUN_ARGUMENT
from nexa_hpc.cli.failures import print_outcome
from nexa_hpc.cli.output import discard_output
from nexa_hpc.cli.progress import observer_for
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.status import file_of
from nexa_hpc.cli.tables import print_table
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.planning import Plan
from nexa_hpc.core.quoting import printable, printable_lines
from nexa_hpc.core.runs import Run
from nexa_hpc.pipeline import Pipeline, PipelineRun, drive
from nexa_hpc.pipeline import resume as resume_run

_scheduler = click.option(
    "--scheduler",
    type=click.Choice(["local", "slurm", "k8s"]),
    help="Run every step there, whatever it declares; changes no key.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON lines, for scripts.")
_jobs = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many independent steps run side by side, each in a process of its own.",
)
_adopt = click.option(
    "--adopt", is_flag=True, help="Take over a pipeline name that another file used last."
)


@click.command()
@FILE_ARGUMENT
@_scheduler
@_adopt
@_jobs
@click.option("--dry-run", is_flag=True, help="The same as `plan`.")
@_as_json
@click.pass_obj
def run(
    session: Session,
    file: Path,
    scheduler: str | None,
    adopt: bool,
    jobs: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the pipeline in FILE; what has a result already is skipped.

    Ctrl-C is safe at any moment, and so is kill -9: run it again, or `resume`.

    \b
    Example:
      nexa-hpc run pipelines/general_e2e.yaml
      nexa-hpc run pipelines/many.yaml --jobs 4
    """
    pipeline = _read(session, file)
    if dry_run:
        _show_plan(pipeline.plan(scheduler=scheduler), as_json)
        return
    _run(pipeline, as_json, jobs, scheduler=scheduler, adopt=adopt)


@click.command()
@FILE_ARGUMENT
@_scheduler
@_as_json
@click.pass_obj
def plan(session: Session, file: Path, scheduler: str | None, as_json: bool) -> None:
    """Show what a run of FILE would do, per step RUN or SKIP and why; writes nothing.

    \b
    Example:
      nexa-hpc plan pipelines/general_e2e.yaml
    """
    _show_plan(_read(session, file).plan(scheduler=scheduler), as_json)


@click.command()
@RUN_ARGUMENT
@_jobs
@_as_json
@click.pass_obj
def resume(session: Session, run: str | None, jobs: int, as_json: bool) -> None:
    """Go on with the newest run of RUN, with its recorded plan: what failed, was stopped or is
    missing.

    To plan afresh, with the file as it is now, use `run`; finished steps are found by their keys.

    \b
    Example:
      nexa-hpc resume
      nexa-hpc resume pipelines/general_e2e.yaml
    """
    found = session.find_run(run)
    _note_changed_file(found)
    _drive(found, as_json, jobs, resume_run)


@click.command()
@RUN_ARGUMENT
@FROM_OPTION
@_scheduler
@_adopt
@_jobs
@_as_json
@click.pass_obj
def rerun(
    session: Session,
    run: str | None,
    from_step: str,
    scheduler: str | None,
    adopt: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Compute STEP and all below it again, even if cached; the old results stay in the store.

    \b
    Example:
      nexa-hpc pipeline rerun pipelines/general_e2e.yaml --from train
    """
    if run is not None and Path(run).is_file():
        pipeline = _read(session, Path(run))
    else:
        pipeline = Pipeline.from_run(session.find_run(run))
    _run(pipeline, as_json, jobs, scheduler=scheduler, adopt=adopt, rerun_from=from_step)


def _read(session: Session, file: Path) -> Pipeline:
    pipeline = Pipeline.from_yaml(file, project=session.project)
    session.announce_root(pipeline.paths.root)
    return pipeline


def _run(pipeline: Pipeline, as_json: bool, jobs: int, **options: Any) -> None:
    recorded, plan = pipeline.start(**options)
    if not as_json:
        for warning in plan.warnings:
            print(f"warning: {printable_lines(warning)}", file=sys.stderr)
    _drive(recorded, as_json, jobs, drive)


def _drive(recorded: Run, as_json: bool, jobs: int, act: Callable[..., PipelineRun]) -> None:
    """Drive `recorded` by `act` under an observer, show the outcome, and exit by it."""
    with observer_for(recorded, as_json, side_by_side=jobs > 1) as observer:
        finished = act(recorded, observer, jobs)
    if not as_json:
        try:
            print_outcome(recorded, finished.standings)
            sys.stdout.flush()
        except OSError:
            # Whoever read it has gone; how the run ended is still to be told by the exit code.
            discard_output()
    if not finished.succeeded:
        sys.exit(1)


def _note_changed_file(found: Run) -> None:
    file = file_of(found)
    recorded = found.request.get("file_digest")
    if file is None or recorded is None:
        return
    if sha256_file(file) != recorded:
        print(
            f"note: {found.request['file']} has changed since run {found.id} was planned; resuming "
            "the recorded plan (use `run` to plan with the file as it is now)",
            file=sys.stderr,
        )


def _show_plan(plan: Plan, as_json: bool) -> None:
    entries = [
        {"step": i.step, "action": i.action, "reason": i.reason, "key": i.key, "uses": i.uses}
        for i in plan.instances.values()
    ]
    if as_json:
        print(json.dumps({"pipeline": plan.pipeline, "steps": entries, "warnings": plan.warnings}))
        return
    print_table(
        ["STEP", "ACTION", "KEY", "REASON"],
        [[e["step"], e["action"], e["key"][:8], e["reason"]] for e in entries],
    )
    for instance in plan.instances.values():
        for name, note in instance.resolved.items():
            print(f"note: step '{instance.step}': {name} resolved to {printable(note)}")
    for warning in plan.warnings:
        print(f"warning: {printable_lines(warning)}", file=sys.stderr)
    counts = Counter(entry["action"] for entry in entries)
    print(f"{counts['RUN']} to run, {counts['SKIP']} cached")
