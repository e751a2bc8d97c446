"""`core.registry.register`: makes an artifact the next version of a model.

    uses: core.registry.register
    params: {name: movie-sentiment, uri: train, meta: eval/metrics.json}

`uri` and `meta` are inputs: a step's id, its `out`, or a path; in `in` the artifact may go by any
name. It is an effect: skipped while a version with this artifact and this `meta` exists.
Standard library alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nexa_hpc.core.artifacts import Artifact
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.registry import Registry, artifact_to_register
from nexa_hpc.core.registry_meta import read_meta
from nexa_hpc.core.registry_names import name_problem
from nexa_hpc.errors import RegistryError, nearest

USES = "core.registry.register"
_PARAMS = ("name", "uri", "meta")


class Register:
    """The handler."""

    effect = True
    light = True
    input_params: ClassVar[Mapping[str, str]] = {"uri": "path", "meta": "path"}

    def validate(self, step: StepView) -> Iterator[tuple[str | None, str]]:
        """Yield what is wrong with the step's params and inputs."""
        yield from param_problems(step.params, _PARAMS, required=("name",))
        if "name" in step.params and (problem := name_problem(step.params["name"])):
            yield "params.name", problem
        try:
            artifact_input({*step.inputs, *({"uri"} & step.params.keys())})
        except RegistryError as error:
            yield "params.uri", str(error)

    def holds(self, task: Task) -> str | None:
        """Say which version is this artifact already."""
        artifact, meta = artifact_of(task.inputs), meta_of(task.inputs)
        version = registry_of(task).find_version(task.params["name"], artifact.hash, meta)
        return None if version is None else f"{version} is this artifact"

    def run(self, task: Task) -> None:
        """Register the artifact, unless an earlier attempt at this step got that far."""
        held = self.holds(task)
        if held is not None:
            print(held)
            return
        version = registry_of(task).register(
            task.params["name"],
            artifact_of(task.inputs).path,
            meta_of(task.inputs),
            source={"step": task.step_id, "labels": dict(task.labels)},
        )
        print(f"registered {version} ({version.path})")


handler = Register()


def artifact_of(inputs: Mapping[str, Path]) -> Artifact:
    """Return the artifact that a register step with these inputs registers."""
    return artifact_to_register(inputs[artifact_input(inputs)])


def meta_of(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return what a register step with these inputs says about its version."""
    return read_meta(inputs["meta"]) if "meta" in inputs else {}


def artifact_input(names: Collection[str]) -> str:
    """Return which of these inputs is the artifact: `uri`, or the only one but `meta`."""
    if "uri" in names:
        return "uri"
    others = sorted(set(names) - {"meta"})
    if len(others) == 1:
        return others[0]
    raise RegistryError(
        f"which input is the artifact: {', '.join(others)}? name it uri"
        if others
        else "what is to be registered? name a step or an artifact's folder as uri"
    )


def param_problems(
    params: Mapping[str, Any], known: Collection[str], required: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield a problem for each unknown param and for each required one that is missing."""
    for name in params:
        if name not in known:
            offered = nearest(name, known) or f" (it takes: {', '.join(known)})"
            yield f"params.{name}", f"unknown param{offered}"
    for name in required:
        if name not in params:
            yield f"params.{name}", "is required"


def registry_of(task: Task) -> Registry:
    """Return the registry of the task's project."""
    return Registry(task.registry, project=task.project)
