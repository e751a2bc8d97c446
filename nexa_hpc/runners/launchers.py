"""How the command of a `runners.command` step becomes several processes: its `launcher`.

    none         once, in one task
    srun         once in each task that Slurm has started
    torchrun     by torch.distributed.run, one of them on each node
    accelerate   by `accelerate launch`, one of them on each node

The last two start as many processes on a node as `tasks_per_node` says, or else `gpus_per_node`;
only the first task of each node has something to do. torch and accelerate are those of the Python
that runs the step, and are not imported here. Used by `command` and `train_axolotl`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.ranks import ALONE, Ranks, declared_tasks
from nexa_hpc.errors import StepError, nearest

NONE, SRUN, TORCHRUN, ACCELERATE = "none", "srun", "torchrun", "accelerate"
LAUNCHERS = (NONE, SRUN, TORCHRUN, ACCELERATE)
_LIBRARIES = {TORCHRUN: "torch", ACCELERATE: "accelerate"}
_TORCHRUN = ("torch.distributed.run", "--no-python")
_ACCELERATE = ("accelerate.commands.launch", "--no_python")
"""The module of each, and the option after which a command follows that is no Python script."""


def launcher_of(params: Mapping[str, Any]) -> str:
    """Return the launcher that `params` name."""
    return str(params.get("launcher") or NONE)


def problems(step: StepView) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the launcher of `step`, and with it and the resources together."""
    launcher = launcher_of(step.params)
    if launcher not in LAUNCHERS:
        yield (
            "params.launcher",
            f"expected one of {', '.join(LAUNCHERS)}{nearest(launcher, LAUNCHERS)}",
        )
        return
    tasks = declared_tasks(step.resources)
    if launcher == NONE and tasks > 1:
        yield (
            "params.launcher",
            f"{tasks} tasks are asked for, and `launcher: none` runs the command in one: take srun "
            "(the command in each task), torchrun or accelerate; or `nodes: 1, tasks_per_node: 1`",
        )
    library = _LIBRARIES.get(launcher)
    if library and not step.is_elsewhere and importlib.util.find_spec(library) is None:
        yield "params.launcher", f"{launcher} needs {library}, which is not installed here"


def processes_per_node(resources: Mapping[str, Any], ranks: Ranks) -> int:
    """Return how many processes torchrun or accelerate start on a node."""
    if ranks.local_size > 1:
        return ranks.local_size
    for name in ("tasks_per_node", "gpus_per_node", "gpus_per_task"):
        count = resources.get(name)
        if isinstance(count, int) and count > 0:
            return count
    return 1


@dataclass(frozen=True)
class Launch:
    """What a task starts."""

    argv: list[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    starts_sessions: bool = False
    """Whether what it starts has process groups of its own."""

    def cleaned(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return `environ` without the ranks of the tasks, where other ones are to be made."""
        dropped = ALONE.variables() if self.starts_sessions else ()
        return {name: value for name, value in environ.items() if name not in dropped}


def launch(task: Task, shell: Sequence[str]) -> Launch | None:
    """Return what runs `shell` as the launcher of `task` says.

    None for a task that has nothing to start. Raises StepError where there are not as many nodes or
    tasks as the step asks for.
    """
    launcher = launcher_of(task.params)
    if launcher == NONE:
        return Launch([*shell])
    if launcher == SRUN:
        ranks = _ranks(task)
        _check_size(task, launcher, ranks)
        return Launch([*shell], ranks.variables())
    found = node_launcher(task, launcher)
    if found is None:
        return None
    options, variables = found
    start = _TORCHRUN if launcher == TORCHRUN else _ACCELERATE
    argv = [sys.executable, "-m", *start[:1], *options, *start[1:], *shell]
    return Launch(argv, variables, starts_sessions=True)


def node_launcher(
    task: Task, launcher: str, each: int | None = None
) -> tuple[list[str], dict[str, str]] | None:
    """Return the options and variables of the one torchrun or accelerate on this task's node.

    It starts `each` processes, by default as many as `processes_per_node` says. None for a task
    that is not the first of its node. Raises StepError where there are not as many nodes as the
    step asks for.
    """
    ranks = _ranks(task)
    _check_size(task, launcher, ranks)
    if ranks.local_rank:
        return None
    each = each or processes_per_node(task.resources, ranks)
    options = _torchrun_options if launcher == TORCHRUN else _accelerate_options
    variables = {
        "MASTER_ADDR": ranks.master_address,
        "MASTER_PORT": str(ranks.master_port),
        "NNODES": str(ranks.nodes),
        "NODE_RANK": str(ranks.node_rank),
    }
    if launcher == ACCELERATE and not _asks_for_gpus(task.resources):
        variables["ACCELERATE_USE_CPU"] = "true"
    return options(ranks, each), variables


def _ranks(task: Task) -> Ranks:
    ranks = task.ranks
    return ranks if ranks.size > 1 else ranks.met_at(ranks.meeting_place())


def _check_size(task: Task, launcher: str, ranks: Ranks) -> None:
    nodes = task.resources.get("nodes") or 1
    wanted, found, what = nodes, ranks.nodes, "nodes"
    if launcher == SRUN:
        wanted, found, what = declared_tasks(task.resources), ranks.size, "tasks"
    if wanted != found:
        raise StepError(
            f"the step asks for {wanted} {what}, and runs in {found}",
            hint="run it on Slurm, or ask for one node and take `launcher: torchrun`",
        )


def _torchrun_options(ranks: Ranks, each: int) -> list[str]:
    return [
        f"--nnodes={ranks.nodes}",
        f"--node-rank={ranks.node_rank}",
        f"--nproc-per-node={each}",
        f"--master-addr={ranks.master_address}",
        f"--master-port={ranks.master_port}",
    ]


def _accelerate_options(ranks: Ranks, each: int) -> list[str]:
    count = ranks.nodes * each
    return [
        f"--num_machines={ranks.nodes}",
        f"--machine_rank={ranks.node_rank}",
        f"--num_processes={count}",
        f"--main_process_ip={ranks.master_address}",
        f"--main_process_port={ranks.master_port}",
        "--same_network",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        *(["--multi_gpu"] if count > 1 else []),
    ]


def _asks_for_gpus(resources: Mapping[str, Any]) -> bool:
    counted = any(resources.get(name) for name in ("gpus_per_node", "gpus_per_task"))
    return counted or "gpu" in (resources.get("gres") or "")
