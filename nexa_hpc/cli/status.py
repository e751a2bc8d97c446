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

from nexa_hpc.cli.completion import RUN_ARGUMENT
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import duration, local_time, print_table
from nexa_hpc.core.drivers import Watch
from nexa_hpc.core.projection import project
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.runs import Run, all_runs, mark_cancelled
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing, State

_WATCH_S = 2.0


@click.command()
@RUN_ARGUMENT
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until it is settled.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def status(session: Session, run: str | None, watch: bool, as_json: bool) -> None:
    """Show where a run stands: per step its state, attempt, time and reason.

    \b
    Example:
      nexa-hpc status
      nexa-hpc status pipelines/general_e2e.yaml --watch
      nexa-hpc status general_e2e-3 --json | jq .steps.train.status
    """
    found = session.find_run(run)
    observer = Watch(found.paths.state)
    while True:
        standings = fold_all(found, observer)
        if as_json:
            print(json.dumps(project(found, standings)))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            _show(found, standings)
        if not watch or all(standing.state.settled for standing in standings.values()):
            return
        sys.stdout.flush()
        time.sleep(_WATCH_S)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def list_runs(session: Session, as_json: bool) -> None:
    """List the runs of this project, newest last.

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
@click.pass_obj
def cancel(session: Session, run: str | None) -> None:
    """Stop a run, from any node: its driver stops the running step and records what is true.

    What is finished stays; `resume` goes on from there.

    \b
    Example:
      nexa-hpc cancel general_e2e-3
    """
    found = session.find_run(run)
    require_own(found.place.folder, "the run in")
    if not _is_driven(found):
        print(f"run {found.id}: nothing is running")
        return
    mark_cancelled(found)
    print(f"run {found.id}: asked to stop; `nexa-hpc status {found.id}` shows when it has")


def _is_driven(run: Run) -> bool:
    """Return whether somebody works on `run`: on a step, or between two."""
    states = [standing.state for standing in fold_all(run).values()]
    if State.RUNNING in states or State.SUBMITTED in states:
        return True
    return State.PENDING in states and bool(list_names(run.place.drivers))


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


def _show(run: Run, standings: Mapping[str, Standing]) -> None:
    rows = [
        [step, s.state.value, str(s.attempt or ""), elapsed(s), _note(s)]
        for step, s in standings.items()
    ]
    print(f"run {run.id}: {summary(standings)}")
    print_table(["STEP", "STATE", "ATTEMPT", "TIME", "NOTE"], rows)
    failed = [step for step, standing in standings.items() if standing.state is State.FAILED]
    if failed:
        name = run.request.get("file") or run.id
        print(f"\nlog:        nexa-hpc logs {failed[0]} {run.id}")
        print(f"try again:  nexa-hpc resume {run.id}")
        print(f"recompute:  nexa-hpc pipeline rerun {name} --from {failed[0]}")
    elif any(standing.state is State.CANCELLED for standing in standings.values()):
        print(f"\ngo on:      nexa-hpc resume {run.id}")


def _note(standing: Standing) -> str:
    first = standing.message.splitlines()[0] if standing.message else ""
    return f"{standing.reason}: {first}" if standing.reason else first


def file_of(run: Run) -> Path | None:
    """Return the pipeline file that a run came from, if it is still there."""
    file = run.request.get("file")
    path = run.paths.root / file if file else None
    return path if path is not None and path.is_file() else None
