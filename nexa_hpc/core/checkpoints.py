"""Sealed checkpoints: which half of a killed attempt's work may be trusted by the next one.

A checkpoint is a file or a folder inside an attempt's work folder. It is *sealed* by a small file
`sealed/<n>.json` written once all its bytes are durable, listing them with their sizes; only sealed
ones are resumed from. Written by the handlers' own process (`seal`), read by the worker when it
starts a later attempt (`newest`). Standard library alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.reading import list_names, read_json_or_none

_SEALS = "sealed"


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
    sizes = {}
    folders, files = _parts_of(checkpoint)
    for file in files:
        atomic.sync_file(file)
        sizes[str(file.relative_to(work_dir))] = file.stat().st_size
    for folder in [*folders, checkpoint.parent]:
        atomic.sync_folder(folder)
    seals = work_dir / _SEALS
    number = max((int(name[:-5]) for name in _seal_names(seals)), default=0) + 1
    content = {"path": str(checkpoint.relative_to(work_dir)), "bytes": sizes}
    while not atomic.create_once(seals / f"{number}.json", content):
        number += 1


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
    return there and all(_has_size(work_dir / name, n) for name, n in content["bytes"].items())


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
