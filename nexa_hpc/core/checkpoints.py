"""Sealed checkpoints: which half of a killed attempt's work may be trusted by the next one.

A checkpoint is a file or a folder inside an attempt's work folder. It is *sealed* by a small file
`sealed/<n>.json` written once all its bytes are durable, listing its files with their sizes and
times; only sealed ones that are still so are resumed from. Written by the handlers' own process
(`seal`, or `snapshot` for files that their writer will replace), read by the worker when it starts
a later attempt (`newest`). Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.reading import list_names, read_json_or_none

_SEALS = "sealed"
_SNAPSHOTS = "snapshots"
_SNAPSHOTS_KEPT = 2
OWN_FOLDERS = (_SEALS, _SNAPSHOTS)
"""Names in a work folder that are not the handler's."""


@dataclass(frozen=True)
class Checkpoint:
    """A sealed checkpoint: the file or folder, and the attempt's work folder it is in."""

    work_dir: Path
    path: Path


def seal(work_dir: Path, checkpoint: Path) -> None:
    """Make `checkpoint`, a file or folder inside `work_dir`, durable and then trusted.

    Sealing the same path again, after more was written to it, replaces nothing: the newest seal
    wins.
    """
    states = {}
    folders, files = _parts_of(checkpoint)
    for file in files:
        atomic.sync_file(file)
        states[str(file.relative_to(work_dir))] = _state(file)
    for folder in [*folders, checkpoint.parent]:
        atomic.sync_folder(folder)
    seals = work_dir / _SEALS
    number = max((int(name[:-5]) for name in _seal_names(seals)), default=0) + 1
    content = {"path": str(checkpoint.relative_to(work_dir)), "files": states}
    while not atomic.create_once(seals / f"{number}.json", content):
        number += 1


def snapshot(work_dir: Path, files: Sequence[Path]) -> bool:
    """Seal `files`, all inside `work_dir`, as they are now, by links to the same bytes.

    False, and nothing is sealed, where one of them has gone, as writers remove old checkpoints.
    A writer that replaces them by renaming does not touch the snapshot; one that rewrites them in
    place spoils it, which its sizes and times tell. The last two snapshots are kept.
    """
    home = work_dir / _SNAPSHOTS
    numbers = sorted(int(name) for name in list_names(home) if name.isdigit())
    folder = home / str(numbers[-1] + 1 if numbers else 1)
    try:
        for file in files:
            atomic.link_file(file, folder / file.relative_to(work_dir))
    except FileNotFoundError:
        atomic.remove_tree(folder)
        return False
    seal(work_dir, folder)
    for number in numbers[: 1 - _SNAPSHOTS_KEPT]:
        atomic.remove_tree(home / str(number))
    return True


def newest(work_dirs: list[Path]) -> Checkpoint | None:
    """Return the newest sealed checkpoint that is whole, looking through `work_dirs` in order."""
    for work_dir in work_dirs:
        seals = work_dir / _SEALS
        for name in sorted(_seal_names(seals), key=lambda name: -int(name[:-5])):
            content = read_json_or_none(seals / name)
            if content and _is_whole(work_dir, content):
                return Checkpoint(work_dir, work_dir / content["path"])
    return None


def _seal_names(seals: Path) -> list[str]:
    return [name for name in list_names(seals) if name.endswith(".json") and name[:-5].isdigit()]


def _parts_of(checkpoint: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files of `checkpoint`, itself included."""
    if not checkpoint.is_dir():
        return [], [checkpoint]
    folders, files = [], []
    for folder, _, names in os.walk(checkpoint):
        folders.append(Path(folder))
        files += [Path(folder, name) for name in names]
    return folders, sorted(files)


def _is_whole(work_dir: Path, content: dict[str, Any]) -> bool:
    there = os.path.lexists(work_dir / content["path"])
    return there and all(_is_as(work_dir / name, s) for name, s in content["files"].items())


def _is_as(file: Path, state: list[int]) -> bool:
    try:
        return _state(file) == state
    except OSError:
        return False


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]
