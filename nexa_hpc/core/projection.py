"""`pipeline_state.json` and a run's `state.json`: advisory, for people and other tools to read.

A projection of what `standings` folds; nothing of ours reads it back, and losing it loses nothing.
Written by `advance` only. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.records import now
from nexa_hpc.core.runs import Run, run_ids
from nexa_hpc.core.states import Standing


def project(run: Run, standings: Mapping[str, Standing]) -> dict[str, Any]:
    """Return the projection: per step `status`, `cache_key`, job, attempt, reason, times, log."""
    return {
        "format": 1,
        "pipeline": run.pipeline,
        "run": run.id,
        "file": run.request.get("file"),
        "updated_at": now(),
        **({"points": [point.to_json() for point in run.points]} if run.points else {}),
        "steps": {step: _entry(run, step, standings[step]) for step in run.instances},
    }


def write_projection(run: Run, standings: Mapping[str, Standing]) -> None:
    """Write the run's projection, and the pipeline's while this is its newest run."""
    content = project(run, standings)
    payload = atomic.encode_json(content)
    atomic.write_file(run.place.state, payload)
    if run_ids(run.place.pipeline)[-1:] == [run.id]:
        atomic.write_file(run.place.pipeline.state, payload)


def _entry(run: Run, step: str, standing: Standing) -> dict[str, Any]:
    return {
        "status": standing.state.value,
        "cache_key": run.instances[step].key,
        "job": standing.job,
        "attempt": standing.attempt,
        "reason": standing.reason,
        "message": standing.message,
        "started_at": standing.started_at,
        "ended_at": standing.ended_at,
        "log": standing.log,
    }
