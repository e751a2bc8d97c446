"""`run`, `plan`, `resume` and `rerun`: the commands that plan and drive."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from nexa_hpc.cli.completion import (
    CONFIG_DIR_OPTION,
    FILE_ARGUMENT,
    FROM_OPTION,
    OVERRIDES_ARGUMENT,
    POINT_OPTION,
    RUN_ARGUMENT,
    STEP_OPTION,
)
from nexa_hpc.cli.failures import print_outcome
from nexa_hpc.cli.one_step import AT_OPTION
from nexa_hpc.cli.output import discard_output
from nexa_hpc.cli.plan_view import print_what_is_submitted, show_plan
from nexa_hpc.cli.progress import observer_for
from nexa_hpc.cli.reading import read_pipeline
from nexa_hpc.cli.run_options import (
    ADOPT,
    AS_JSON,
    JOBS,
    MULTIRUN,
    SCHEDULER,
    WAIT,
    policy_fields,
    policy_options,
)
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.status import file_of
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.collector import made_to_stay
from nexa_hpc.core.quoting import printable, printable_lines
from nexa_hpc.core.runs import Run, is_file_of, newest_run
from nexa_hpc.errors import UnknownNameError
from nexa_hpc.pipeline import Pipeline
from nexa_hpc.pipeline_run import PipelineRun, drive
from nexa_hpc.pipeline_run import resume as resume_run


@click.command()
@FILE_ARGUMENT
@OVERRIDES_ARGUMENT
@MULTIRUN
@CONFIG_DIR_OPTION
@SCHEDULER
@WAIT
@policy_options
@ADOPT
@JOBS
@click.option("--dry-run", is_flag=True, help="The same as `plan`, with the sbatch scripts.")
@AS_JSON
@click.pass_obj
def run(
    session: Session,
    /,
    file: Path,
    overrides: tuple[str, ...],
    multirun: bool,
    config_dirs: tuple[Path, ...],
    scheduler: str | None,
    wait: bool,
    adopt: bool,
    jobs: int,
    dry_run: bool,
    as_json: bool,
    **policy: int | None,
) -> None:
    """Run the pipeline in FILE; what has a result already is skipped.

    KEY=VALUE overrides what the file says: steps.train.params.lr=3e-5, cluster=mysite.

    Steps in Slurm are submitted, and the command returns: `status`, `logs`, `resume` and `cancel`
    work from any node. Ctrl-C is safe at any moment, and so is kill -9: run it again, or `resume`.

    \b
    Example:
      nexa-hpc run pipelines/general_e2e.yaml
      nexa-hpc run pipelines/general_e2e.yaml steps.train.params.num_train_epochs=3
      nexa-hpc run pipelines/general_e2e.yaml -m steps.train.params.seed=1,2,3
      nexa-hpc run pipelines/many.yaml --jobs 4
      nexa-hpc run pipelines/many.yaml --scheduler slurm
    """
    pipeline = read_pipeline(session, file, overrides, config_dirs, multirun=multirun)
    given = policy_fields(policy)
    if dry_run:
        show_plan(pipeline, scheduler, given, as_json, with_scripts=True)
        return
    _run(pipeline, as_json, jobs, wait, scheduler=scheduler, policy=given, adopt=adopt)


sweep_run = click.Command(
    "run",
    callback=partial(cast("Callable[..., None]", run.callback), multirun=True),
    params=[parameter for parameter in run.params if parameter.name != "multirun"],
    help="""Run the pipeline in FILE at every point of a sweep; the same as `run -m`.

    Points that agree on a step share its result, and growing a sweep keeps what is done.

    \b
    Example:
      nexa-hpc sweep run pipelines/general_e2e.yaml steps.train.params.seed=1,2,3
    """,
)


@click.command()
@FILE_ARGUMENT
@OVERRIDES_ARGUMENT
@MULTIRUN
@CONFIG_DIR_OPTION
@SCHEDULER
@policy_options
@AS_JSON
@click.pass_obj
def plan(
    session: Session,
    /,
    file: Path,
    overrides: tuple[str, ...],
    multirun: bool,
    config_dirs: tuple[Path, ...],
    scheduler: str | None,
    as_json: bool,
    **policy: int | None,
) -> None:
    """Show what a run of FILE would do, per step RUN or SKIP and why; writes nothing.

    \b
    Example:
      nexa-hpc plan pipelines/general_e2e.yaml
      nexa-hpc plan pipelines/general_e2e.yaml steps.train.params.learning_rate=3e-5
    """
    pipeline, given = (
        read_pipeline(session, file, overrides, config_dirs, multirun=multirun),
        policy_fields(policy),
    )
    show_plan(pipeline, scheduler, given, as_json)


@click.command()
@RUN_ARGUMENT
@POINT_OPTION
@STEP_OPTION
@WAIT
@JOBS
@AS_JSON
@click.pass_obj
def resume(
    session: Session,
    run: str | None,
    points: tuple[str, ...],
    step: str | None,
    wait: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Go on with the newest run of RUN, with its recorded plan: what failed, was stopped or is
    missing.

    To plan afresh, with the file as it is now, use `run`; finished steps are found by their keys.
    A file that has never run is run.
    With --point or --step only that part goes on, with what it needs; `resume` without them brings
    the rest back.

    \b
    Example:
      nexa-hpc resume
      nexa-hpc resume pipelines/general_e2e.yaml
      nexa-hpc resume lr_sweep-1 --point learning_rate=1e-05
    """
    try:
        found = session.find_run(run)
    except UnknownNameError:
        if run is None or points or step or not Path(run).is_file():
            raise
        _run(read_pipeline(session, Path(run)), as_json, jobs, wait)
        return
    _note_changed_file(found)
    _drive(found, as_json, jobs, wait, partial(resume_run, points=points, step=step))


