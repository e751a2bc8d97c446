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
    for file in _files_of(checkpoint):
        atomic.sync_file(file)
        sizes[str(file.relative_to(work_dir))] = file.stat().st_size
    if checkpoint.is_dir():
        atomic.sync_folder(checkpoint)
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
            if content and all(_has_size(work_dir / p, n) for p, n in content["bytes"].items()):
                return Checkpoint(work_dir, work_dir / content["path"])
    return None


def _seal_names(seals: Path) -> list[str]:
    return [name for name in list_names(seals) if name.endswith(".json") and name[:-5].isdigit()]


def _files_of(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        return [checkpoint]
    found = []
    for folder, _, names in os.walk(checkpoint):
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
