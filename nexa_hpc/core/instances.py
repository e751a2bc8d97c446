"""An instance: a step with everything decided that its run needs, as a run's plan records it.

Made by `planning`, read from `plan.json` by `advance`, the worker and `status`. Plain JSON, so that
the worker and the light commands need neither the YAML nor its validation. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core.paths import ProjectPaths

RUN, SKIP = "RUN", "SKIP"
SINGLE_OUTPUT = "out"
"""The name of the output of a step that declares one path, or none."""
SINGLE_INPUT = "input"
"""The name of the input of a step whose `in` is one path."""


@dataclass(frozen=True)
class Instance:
    """A step at a point, named by its step key."""

    step: str
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
    """Steps that must have succeeded first."""
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

    def decided(self, action: str, reason: str) -> Instance:
        """Return the instance with what is planned for it."""
        return Instance(**{**vars(self), "action": action, "reason": reason})

    def to_json(self) -> dict[str, Any]:
        """Return the instance as `plan.json` holds it; `from_json` is its inverse."""
        return {**vars(self), "parents": list(self.parents)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Instance:
        """Return the instance that `to_json` wrote."""
        return cls(**{**value, "parents": tuple(value["parents"])})

    def artifact_paths(self, paths: ProjectPaths) -> dict[str, Path]:
        """Return output name -> the store's folder; empty for an effect."""
        if self.effect:
            return {}
        return artifact_paths(paths, self.key, self.outputs)


def artifact_paths(paths: ProjectPaths, key: str, outputs: Iterable[str]) -> dict[str, Path]:
    """Return output name -> the store's folder, for the outputs of `key`."""
    return {name: paths.artifact(key, None if name == SINGLE_OUTPUT else name) for name in outputs}
