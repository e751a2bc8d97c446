"""A run's results as real files elsewhere: copied, compared byte by byte, whole or not at all.

    <dest>/<out>                  what a step declares
    <dest>/<pipeline>/<step>      of a step without `out`, and of those of a sweep's points

Each folder holds meta.json and COMPLETE as well, so it is an artifact by itself. Called by the
command `artifacts export`. Standard library alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.artifacts import COMPLETE, META, Artifact, open_artifact, verify
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.errors import ArtifactError, UserError


def export_run(run: Run, dest: Path) -> list[Artifact]:
    """Copy every artifact of `run` to its place below `dest` and return the copies.

    Before anything is copied, raises UserError when something is at one of those places or `dest`
    is where the project keeps its own, ArtifactError when a result is not there. Raises
    ArtifactError when a copy differs from what was published; copies made until then stay.
    """
    home = Path(os.path.abspath(dest))
    _check_home(run, home)
    chosen = [
        (open_artifact(place), _target(home, run, instance, name))
        for instance in run.instances.values()
        for name, place in instance.artifact_paths(run.paths).items()
    ]
    for _, target in chosen:
        if os.path.lexists(target):
            raise UserError(f"{target} exists; it is not overwritten", hint="choose another DEST")
    return [_copy(artifact, target) for artifact, target in chosen]


def _check_home(run: Run, home: Path) -> None:
    real = Path(os.path.realpath(home))
    for name in ("store", "registry", "state", "work"):
        kept = getattr(run.paths, name)
        if real.is_relative_to(os.path.realpath(kept)):
            raise UserError(f"{home} lies inside the project's own {kept}; choose another DEST")


def _target(home: Path, run: Run, instance: Instance, name: str) -> Path:
    declared = instance.outputs[name]
    if declared is None or instance.points:
        return home / run.pipeline / instance.step
    # An absolute `out` keeps its names, below `home`.
    target = Path(os.path.normpath(f"{home}/{declared}"))
    if not target.is_relative_to(home) or target == home:
        raise UserError(f"step '{instance.step}': its `out` {declared} leads out of {home}")
    return target


def _copy(artifact: Artifact, target: Path) -> Artifact:
    staged = atomic.temporary_beside(target)
    names = list(artifact.meta["files"])
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise ArtifactError(f"{artifact.path}: its meta.json names files outside of it")
    try:
        for name in [*names, META, COMPLETE]:
            atomic.make_folder((staged / name).parent)
            atomic.copy_file(artifact.path / name, staged / name)
        wrong = verify(open_artifact(staged))
        if wrong:
            raise ArtifactError(
                f"{artifact.path}: {'; '.join(wrong)}",
                hint="move it away and run the pipeline again; nothing damaged was exported",
            )
        for folder, _, _ in os.walk(staged):
            atomic.sync_folder(Path(folder))
        if not atomic.rename_folder(staged, target):
            raise UserError(f"{target} exists; it is not overwritten", hint="choose another DEST")
    finally:
        atomic.remove_tree(staged)
    return Artifact(str(target), artifact.meta)
