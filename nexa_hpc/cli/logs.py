"""`logs`: what a step printed. Light."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from nexa_hpc.cli.completion import RUN_ARGUMENT, STEP_ARGUMENT
from nexa_hpc.cli.observing import observer_of
from nexa_hpc.cli.one_step import AT_OPTION, one_of
from nexa_hpc.cli.session import Session
from nexa_hpc.core.records import Attempt, read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.standings import as_stopped, fold, fold_all
from nexa_hpc.core.states import State
from nexa_hpc.errors import UnknownNameError

_FOLLOW_S = 0.3


@click.command()
@STEP_ARGUMENT
@RUN_ARGUMENT
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the step has ended.")
@AT_OPTION
@click.option("--attempt", type=int, help="An earlier attempt (default: the newest).")
@click.option("--path", "path_only", is_flag=True, help="Print the log's path instead.")
@click.pass_obj
def logs(
    session: Session,
    step: str,
    run: str | None,
    follow: bool,
    point: str | None,
    attempt: int | None,
    path_only: bool,
) -> None:
    """Print the log of STEP, of its newest attempt; a cached step shows the log of the run that
    made it.

    \b
    Example:
      nexa-hpc logs train
      nexa-hpc logs train general_e2e-3 -f
      nexa-hpc logs train --point learning_rate=3e-05,seed=1
    """
    found = session.find_run(run)
    step = one_of(found, step, point, hint=f"nexa-hpc status {found.id}")
    if follow and attempt is None:
        _await_start(found, step)
    log = _log_of(found, step, attempt)
    if path_only:
        print(log)
        return
    _print_log(found, step, log, follow)


def _await_start(run: Run, step: str) -> None:
    """Wait until `step` has been started, or never will be."""
    observer, told = observer_of(run), False
    while not _has_log(read_attempts(run.paths.records(run.instances[step].key))):
        if fold_all(run, observer)[step].state.settled:
            return
        if not told:
            print(f"waiting until step '{step}' starts", file=sys.stderr)
            told = True
        time.sleep(_FOLLOW_S)


def _has_log(attempts: Sequence[Attempt]) -> bool:
    return bool(attempts) and attempts[-1].log is not None


def _log_of(run: Run, step: str, number: int | None) -> Path:
    attempts = read_attempts(run.paths.records(run.instances[step].key))
    claimed = [a for a in attempts if a.claim]
    chosen = [a for a in claimed if number is None or a.number == number]
    if not chosen:
        which = f"no attempt {number}" if number is not None else "not been started"
        raise UnknownNameError(
            f"step '{step}' of run {run.id} has {which}", hint=f"nexa-hpc status {run.id}"
        )
    logged = chosen[-1].log
    if logged is not None:
        return run.paths.state / logged
    # In Slurm's hands, and not begun: what its job printed, if anything, says why.
    return run.place.log(step, chosen[-1].number)


def _print_log(run: Run, step: str, log: Path, follow: bool) -> None:
    if not log.is_file() and not follow:
        standing = fold_all(run, observer_of(run))[step]
        if standing.state is State.SUBMITTED:
            raise UnknownNameError(
                f"step '{step}' has not begun: job {standing.job} {standing.message}",
                hint=f"nexa-hpc logs {step} {run.id} -f",
            )
        print(f"no log at {log}: step '{step}' has printed nothing", file=sys.stderr)
    position = 0
    watch, before = observer_of(run), run.attempts_before()
    while True:
        standing = fold(run, run.instances[step], before, watch).standing
        ended = not follow or as_stopped(standing, run.stopped.get(step)).state.settled
        position = _copy_from(log, position)
        if ended:
            return
        time.sleep(_FOLLOW_S)


def _copy_from(log: Path, position: int) -> int:
    try:
        with log.open("rb") as stream:
            stream.seek(position)
            shutil.copyfileobj(stream, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return stream.tell()
    except FileNotFoundError:
        return position
