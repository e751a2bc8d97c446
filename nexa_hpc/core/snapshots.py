"""What a run's jobs start from, as it was at submission: code, and small input files.

    <run>/source/         the project, as links, but for copied files and the folders above
    <run>/source.json     which files were copied, relative to the project root

A job may start days later, when the project has moved on. Files in a step's key (`code`, and what a
`module:function` imports) and inputs of at most `SMALL_BYTES` are copied; with `snapshot: true`,
all that git tracks. Larger inputs are compared with what was planned when the step starts. Taken by
`handover`, used by the worker. Standard library alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.digests import files_below, signature
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.core.runs import Run
from nexa_hpc.errors import InputChangedError, UserError

SMALL_BYTES = 1 << 20


def take_snapshot(run: Run, instances: Iterable[Instance]) -> None:
    """Copy what the jobs of `instances` start from, unless that was done before.

    Raises InputChangedError for what has changed since planning, UserError where `snapshot: true`
    finds no git.
    """
    if run.place.source_list.is_file():
        return
    chosen = list(instances)
    copied = sorted({name for instance in chosen for name in _files(run, instance)})
    if copied:
        _check_inputs(run, chosen, set(copied))
        staged = atomic.temporary_beside(run.place.source)
        try:
            _build(run.paths.root, staged, copied)
            atomic.rename_folder(staged, run.place.source)
        finally:
            atomic.remove_tree(staged)
    atomic.create_once(run.place.source_list, copied)


def source_root(run: Run, instance: Instance) -> Path:
    """Return the folder in which `instance` finds the project's code."""
    taken = instance.scheduler == "slurm" and _copied(run.place.source_list)
    return run.place.source if taken else run.paths.root


def as_submitted(run: Run, instance: Instance, path: Path) -> Path:
    """Return the copy of the file `path` that `instance` is to read; `path` itself without one."""
    if instance.scheduler != "slurm" or not path.is_relative_to(run.paths.root):
        return path
    name = str(path.relative_to(run.paths.root))
    return run.place.source / name if name in _copied(run.place.source_list) else path


def task_as_submitted(run: Run, instance: Instance, task: Task) -> Task:
    """Return `task` with the code and the small inputs that its job was submitted with."""
    inputs = {name: as_submitted(run, instance, path) for name, path in task.inputs.items()}
    return replace(task, inputs=inputs, code=source_root(run, instance))


@lru_cache(maxsize=8)
def _copied(file: Path) -> frozenset[str]:
    return frozenset(read_json_or_none(file) or ())


def _files(run: Run, instance: Instance) -> Iterator[str]:
    """Yield the files to copy for `instance`, relative to the project root."""
    root = run.paths.root
    for name in instance.document["code"]:
        yield from _below(root, root / name)
    for path in _small_inputs(instance):
        if path.is_relative_to(root):
            yield str(path.relative_to(root))
    if instance.snapshot:
        yield from tracked(root)


def _below(root: Path, path: Path) -> Iterator[str]:
    # The very files that are in the key, through links as well.
    for name, _ in files_below(path):
        yield str((path / name).relative_to(root))


def _small_inputs(instance: Instance) -> Iterator[Path]:
    for handed in instance.inputs.values():
        if handed.get("signature") is None:
            continue
        path = Path(handed["path"])
        if path.is_file() and path.stat().st_size <= SMALL_BYTES:
            yield path


def _check_inputs(run: Run, instances: Iterable[Instance], copied: set[str]) -> None:
    for instance in instances:
        for name, handed in instance.inputs.items():
            expected = handed.get("signature")
            path = Path(handed.get("path", ""))
            if expected is None or os.path.relpath(path, run.paths.root) not in copied:
                continue
            if signature(path) != expected:
                raise InputChangedError(
                    f"step '{instance.step}': input {name} ({path}) changed after planning",
                    hint="run the pipeline again: it will plan with the new content",
                )


def tracked(root: Path) -> list[str]:
    """Return the files below `root` that git tracks; UserError where git does not know."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        message = "`snapshot: true` asks git which files are source, and there is no git"
        raise UserError(message) from error
    if done.returncode != 0:
        raise UserError(
            f"`snapshot: true` asks git which files are source: {done.stderr.strip()}",
            hint="git init, or list the files in the step's `code`",
        )
    names = [name for name in done.stdout.split("\0") if name]
    return [name for name in names if (root / name).is_file()]


def _build(root: Path, target: Path, copied: list[str]) -> None:
    """Make `target` look like `root`: links, but for the files `copied` and the folders above."""
    own: dict[str, set[str]] = {"": set()}
    for name in copied:
        parts = name.split(os.sep)
        for depth in range(len(parts)):
            own.setdefault(os.sep.join(parts[:depth]), set()).add(parts[depth])
    for folder, names in own.items():
        atomic.make_folder(target / folder)
        for name in sorted(names):
            place = os.path.join(folder, name)
            if place not in own:
                atomic.copy_file(root / place, target / place)
        for name in os.listdir(root / folder):
            if name not in names:
                atomic.new_link(target / folder / name, str(root / folder / name))
