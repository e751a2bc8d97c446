"""What a launcher returns: a JobReturn for each point, whatever became of it.

Called by `session`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException

from nexa_hpc.core.artifacts import open_artifact
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.states import Standing, State
from nexa_hpc.errors import NexaError
from nexa_hpc.hydra_runs import pickles
from nexa_hpc.hydra_runs.places import FAILED, RETURN
from nexa_hpc.hydra_runs.points import Point

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


class JobFailedError(CompactHydraException):
    """A job left no exception of its own: it reached its time limit, lost its node, was cancelled.

    Hydra prints its message without a traceback.
    """


class DetachedJob(NamedTuple):
    """What a detached multirun has in the place of a return value."""

    job: str | None
    """Slurm's id, such as `123_4`; None where it waits to be submitted."""
    state: str
    sweep_dir: str
    """For `hydra.launcher.resume`."""


class JobTraceback(Exception):
    """The cause of an exception that comes from a job: where it was raised there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def stored(paths: ProjectPaths, point: Point) -> JobReturn:
    """Return what the job of a point that has its result returned.

    Where that cannot be loaded, a FAILED one says why: the others' results are not lost with it.
    """
    file = paths.artifact(point.key) / RETURN
    try:
        open_artifact(paths.artifact(point.key))
        return _read(file, point)
    except Exception as error:
        # Besides our own, whatever the app's classes raise: another version, a module that is gone.
        why = f"#{point.number} is done, and what it returned cannot be loaded: {error} ({file})"
    log.error(why)
    result = _without_job(point, None, JobStatus.FAILED)
    result._return_value = JobFailedError(why)
    return result


def failed(
    paths: ProjectPaths, point: Point, standing: Standing, config: DictConfig | None
) -> JobReturn:
    """Return the JobReturn of a point without a result: the app's exception, or the job's end."""
    kept = paths.work_of(point.key) / str(standing.attempt) / FAILED
    if standing.state is State.FAILED and standing.attempt is not None and kept.is_file():
        try:
            return _read(kept, point)
        except NexaError as error:
            log.warning("#%d: %s", point.number, error)
    result = _without_job(point, config, JobStatus.FAILED)
    result._return_value = JobFailedError(told(paths, point, standing))
    return result


def detached(point: Point, standing: Standing, config: DictConfig | None, sweep: Path) -> JobReturn:
    """Return a handle as a JobReturn that Hydra's own sweeper is content with."""
    result = _without_job(point, config, JobStatus.COMPLETED)
    result._return_value = DetachedJob(standing.job, standing.state.value, str(sweep))
    return result


def told(paths: ProjectPaths, point: Point, standing: Standing) -> str:
    """Return in words how a point failed: why, in which job, and where its log is."""
    why = standing.message or (standing.reason or standing.state.value.lower())
    reason = f" [{standing.reason}]" if standing.reason not in (None, "exception") else ""
    job = f", job {standing.job}" if standing.job and standing.job not in why else ""
    log_file = f"; log: {paths.state / standing.log}" if standing.log else ""
    return f"#{point.number} {standing.state.value}{reason}{job}: {why}{log_file}"


def _read(file: Path, point: Point) -> JobReturn:
    kept: dict[str, Any] = pickles.load(file)
    result: JobReturn = kept["return"]
    if kept["note"]:
        log.warning("#%d: %s", point.number, kept["note"])
    if kept["traceback"] and isinstance(result._return_value, BaseException):
        result._return_value.__cause__ = JobTraceback(kept["traceback"])
    return result


def _without_job(point: Point, config: DictConfig | None, status: JobStatus) -> JobReturn:
    from omegaconf import OmegaConf, open_dict, read_write

    result = JobReturn(overrides=list(point.overrides), status=status)
    if config is None:
        return result
    task = config.copy()
    with read_write(task), open_dict(task):
        result.hydra_cfg = OmegaConf.create({"hydra": task.pop("hydra")})
    result.cfg = task
    result.task_name = config.hydra.job.name
    return result
