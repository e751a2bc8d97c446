"""`advance`: one pass over runs in Slurm's hands, for scrontab, a wrapper script, or by hand."""

from __future__ import annotations

import sys

import click

from nexa_hpc.cli.completion import RUN_ARGUMENT
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.status import summary
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.core.runs import Run, all_runs
from nexa_hpc.core.sharing import is_own
from nexa_hpc.core.standings import fold_all
from nexa_hpc.driving import drive
from nexa_hpc.errors import NexaError
from nexa_hpc.observing import Observer
from nexa_hpc.schedulers.slurm.here import this_cluster


@click.command()
@RUN_ARGUMENT
@click.option("--all", "every", is_flag=True, help="All unfinished runs of yours in this project.")
@click.pass_obj
def advance(session: Session, run: str | None, every: bool) -> None:
    """Look after a run that is in Slurm's hands: submit what can be, retry what may be; return.

    Safe at any time, from any node, and beside other calls of it. Where compute nodes cannot submit
    jobs, call it from scrontab:

    \b
      */10 * * * *  nexa-hpc --project ~/project advance --all

    \b
    Example:
      nexa-hpc advance
      nexa-hpc advance --all
    """
    if not every:
        found = session.find_run(run)
        print(_advance(found))
        return
    session.announce_root()
    failed = False
    for found in _unfinished(session):
        try:
            print(_advance(found))
        except NexaError as error:
            # One run's trouble is not the others'.
            failed = True
            print(f"run {found.id}: {printable_lines(str(error))}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _advance(run: Run) -> str:
    if run.cancelled:
        return f"run {run.id}: was cancelled; `nexa-hpc resume {run.id}` goes on"
    return f"run {run.id}: {summary(drive(run, Observer(), wait=False))}"


def _unfinished(session: Session) -> list[Run]:
    """Return the caller's runs with steps in this cluster's hands, or waiting for room there."""
    here = this_cluster()
    return [
        run
        for run in all_runs(session.paths)
        if is_own(run.place.folder)
        and run.request.get("slurm") is not None
        and run.request["slurm"]["cluster"]["name"] == here
        and not run.cancelled
        and not all(standing.state.settled for standing in fold_all(run).values())
    ]