@click.command()
@RUN_ARGUMENT
@FROM_OPTION
@AT_OPTION
@SCHEDULER
@WAIT
@policy_options
@ADOPT
@JOBS
@AS_JSON
@click.pass_obj
def rerun(
    session: Session,
    /,
    run: str | None,
    from_step: str,
    point: str | None,
    scheduler: str | None,
    wait: bool,
    adopt: bool,
    jobs: int,
    as_json: bool,
    **policy: int | None,
) -> None:
    """Compute STEP and all below it again, even if cached; the old results stay in the store.

    \b
    Example:
      nexa-hpc pipeline rerun pipelines/general_e2e.yaml --from train
      nexa-hpc rerun lr_sweep --from train --point learning_rate=3e-05,seed=1
    """
    if run is not None and Path(run).is_file():
        pipeline = _as_last_time(read_pipeline(session, Path(run)))
    else:
        pipeline = Pipeline.from_run(session.find_run(run))
    options = {"scheduler": scheduler, "policy": policy_fields(policy), "adopt": adopt}
    step = from_step if point is None else f"{from_step}@{point}"
    _run(pipeline, as_json, jobs, wait, rerun_from=step, **options)


def _as_last_time(pipeline: Pipeline) -> Pipeline:
    """Return `pipeline` under the overrides of its newest run, and say so where it had some."""
    newest = newest_run(pipeline.paths, pipeline.name)
    if newest is None or pipeline.file is None:
        return pipeline
    overrides, points = newest.request.get("overrides", ()), newest.points
    if not (overrides or points) or not is_file_of(newest, str(pipeline.file)):
        return pipeline
    sweep = f"a sweep of {len(points)} points" if points else ""
    told = ", ".join(filter(None, (sweep, printable(" ".join(overrides)))))
    print(f"note: as run {newest.id} was: {told}", file=sys.stderr)
    return Pipeline.from_run(newest)


def _run(pipeline: Pipeline, as_json: bool, jobs: int, wait: bool, **options: Any) -> None:
    with made_to_stay():
        recorded, plan = pipeline.start(**options)
    if not as_json:
        for warning in plan.warnings:
            print(f"warning: {printable_lines(warning)}", file=sys.stderr)
        print_what_is_submitted(recorded, plan)
    _drive(recorded, as_json, jobs, wait, drive)


def _drive(
    recorded: Run, as_json: bool, jobs: int, wait: bool, act: Callable[..., PipelineRun]
) -> None:
    """Drive `recorded` by `act` under an observer, show the outcome, and exit by it."""
    with observer_for(recorded, as_json, side_by_side=jobs > 1) as observer:
        finished = act(recorded, observer, jobs, wait=wait)
    if not as_json:
        try:
            print_outcome(recorded, finished.asked)
            sys.stdout.flush()
        except OSError:
            # Whoever read it has gone; how the run ended is still to be told by the exit code.
            discard_output()
    if any(s.state.settled and not s.state.succeeded for s in finished.asked.values()):
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
