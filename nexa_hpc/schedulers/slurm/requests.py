"""What is asked of Slurm for a step: its resources over the defaults, in submitit's parameters.

Texts that reach an sbatch script are checked for line breaks here, whoever wrote them. Called by
planning (through `problems`) and by `handover`. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.core.quoting import shown
from nexa_hpc.core.trying import Changes

DEFAULT_TIMEOUT_MIN = 60
_DEFAULT_SIGNAL_S = 120
_ALTERNATIVES = (
    frozenset(("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb")),
    frozenset(("gpus_per_node", "gpus_per_task", "gres")),
)
_FROM_ENVIRONMENT = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
}
_SAME = (
    "nodes", "cpus_per_task", "gpus_per_node", "gpus_per_task", "partition", "account", "qos",
    "constraint", "gres", "nodelist", "exclude",
)  # fmt: skip
_RESERVED = {
    "array": "nexa_hpc makes the arrays",
    "dependency": "nexa_hpc knows what waits for what",
    "job-name": "it holds the token by which a job is found again",
    "comment": "it names the run",
    "output": "logs go to the run's folder: nexa-hpc logs",
    "error": "logs go to the run's folder: nexa-hpc logs",
    "open-mode": "logs are appended to, as a requeued job goes on in the same file",
    "requeue": "say `requeue: false` in configs/cluster/<name>.yaml",
    "no-requeue": "say `requeue: false` in configs/cluster/<name>.yaml",
    "signal": "say `signal_delay_s` in `resources`",
    "kill-on-invalid-dep": "nexa_hpc sets it",
    "export": "the environment of a step is in its `env`",
    "wrap": "nexa_hpc writes the script",
    "chdir": "a step runs in the project root",
    "parsable": "nexa_hpc reads the answer",
    "wait": "add `--wait` to `nexa-hpc run`",
    "time": "say `timeout_min` in `resources`",
    "mem": "say `mem_gb` in `resources`",
    "nodes": "say `nodes` in `resources`",
    "ntasks": "say `tasks_per_node` in `resources`",
    "ntasks-per-node": "say `tasks_per_node` in `resources`",
}
"""Options of sbatch that `slurm.extra` may not hold, and what to do instead."""


def environment_defaults() -> dict[str, str]:
    """Return what sbatch itself would take from the environment (sbatch(1))."""
    return {
        name: os.environ[variable]
        for name, variable in _FROM_ENVIRONMENT.items()
        if os.environ.get(variable)
    }


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return resources with those of later layers in the place of earlier ones.

    Of alternatives, such as `mem_gb` and `mem_per_cpu_gb`, the last named one counts.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        for group in _ALTERNATIVES:
            if group & given.keys():
                found = {name: value for name, value in found.items() if name not in group}
        extra = {
            **found.get("slurm", {}).get("extra", {}),
            **given.get("slurm", {}).get("extra", {}),
        }
        found.update(given)
        if extra:
            found["slurm"] = {"extra": extra}
    return found


def parameters(
    resources: Mapping[str, Any],
    *,
    time_min: int,
    requeue: bool,
    changes: Changes | None = None,
) -> dict[str, Any]:
    """Return what submitit's SlurmExecutor takes for an element that may run `time_min`."""
    changes = changes or Changes()
    found = {name: resources[name] for name in _SAME if resources.get(name) is not None}
    for name in ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb"):
        if resources.get(name) is not None:
            found[name.removesuffix("_gb")] = memory(resources[name] * changes.mem_factor)
    if resources.get("tasks_per_node"):
        found["ntasks_per_node"] = resources["tasks_per_node"]
    if changes.exclude:
        named = [found["exclude"]] if "exclude" in found else []
        found["exclude"] = ",".join([*named, *changes.exclude])
    if resources.get("exclusive"):
        found["exclusive"] = True
    if tasks(resources) > 1:
        # Ranks that are left wait for one that is gone until the time limit.
        found["srun_args"] = ["--kill-on-bad-exit=1"]
    found["time"] = time_min
    found["signal_delay_s"] = signal_delay_s(resources, time_min)
    found["additional"] = {**_additional(resources), **_always(requeue=requeue)}
    return found


def memory(amount_gb: float) -> str:
    """Return an amount of memory as Slurm takes it, in MiB."""
    return f"{max(1, round(amount_gb * 1024))}M"


def signal_delay_s(resources: Mapping[str, Any], time_min: int) -> int:
    """Return how long before its time limit an element is told to save.

    Slurm may tell it up to 60 s too early (sbatch(1), --signal); of a short limit it is a third.
    """
    declared = resources.get("signal_delay_s")
    return int(declared) if declared else min(_DEFAULT_SIGNAL_S, time_min * 60 // 3)


def tasks(resources: Mapping[str, Any]) -> int:
    """Return how many tasks an element has."""
    return int(resources.get("nodes") or 1) * int(resources.get("tasks_per_node") or 1)


def gpus(resources: Mapping[str, Any]) -> int:
    """Return how many GPUs an element has, as far as they are counted by a number."""
    nodes = int(resources.get("nodes") or 1)
    if resources.get("gpus_per_node"):
        return nodes * int(resources["gpus_per_node"])
    return tasks(resources) * int(resources.get("gpus_per_task") or 0)


def _additional(resources: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if resources.get("reservation"):
        found["reservation"] = resources["reservation"]
    for name, value in resources.get("slurm", {}).get("extra", {}).items():
        if value not in (False, None):
            found[name.lstrip("-").replace("_", "-")] = value
    return found


def _always(*, requeue: bool) -> dict[str, Any]:
    return {"kill-on-invalid-dep": "yes", "requeue" if requeue else "no-requeue": True}


def problems(resources: Mapping[str, Any], limit_min: int | None) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what cannot be asked of a partition that allows `limit_min`."""
    for name, value in resources.items():
        if isinstance(value, str) and not value.isprintable():
            yield f"resources.{name}", "has a line break or another control character"
    for name, value in resources.get("slurm", {}).get("extra", {}).items():
        key = f"resources.slurm.extra.{shown(name)}"
        option = name.lstrip("-").replace("_", "-")
        if not option.replace("-", "").isalnum():
            yield key, "is no option of sbatch"
        elif option in _RESERVED:
            yield key, f"is not yours to set: {_RESERVED[option]}"
        elif isinstance(value, str) and not value.isprintable():
            yield key, "has a line break or another control character"
    timeout_min = resources.get("timeout_min") or DEFAULT_TIMEOUT_MIN
    if limit_min is not None and timeout_min > limit_min:
        where = f"partition '{resources['partition']}'" if resources.get("partition") else "default"
        yield (
            "resources.timeout_min",
            f"{timeout_min} is more than the {limit_min} min of the {where} allows; name another "
            "partition, or ask for less and let the step go on from its checkpoints "
            "(`retry.total_time_min` bounds all attempts)",
        )
