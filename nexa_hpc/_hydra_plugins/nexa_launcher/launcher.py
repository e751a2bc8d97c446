"""`hydra/launcher=nexa_slurm`: the points of a multirun of any Hydra app as jobs in Slurm.

    python app.py -m hydra/launcher=nexa_slurm lr=1e-3,1e-4 hydra.launcher.gpus_per_node=1

Hydra loads this module into each of its apps in this environment: the rest is imported when points
are launched. It loads it before it is in `sys.modules`, where dataclasses would look up annotations
that are texts: so there is no `from __future__ import annotations`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from nexa_hpc.hydra_runs.session import Session

# Hydra takes types and defaults from here. The names, but for the first five, are those of a step's
# `resources` in a pipeline, and what is left out is as the project's and the site's files have it:
# configs/scheduler/slurm.yaml, configs/cluster/<name>.yaml.


@dataclass
class Retry:
    """What is tried again, as in pipelines: how often, or {times: 2, mem_factor: 1.5} and so on."""

    out_of_memory: Any = None
    timeout: Any = None
    node_fail: Any = None
    exception: Any = None
    total_time_min: int | None = None


@dataclass
class SlurmOnly:
    """What only Slurm understands."""

    extra: Any = None
    """Options of sbatch as they are, without the dashes: {licenses: matlab}."""


@dataclass
class NexaSlurmConf:
    """What may be said under `hydra.launcher`."""

    _target_: str = "hydra_plugins.nexa_launcher.launcher.NexaSlurmLauncher"
    detach: bool = False
    """Return when all is submitted, with handles in the place of return values; with Hydra's own
    sweeper alone. `resume` collects the results."""
    resume: str | None = None
    """The folder of an earlier multirun: its jobs that are done are not run again."""
    max_num_timeout: int = 0
    """How often a job that reaches its time limit goes on in the same output folder. Above 0, the
    app gets a KeyboardInterrupt `signal_delay_s` before the limit, to save."""
    retry: Retry = field(default_factory=Retry)
    nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    mem_gb: float | None = None
    mem_per_cpu_gb: float | None = None
    mem_per_gpu_gb: float | None = None
    timeout_min: int | None = None
    signal_delay_s: int | None = None
    array_parallelism: int | None = None
    """How many jobs of the multirun may run at a time."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gres: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool | None = None
    slurm: SlurmOnly = field(default_factory=SlurmOnly)


class NexaSlurmLauncher(Launcher):
    """Launches the batches of one multirun."""

    def __init__(self, **options: Any) -> None:
        """`options` are the fields of `NexaSlurmConf`."""
        self._options = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in options.items()
        }
        self._session: Session | None = None

    def setup(
        self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig"
    ) -> None:
        """See Hydra's `Launcher`; refuses at once what cannot be, before anything is written."""
        # Imported here: see above.
        from nexa_hpc.hydra_runs.session import open_session

        self._session = open_session(self._options, hydra_context, task_function, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> "Sequence[JobReturn]":
        """Return a JobReturn for each point, in order; of those that failed as well."""
        from nexa_hpc.hydra_runs.session import launch

        assert self._session is not None, "Hydra sets a launcher up first"
        return launch(self._session, job_overrides, initial_job_idx)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


ConfigStore.instance().store(
    group="hydra/launcher", name="nexa_slurm", node=NexaSlurmConf, provider="nexa_launcher"
)
