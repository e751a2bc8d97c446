"""`status`, `list` and `cancel`: where runs stand. Light: no YAML, no rich when piped."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import click

from nexa_hpc.cli.completion import POINT_OPTION, RUN_ARGUMENT, STEP_OPTION
from nexa_hpc.cli.observing import observer_of, scheduler_calls
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.sweep_counts import of_interest, print_step_counts
from nexa_hpc.cli.tables import duration, local_time, print_table, progress_text
from nexa_hpc.core.endpoints import kept_servers
from nexa_hpc.core.parts import named
from nexa_hpc.core.projection import project
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.runs import Run, all_runs, last_cancel, mark_cancelled
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing, State

_WATCH_S = 2.0


@click.command()
@RUN_ARGUMENT
@POINT_OPTION
@STEP_OPTION
@click.option("--all", "all_", is_flag=True, help="Of a sweep, show every step at every point.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until it is settled.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def status(
    session: Session,
    run: str | None,
    points: tuple[str, ...],
    step: str | None,
    all_: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """Show where a run stands: per step its state, attempt, time and reason.

    Of a sweep, first the counts of each step, then what runs and what failed.

    \b
    Example:
      nexa-hpc status
      nexa-hpc status pipelines/general_e2e.yaml --watch
      nexa-hpc status general_e2e-3 --json | jq .steps.train.status
      nexa-hpc status lr_sweep --point learning_rate=3e-05,seed=1
    """
    found = session.find_run(run)
    observer, part = observer_of(found), named(found, points, step)
    asked = part.own | part.shared
    chosen = [name for name in found.instances if name in asked]
    is_whole = not points and step is None
    while True:
        standings = fold_all(found, observer)
        if as_json:
            content = project(found, standings)
            content["steps"] = {name: content["steps"][name] for name in chosen}
            print(json.dumps({**content, "scheduler_calls": scheduler_calls(found)}))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            shown = {name: standings[name] for name in chosen}
            _show(found, shown, is_short=bool(found.points) and is_whole and not all_)
        if not watch or all(standing.state.settled for standing in standings.values()):
            return
        sys.stdout.flush()
        time.sleep(_WATCH_S)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def list_runs(session: Session, as_json: bool) -> None:
    """List the runs of this project, newest last, by what they have recorded; asks no scheduler.

    \b
    Example:
      nexa-hpc list
    """
    session.announce_root()
    runs = sorted(all_runs(session.paths), key=lambda run: str(run.request["created_at"]))
    entries = [
        {
            "run": run.id,
            "started": local_time(run.request["created_at"]),
            "user": run.request["user"],
            "file": run.request.get("file") or "(made in Python)",
            "steps": summary(fold_all(run)),
        }
        for run in runs
    ]
    if as_json:
        print(json.dumps(entries))
    elif entries:
        print_table(["RUN", "STARTED", "USER", "FILE", "STEPS"], [[*e.values()] for e in entries])
    else:
        print("nothing has run here yet")


@click.command()
@RUN_ARGUMENT
@POINT_OPTION
@STEP_OPTION
@click.pass_obj
def cancel(session: Session, run: str | None, points: tuple[str, ...], step: str | None) -> None:
    """Stop a run, from any node: its driver stops the running step and records what is true.

    What is finished stays; `resume` goes on from there. With --point or --step only that part is
    stopped, as far as no other point needs it, and all else goes on.

    \b
    Example:
      nexa-hpc cancel general_e2e-3
      nexa-hpc cancel lr_sweep-1 --point learning_rate=1e-05
    """
    found = session.find_run(run)
    require_own(found.place.folder, "the run in")
    if points or step is not None:
        # Imported here: stopping the whole needs none of it.
        from nexa_hpc.cli.cancel_part import cancel_part

        cancel_part(found, points, step)
        return
    if not _is_driven(found):
        print(f"run {found.id}: nothing is running")
        _tell_of_kept_servers(found)
        return
    mark_cancelled(found)
    count = _cancel_jobs(found)
    told = f", and Slurm to end {count} job{'' if count == 1 else 's'}" if count else ""
    print(f"run {found.id}: asked to stop{told}; `nexa-hpc status {found.id}` shows when it has")
    _tell_of_kept_servers(found, but_in_slurm=count > 0)


def _tell_of_kept_servers(run: Run, *, but_in_slurm: bool = False) -> None:
    """Say how servers that stay are ended; those in Slurm go with the jobs that were cancelled."""
    serving = (i for i in run.instances.values() if not (but_in_slurm and i.scheduler == "slurm"))
    for name in kept_servers(serving, run.paths):
        print(f"server '{name}' is kept; end it: nexa-hpc serve stop {name}")


def _cancel_jobs(run: Run) -> int:
    if run.request.get("slurm") is None:
        return 0
    # Imported here: a run without Slurm needs none of it.
    from nexa_hpc.schedulers.slurm.cancelling import cancel_run

    return cancel_run(run)


def _is_driven(run: Run) -> bool:
    """Return whether somebody works on `run`: on a step, or between two."""
    states = [standing.state for standing in fold_all(run).values()]
    if State.RUNNING in states or State.SUBMITTED in states:
        return True
    # What waits for room, or to be tried again, is submitted by the advance job.
    comes_back = run.request.get("slurm") is not None and not run.cancelled
    return State.PENDING in states and (comes_back or bool(list_names(run.place.drivers)))


def summary(standings: Mapping[str, Standing]) -> str:
    """Return how many steps are in which state, in words."""
    counts = Counter(standing.state for standing in standings.values())
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])


def elapsed(standing: Standing) -> str:
    """Return how long a step took, or has been running."""
    if standing.started_at is None or (standing.state.settled and standing.ended_at is None):
        return ""
    begin = datetime.fromisoformat(standing.started_at)
    now = datetime.now(timezone.utc)
    end = datetime.fromisoformat(standing.ended_at) if standing.ended_at else now
    return duration((end - begin).total_seconds())


def _show(run: Run, standings: Mapping[str, Standing], *, is_short: bool) -> None:
    points = f"{len(run.points)} points: " if run.points else ""
    print(f"run {run.id}: {points}{summary(standings)}")
    _print_cancel(run)
    shown = standings
    if is_short:
        print_step_counts(run, standings)
        shown = of_interest(standings)
    if shown:
        _print_rows(run, shown)
    failed = [step for step, standing in standings.items() if standing.state is State.FAILED]
    if failed:
        name = run.request.get("file") or run.id
        print(f"\nlog:        nexa-hpc logs {failed[0]} {run.id}")
        print(f"try again:  nexa-hpc resume {run.id}")
        print(f"recompute:  nexa-hpc pipeline rerun {name} --from {failed[0]}")
    elif any(standing.state is State.CANCELLED for standing in standings.values()):
        print(f"\ngo on:      nexa-hpc resume {run.id}")


def _print_rows(run: Run, standings: Mapping[str, Standing]) -> None:
    rows = [_row(run, step, standing) for step, standing in standings.items()]
    head = ["STEP", "STATE", "ATTEMPT", "TIME", "JOB", "NOTE"]
    if not any(row[4] for row in rows):
        head, rows = head[:4] + head[5:], [row[:4] + row[5:] for row in rows]
    print_table(head, rows)


def _print_cancel(run: Run) -> None:
    marker = last_cancel(run) if run.cancelled else None
    if marker is not None:
        why = f": {printable(marker['why'])}" if marker.get("why") else ""
        print(f"cancelled by {marker['by']} at {local_time(marker['at'])}{why}")


def _job(run: Run, step: str, standing: Standing) -> str:
    """Return Slurm's id of a step's job; a local step's process is nothing to look up later."""
    return (standing.job or "") if run.instances[step].scheduler == "slurm" else ""


def _row(run: Run, step: str, standing: Standing) -> list[str]:
    attempt = str(standing.attempt or "")
    job, note = _job(run, step, standing), _note(run, step, standing)
    return [step, standing.state.value, attempt, elapsed(standing), job, note]


def _note(run: Run, step: str, standing: Standing) -> str:
    if standing.state is State.RUNNING and standing.attempt is not None:
        # Imported here: only a running step needs it.
        from nexa_hpc.core.progress_file import read_progress

        progress = read_progress(run.place.progress(step, standing.attempt))
        if progress is not None:
            return f"{standing.message}; {progress_text(progress)}"
    first = standing.message.splitlines()[0] if standing.message else ""
    return f"{standing.reason}: {first}" if standing.reason else first


def file_of(run: Run) -> Path | None:
    """Return the pipeline file that a run came from, if it is still there."""
    file = run.request.get("file")
    path = run.paths.root / file if file else None
    return path if path is not None and path.is_file() else None
