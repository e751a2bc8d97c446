"""Projects with results, runs and records made without running anything, for the tests of gc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planned import instance

from nexa_hpc.core import records
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.publishing import Publication
from nexa_hpc.core.retention import DAY_S, holdings
from nexa_hpc.core.runs import Run, create_run
from nexa_hpc.core.settings import Retention

NOW = 2_000_000_000.0
KEYS = ["a1" + "0" * 62, "b2" + "0" * 62, "c3" + "0" * 62, "d4" + "0" * 62]


def at(path: Path, days_ago: float) -> None:
    """Make `path`, a link not followed, as old as that at `NOW`."""
    moment = NOW - days_ago * DAY_S
    os.utime(path, (moment, moment), follow_symlinks=False)


def publish(paths: ProjectPaths, key: str, output: str | None = None, text: str = "x") -> Path:
    """Publish an artifact of one small file under `key`, long ago; return its place."""
    publication = Publication.begin(paths.artifact(key, output))
    (publication.folder / "file").write_text(text)
    made_by = {"pipeline": "demo", "run": "demo-1", "step": "s", "user": "ada", "attempt": 1}
    place = publication.publish(kind="artifact", step_key=key, extra={"made_by": made_by}).path
    at(place / "COMPLETE", 1000)
    return place


def record_run(
    paths: ProjectPaths, *steps: Instance, pipeline: str = "demo", days_ago: float = 0
) -> Run:
    """Record a run with that plan, begun that long ago."""
    request = {"file": None, "document": [], "user": "ada"}
    run = create_run(paths, pipeline, request, steps)
    for file in (run.place.plan, *run.place.rounds.iterdir()):
        at(file, days_ago)
    return run


def plan_of(*keys: str, **changes: Any) -> list[Instance]:
    """Return a step for each key."""
    return [instance(key, step=f"s{number}", **changes) for number, key in enumerate(keys)]


def claim(
    paths: ProjectPaths, key: str, run: str = "demo-1", driver: Mapping[str, Any] | None = None
) -> Path:
    """Claim the next attempt at `key`, by default of this very process; return its records."""
    folder = paths.records(key)
    number = len(records.read_attempts(folder)) + 1
    by = dict(driver) if driver is not None else this_process(paths).to_json()
    assert records.claim(folder, number, {"run": run, "driver": by})
    return folder


def this_process(paths: ProjectPaths) -> Driver:
    """Return this process as a driver, with a heartbeat file that is not there."""
    return Driver.this_process(paths.state / "demo/runs/demo-1/drivers", paths.state)


def kept(paths: ProjectPaths, retention: Retention | None = None) -> dict[str, str | None]:
    """Return the first two digits of each key in the store, and why it is kept."""
    found = holdings(paths, retention or Retention(), NOW)
    return {holding.entry.place.name[:2]: holding.kept for holding in found}
