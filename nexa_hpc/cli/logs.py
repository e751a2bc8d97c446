"""`logs`: what a step printed. Light."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import click

from nexa_hpc.cli.completion import RUN_ARGUMENT, STEP_ARGUMENT
from nexa_hpc.cli.session import Session
from nexa_hpc.core.drivers import Watch
from nexa_hpc.core.records import Attempt, read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.standings import fold, fold_all
from nexa_hpc.errors import UnknownNameError, nearest

_FOLLOW_S = 0.3


@click.command()
@STEP_ARGUMENT
@RUN_ARGUMENT
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the step has ended.")
@click.option("--attempt", type=int, help="An earlier attempt (default: the newest).")
@click.option("--path", "path_only", is_flag=True, help="Print the log's path instead.")
@click.pass_obj
def logs(
    session: Session,
    step: str,
    run: str | None,
    follow: bool,
    attempt: int | None,
    path_only: bool,
) -> None:
    """Print the log of STEP, of its newest attempt; a cached step shows the log of the run that
    made it.

    \b
    Example:
      nexa-hpc logs train
      nexa-hpc logs train general_e2e-3 -f
    """
    found = session.find_run(run)
    if step not in found.instances:
        raise UnknownNameError(
            f"run {found.id} has no step '{step}'" + nearest(step, found.instances),
            hint=f"nexa-hpc status {found.id}",
        )
    if follow and attempt is None:
        _await_start(found, step)
    log = _log_of(found, step, attempt)
    if path_only:
        print(log)
        return
    _print_log(found, step, log, follow)


def _await_start(run: Run, step: str) -> None:
    """Wait until `step` has been started, or never will be."""
    observer, told = Watch(run.paths.state), False
    while not read_attempts(run.paths.records(run.instances[step].key)):
        if fold_all(run, observer)[step].state.settled:
            return
        if not told:
            print(f"waiting until step '{step}' starts", file=sys.stderr)
            told = True
        time.sleep(_FOLLOW_S)


def _log_of(run: Run, step: str, number: int | None) -> Path:
    attempts = read_attempts(run.paths.records(run.instances[step].key))
    chosen = [a for a in attempts if number is None or a.number == number]
    if not chosen:
        which = f"no attempt {number}" if number is not None else "not been started"
        raise UnknownNameError(
            f"step '{step}' of run {run.id} has {which}", hint=f"nexa-hpc status {run.id}"
        )
    return run.paths.state / _logged(chosen[-1])


def _logged(attempt: Attempt) -> str:
    return str(attempt.claim["log"])


def _print_log(run: Run, step: str, log: Path, follow: bool) -> None:
    if not log.is_file() and not follow:
        raise UnknownNameError(f"no log at {log}", hint=f"nexa-hpc status {run.id}")
    position = 0
    watch, before = Watch(run.paths.state), run.attempts_before()
    while True:
        ended = not follow or fold(run, run.instances[step], before, watch).standing.state.settled
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
