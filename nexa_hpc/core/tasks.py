"""Builds the `Task` that a handler's `run` or `holds` gets from a recorded instance.

Called by planning (for effects) and by the worker. Standard library alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.core.best import choose
from nexa_hpc.core.checkpoints import Checkpoint
from nexa_hpc.core.endpoints import Endpoint, server_name
from nexa_hpc.core.handlers import Progress, Task
from nexa_hpc.core.instances import Instance, artifact_paths, secrets_of
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.ranks import ALONE, Ranks

Instances = Mapping[str, Instance]


def make_task(
    instance: Instance,
    instances: Instances,
    paths: ProjectPaths,
    *,
    attempt: int = 0,
    outputs: Mapping[str, Path] | None = None,
    work_dir: Path | None = None,
    resume: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    ranks: Ranks = ALONE,
    endpoints: Mapping[str, Endpoint] | None = None,
) -> Task:
    """Return the task for one attempt at `instance`; `instances` is its whole plan by step id."""
    return Task(
        step_id=instance.step,
        uses=instance.uses,
        backend=instance.backend,
        key=instance.key,
        attempt=attempt,
        params=instance.params,
        inputs=input_paths(instance, instances, paths),
        revisions={
            name: handed["revision"]
            for name, handed in instance.inputs.items()
            if "revision" in handed
        },
        outputs=outputs or {},
        work_dir=work_dir or paths.work_of(instance.key),
        resume=resume,
        resources=instance.resources,
        project=paths.root,
        registry=paths.registry,
        scheduler=instance.scheduler,
        servers=paths.servers,
        server=server_name(instance) if instance.serves else "",
        endpoints=endpoints or {},
        upstream=_upstream(instance, instances, paths),
        labels=instance.labels,
        secrets=tuple(sorted(secrets_of(instances.values()))) if instance.serves else (),
        on_progress=on_progress,
        ranks=ranks,
    )


def input_paths(instance: Instance, instances: Instances, paths: ProjectPaths) -> dict[str, Path]:
    """Return input name -> absolute path; steps' results are named by their place in the store,
    and their servers by their names.

    Raises StepError where the best of several cannot be told.
    """
    found = {}
    for name, handed in instance.inputs.items():
        if "path" in handed:
            found[name] = Path(handed["path"])
        elif "step" in handed:
            found[name] = step_path(handed, instances, paths)
        elif "server" in handed:
            found[name] = Path(server_name(instances[handed["server"]]))
        elif "best" in handed:
            chosen = {**handed, "step": choose(handed, instances, paths).step}
            found[name] = step_path(chosen, instances, paths)
    return found


def step_path(handed: Mapping[str, Any], instances: Instances, paths: ProjectPaths) -> Path:
    """Return where the result that `handed` names lies, or will lie, in the store."""
    producer = instances[handed["step"]]
    folder = artifact_paths(paths, producer.key, [handed["output"]])[handed["output"]]
    return folder / handed["below"] if handed["below"] else folder


def _upstream(
    instance: Instance, instances: Instances, paths: ProjectPaths
) -> dict[str, Mapping[str, Any]]:
    return {
        step: {
            **told,
            "inputs": input_paths(instances[step], instances, paths),
            "key": instances[step].key,
            "step": instances[step].step_id,
            "results": instances[step].artifact_paths(paths),
        }
        for step, told in steps_above(instance, instances).items()
    }


def steps_above(instance: Instance, instances: Instances) -> dict[str, dict[str, Any]]:
    """Return every step above `instance` -> its "uses", "params" and "distance", nearest first."""
    found: dict[str, dict[str, Any]] = {}
    waiting = deque((parent, 1) for parent in instance.parents)
    while waiting:
        step, distance = waiting.popleft()
        if step in found:
            continue
        above = instances[step]
        found[step] = {"uses": above.uses, "params": above.params, "distance": distance}
        waiting.extend((parent, distance + 1) for parent in above.parents)
    return found
