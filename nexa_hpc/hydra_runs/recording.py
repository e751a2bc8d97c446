"""Recording a batch of points as a run, after all that its jobs read has been written.

Configs are composed here, once: an edit of a file reaches no job that was submitted before. Called
by `session`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.singleton import Singleton
from omegaconf import open_dict, read_write

from nexa_hpc import driving
from nexa_hpc.core.batches import new_token
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.paths import RESERVED_PIPELINE_NAMES
from nexa_hpc.core.runs import Run, create_run
from nexa_hpc.errors import UserError
from nexa_hpc.hydra_runs import pickles
from nexa_hpc.hydra_runs.options import Options
from nexa_hpc.hydra_runs.places import Calls, Place
from nexa_hpc.hydra_runs.points import Point, instance_of
from nexa_hpc.rearming import AdvanceJob
from nexa_hpc.schedulers.slurm.terms import Terms

if TYPE_CHECKING:
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from nexa_hpc.hydra_runs.session import Session


def compose(session: Session, point: Point) -> DictConfig:
    """Return the config of `point`: what its jobs get, however late they start."""
    loader = session.hydra_context.config_loader
    config = loader.load_sweep_config(session.config, list(point.overrides))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.job.num = point.number
        # The job puts its own id there; a text that names it has something to show until then.
        config.hydra.job.id = f"job_id_for_{point.number}"
    if session.given["resume"] is not None:
        set_sweep_dir(config, session.place)
    return config


def set_sweep_dir(config: DictConfig, place: Place) -> None:
    """Have a config point at a sweep's folder, whatever it was composed with."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(place.sweep)


def record(
    session: Session,
    points: Sequence[Point],
    configs: Mapping[str, DictConfig],
    options: Options,
    terms: Terms,
) -> Run:
    """Record a run of `points`, after all that its jobs read has been written.

    Those that are done have none of `configs`; they are in it, so that `status` shows the whole.
    """
    earlier, session.multirun.runs = session.multirun.runs, ()
    for run in earlier:
        _retire(run)
    token = new_token()
    _write_calls(session, Calls.named(session.place.root, token), points, configs)
    params = {
        "call": token,
        "cwd": str(Path.cwd()),
        "sys_path": [str(Path(entry).absolute()) for entry in sys.path],
        "app": _file_of(session.task_function),
        "max_num_timeout": options.max_num_timeout,
    }
    instances = [
        instance_of(p, params, options.resources, options.retry, is_done=p.key not in configs)
        for p in points
    ]
    request = {"slurm": terms.to_json(), "hydra_multirun": session.multirun.id, "file": None}
    return create_run(session.place.paths, _pipeline_name(session.config), request, instances)


def _retire(earlier: Run) -> None:
    """Leave what an earlier session has under way to this one."""
    # Jobs that nobody has seen end: what they failed of counts as before this session.
    driving.close_ended(earlier)
    terms = Terms.of(earlier.request)
    assert terms is not None, "a multirun is in Slurm"
    # Its advance job would try again what a person cancels from now on.
    driver = Driver.this_process(earlier.place.drivers, earlier.paths.state)
    AdvanceJob(earlier, terms, terms.queue(), driver).disarm()


def _write_calls(
    session: Session, calls: Calls, points: Sequence[Point], configs: Mapping[str, DictConfig]
) -> None:
    try:
        content = pickles.dump(
            {
                "task_function": session.task_function,
                "hydra_context": session.hydra_context,
                "singletons": Singleton.get_state(),
            }
        )
    except Exception as error:
        # Whatever the app's objects raise: locks, open files, connections.
        raise UserError(
            f"the app cannot be sent to its jobs: {type(error).__name__}: {error}",
            hint="what the task function, callbacks and resolvers refer to must be picklable; "
            "make locks, open files and connections inside the task function",
        ) from error
    asked = [point for point in points if point.key in configs]
    files = {calls.config(p.number): pickles.dump(configs[p.key]) for p in asked}
    pickles.write_new({calls.call: content, **files})


def _file_of(function: TaskFunction) -> str | None:
    code = getattr(function, "__code__", None)
    return None if code is None else str(Path(code.co_filename).absolute())


def _pipeline_name(config: DictConfig) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(config.hydra.job.name))[:40] or "app"
    return f"{name}_" if name in RESERVED_PIPELINE_NAMES else name
