"""An instance: a step with everything decided that its run needs, as a run's plan records it.

Made by `planning`, read from `plan.json` by `advance`, the worker and `status`. Plain JSON, so that
the worker and the light commands need neither the YAML nor its validation. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core.paths import ProjectPaths

RUN, SKIP = "RUN", "SKIP"
SINGLE_OUTPUT = "out"
"""The name of the output of a step that declares one path, or none."""
SINGLE_INPUT = "input"
"""The name of the input of a step whose `in` is one path."""
NOTHING: Mapping[str, Any] = {}
"""Shared, as nobody changes an instance."""


class Instance(NamedTuple):
    """A step at a point, named by its step key."""

    step: str
    """Its name in the run: the step's id, and in a sweep the part of the points' labels that tells
    it from the step's other instances, as `train@learning_rate=3e-05`."""
    key: str
    uses: str
    kind: str
    backend: str | None
    scheduler: str
    """Where it runs; the one declared in the YAML is in the key document."""
    effect: bool
    params: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    """Name -> what `inputs.ResolvedInput.handed` says; hub names -> {"revision": …}."""
    sources: Mapping[str, Mapping[str, Any]]
    """Name -> what identifies its content, for `meta.json`."""
    outputs: Mapping[str, str | None]
    """Output name -> path as declared; None where none is declared."""
    parents: tuple[str, ...]
    """Steps that must have succeeded first, each once."""
    env: Mapping[str, Any]
    resources: Mapping[str, Any]
    labels: Mapping[str, str]
    document: Mapping[str, Any]
    """The document behind `key`."""
    resolved: Mapping[str, str]
    """What planning filled in: a param's visible default, a hub revision, a model version."""
    action: str
    """RUN or SKIP, as planned."""
    reason: str
    """Why, in words."""
    retry: Mapping[str, Any] = NOTHING
    """What is tried again, where the step says so itself (`core.retries`)."""
    light: bool = False
    """Whether it may run wherever the driver does."""
    resumable: bool = False
    """Whether it saves when asked to stop."""
    snapshot: bool = False
    """Whether its job is to see the whole tracked source as it was at submission."""
    serves: bool = False
    """Whether it is an effect that starts a server for other steps."""
    element: str = ""
    """The instance that serves, itself perhaps, in whose element it runs in Slurm."""
    declared_step: str = ""
    """The id of the step in the document, where `step` is another name."""
    points: tuple[str, ...] = ()
    """The names of the points that it serves (`core.points`); empty in a plain run, and for a step
    of the whole sweep."""

    @property
    def step_id(self) -> str:
        """The id of the step in the document."""
        return self.declared_step or self.step

    def decided(self, action: str, reason: str) -> Instance:
        """Return the instance with what is planned for it."""
        return self._replace(action=action, reason=reason)

    def renamed(self, names: Mapping[str, str]) -> Instance:
        """Return the instance with other names of instances in all its parts."""
        return self._replace(
            step=names[self.step],
            declared_step="" if names[self.step] == self.step_id else self.step_id,
            parents=tuple(names[parent] for parent in self.parents),
            element=names[self.element] if self.element else "",
            inputs={name: _renamed(handed, names) for name, handed in self.inputs.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the instance as `plan.json` holds it, without what is empty; `from_json` is its
        inverse.
        """
        named = zip(self._fields, self, _IS_KEPT, strict=True)
        return {name: value for name, value, is_kept in named if value or is_kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Instance:
        """Return the instance that `to_json` wrote."""
        lists = {name: tuple(value.get(name, ())) for name in ("parents", "points")}
        return cls(**{**_EMPTY, **value, **lists})

    def artifact_paths(self, paths: ProjectPaths) -> dict[str, Path]:
        """Return output name -> the store's folder; empty for an effect."""
        if self.effect:
            return {}
        return artifact_paths(paths, self.key, self.outputs)


def read_steps(handed: Mapping[str, Any]) -> list[str]:
    """Return the instances whose results or servers an input, as `Instance.inputs` has it, may
    read.
    """
    if "best" in handed:
        return [step for pair in handed["best"]["of"] for step in pair]
    return [handed[kind] for kind in _OF_A_STEP if kind in handed]


def _renamed(handed: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    if "best" in handed:
        of = [[names[step] for step in pair] for pair in handed["best"]["of"]]
        return {**handed, "best": {**handed["best"], "of": of}}
    return {**handed, **{kind: names[handed[kind]] for kind in _OF_A_STEP if kind in handed}}


_OF_A_STEP = ("step", "server")
"""Under which an input that is a step's names that step: by its result, or its server."""
_EMPTY: Mapping[str, Any] = {
    "backend": None,
    **dict.fromkeys(("effect", "light", "resumable", "snapshot", "serves"), False),
    **dict.fromkeys(("params", "inputs", "sources", "outputs", "env", "resources"), NOTHING),
    **dict.fromkeys(("labels", "resolved", "retry"), NOTHING),
    "parents": (),
    "points": (),
    "declared_step": "",
    "element": "",
    "reason": "",
}
"""What `plan.json` leaves away."""
_IS_KEPT = [name not in _EMPTY for name in Instance._fields]


def secrets_of(instances: Iterable[Instance]) -> frozenset[str]:
    """Return the names of all environment variables that a step calls secret: each sees all."""
    return frozenset(name for i in instances for name in i.env.get("secrets", ()))


def artifact_paths(paths: ProjectPaths, key: str, outputs: Iterable[str]) -> dict[str, Path]:
    """Return output name -> the store's folder, for the outputs of `key`."""
    return {name: paths.artifact(key, output_name(name)) for name in outputs}


def output_name(name: str) -> str | None:
    """Return how the store calls the output `name`: None for the only one."""
    return None if name == SINGLE_OUTPUT else name
