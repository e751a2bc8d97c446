"""`core.registry.promote`: points a tag at a version, once every byte of its artifact was checked.

    uses: core.registry.promote
    params: {name: movie-sentiment, version: registered, tag: production}

`version` is a number, `latest`, or `registered`: the one that the nearest register step of this
model above it made or found. `require` says what its figures must be like (`requirement`); else the
tag stays where it is. It is an effect: skipped while the tag points there. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.registry_entries import Version
from nexa_hpc.core.registry_names import REGISTERED, name_problem, tag_problem, version_problem
from nexa_hpc.errors import RegistryError, StepError
from nexa_hpc.runners import register, requirement

_REQUIRED = ("name", "version", "tag")


class Promote:
    """The handler."""

    effect = True
    light = True
    once = True

    def validate(self, step: StepView) -> Iterator[tuple[str | None, str]]:
        """Yield what is wrong with the step's params."""
        yield from register.param_problems(step.params, (*_REQUIRED, "require"), required=_REQUIRED)
        rules = {"name": name_problem, "version": _version_problem, "tag": tag_problem}
        for name, problem_of in rules.items():
            if name in step.params and (problem := problem_of(step.params[name])):
                yield f"params.{name}", problem
        if step.params.get("require") is not None:
            yield from requirement.problems(step.params["require"], step.params)

    def metric_of(self, step: StepView) -> tuple[str, str] | None:
        """Return which step's metrics a requirement reads, by its first word."""
        require = step.params.get("require")
        named = requirement.named_step(require) if isinstance(require, Mapping) else None
        return None if named is None else ("params.require.metric", named)

    def above_problem(
        self, params: Mapping[str, Any], above: Mapping[str, Mapping[str, Any]]
    ) -> tuple[str, str] | None:
        """Say what is wrong with the steps that register what is to be promoted."""
        if params["version"] != REGISTERED:
            return None
        try:
            _register_step(params["name"], above)
        except RegistryError as error:
            return "params.version", f"{error} ({error.hint})"
        return None

    def holds(self, task: Task) -> str | None:
        """Say that the tag points there already, and at what it should."""
        version = _version_to_promote(task)
        held = _already(task, version)
        if held is not None:
            try:
                _check(task, version)
            except StepError:
                return None  # The step is to run, and to say so.
        return held

    def run(self, task: Task) -> None:
        """Move the tag, unless an earlier attempt at this step got that far.

        Raises StepError where the version is not what is required.
        """
        version, tag = _version_to_promote(task), task.params["tag"]
        registry = register.registry_of(task)
        for words in _check(task, version):
            print(f"required: {words}")
        held = _already(task, version)
        print(held or registry.promote(version.model, version.number, tag))


handler = Promote()


def _version_problem(version: object) -> str | None:
    if version == REGISTERED:
        return None
    problem = version_problem(version)
    return problem and f"{problem}, or {REGISTERED}"


def _check(task: Task, version: Version) -> list[str]:
    """Return in words that the version is what is required, if anything is; raises StepError."""
    require, registry = task.params.get("require"), register.registry_of(task)
    if require is None:
        return []
    try:
        return [requirement.check(require, version, task, registry)]
    except StepError as error:
        tag = registry.current(version.model, task.params["tag"])
        at = None if tag is None else tag.version
        stays = f"stays at version {at}" if at is not None else "is not set"
        message = f"{error}; the tag {task.params['tag']} {stays}"
        raise StepError(message, hint=error.hint) from error


def _already(task: Task, version: Version) -> str | None:
    tag = register.registry_of(task).current(version.model, task.params["tag"])
    if tag is None or tag.version != version.number:
        return None
    return f"{tag.name} is already version {version.number}"


def _version_to_promote(task: Task) -> Version:
    if task.params["version"] == REGISTERED:
        return _registered(task)
    return register.registry_of(task).version(task.params["name"], task.params["version"])


def _registered(task: Task) -> Version:
    """Return the version of the nearest register step of this model above `task`."""
    name = task.params["name"]
    step = _register_step(name, task.upstream)
    inputs = task.upstream[step]["inputs"]
    registry, artifact = register.registry_of(task), register.artifact_of(inputs)
    # Versions may differ in their meta alone. A meta file changed since is no reason to find none.
    found = registry.find_version(
        name, artifact.hash, register.meta_of(inputs)
    ) or registry.find_version(name, artifact.hash)
    if found is None:
        raise RegistryError(
            f"the version of {name} that step '{step}' registers is not there; was it deleted?",
            hint=f"run 'nexa-hpc models show {name}', or rerun --from {step}",
        )
    return found


def _register_step(name: str, above: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the nearest of the steps `above` that registers the model `name`.

    Raises RegistryError where there is none, or several are as near.
    """
    near = {
        step: found["distance"]
        for step, found in above.items()
        if found["uses"] == register.USES and found["params"].get("name") == name
    }
    steps = [step for step in near if near[step] == min(near.values())]
    if len(steps) != 1:
        raise RegistryError(
            f"version: {REGISTERED} needs one step above that registers {name}; there are "
            f"{len(steps)}" + (f" as near: {', '.join(sorted(steps))}" if steps else ""),
            hint="say the version's number or latest, or name the register step in `after`",
        )
    return steps[0]
