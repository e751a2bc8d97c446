"""Inside a job: runs the app for one point, from the config composed at submission.

The element imports it as the step's handler, `nexa_hpc.hydra_runs.job:run`. The JobReturn of a
success is the point's artifact; that of a failure stays in the attempt's work folder, and the app's
exception goes on, so that the attempt, the job's exit code and Slurm say FAILED. With several
tasks all ranks run the app, and rank 0 alone writes what Hydra writes.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from nexa_hpc.core import atomic, checkpoints
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.states import Reason
from nexa_hpc.hydra_runs import pickles
from nexa_hpc.hydra_runs.places import FAILED, RETURN, Calls

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

_DYNAMIC = "<dynamic-code>"


def run(task: Task) -> None:
    """Run the app for the point that `task.params` names; what the app raises passes through."""
    _as_where_submitted(task)
    try:
        result = _run_app(task)
    except KeyboardInterrupt:
        _let_go_on(task)
        raise
    failure = _failure(result)
    if not task.ranks.rank:
        content = _content(result, failure)
        place = task.work_dir / FAILED if failure is not None else task.out_dir / RETURN
        pickles.write(place, content)
    if failure is not None:
        raise failure


def _as_where_submitted(task: Task) -> None:
    """Make modules and relative paths mean what they did where the multirun was started."""
    given = task.params["sys_path"]
    sys.path[:] = [*given, *(entry for entry in sys.path if entry not in given)]
    os.chdir(task.params["cwd"])


def _run_app(task: Task) -> JobReturn:
    # Imported here: before, Hydra's plugins would not be found on the path.
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict, read_write

    calls = Calls.named(task.project, task.params["call"])
    call = pickles.load(calls.call)
    config = pickles.load(calls.config(task.params["number"]))
    Singleton.set_state(call["singletons"])
    setup_globals()
    _name_source(call["task_function"], task.params["app"])
    context = call["hydra_context"]
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.job.id = _job_id()
        if task.ranks.rank:
            config.hydra.output_subdir = None
            context.callbacks.callbacks = []
    return run_job(
        task_function=call["task_function"],
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
        configure_logging=not task.ranks.rank,
    )


def _name_source(function: Any, file: str | None) -> None:
    """Have tracebacks name the app's file: of what was sent by value cloudpickle drops it."""
    if file is None or not isinstance(function, FunctionType):
        return
    for other in [function, *function.__globals__.values()]:
        if isinstance(other, FunctionType) and other.__code__.co_filename == _DYNAMIC:
            other.__code__ = other.__code__.replace(co_filename=file)


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return os.environ.get("SLURM_JOB_ID", "")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"


def _failure(result: JobReturn) -> BaseException | None:
    from hydra.core.utils import JobStatus

    if result.status is not JobStatus.FAILED:
        return None
    error = result._return_value
    return error if isinstance(error, BaseException) else RuntimeError(str(error))


def _content(result: JobReturn, failure: BaseException | None) -> bytes:
    """Return the JobReturn as bytes; what cannot be sent in it is replaced, and a note says so."""
    told = "" if failure is None else "".join(traceback.format_exception(failure))
    kept: dict[str, Any] = {"return": result, "traceback": told, "note": ""}
    try:
        return _checked(kept)
    except Exception as error:
        # Whatever the app's own objects raise. The work is done, and is not to be lost over this.
        why = f"{type(result._return_value).__name__}, cannot be pickled ({error})"
    if failure is None:
        result._return_value = None
        kept["note"] = f"the return value, of type {why} and is lost"
    else:
        result._return_value = RuntimeError(f"{type(failure).__name__}: {failure}")
        kept["note"] = f"the exception, of type {why} and is told as text"
    print(f"note: {kept['note']}", file=sys.stderr)
    content = pickles.dump(kept)
    result._return_value = failure
    return content


def _checked(kept: Any) -> bytes:
    content = pickles.dump(kept)
    # Exceptions with arguments of their own pickle well, and cannot be made of it again.
    pickles.check(content)
    return content


def _let_go_on(task: Task) -> None:
    """Allow the element to requeue the job, where the app was stopped at its time limit in time.

    It asks for a sealed checkpoint; what the app has saved is in its output folder, and whether
    that is something only the app knows.
    """
    allowed = task.params["max_num_timeout"]
    attempts = read_attempts(ProjectPaths.at(task.project).records(task.key))
    spent = [a for a in attempts if (a.end or {}).get("reason") == Reason.TIMEOUT.value]
    if task.ranks.rank or len(spent) >= allowed:
        return
    note = Path(task.work_dir) / "stopped"
    atomic.write_file(note, "stopped at the time limit; the app's own files are where it saves\n")
    checkpoints.seal(task.work_dir, note)
