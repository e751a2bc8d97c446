"""What lies in the store: artifacts at their places, what was thrown away, what was left half-made.

    <store>/<hh>/<key>[.<output>]/                       an artifact
    <store>/<hh>/<key>[.<output>].tmp.<unique>/          a publication, under way or left behind
    <store>/<hh>/.trash/<key>[.<output>].<at>.<unique>/  thrown away at <at>, seconds since 1970
    <store>/<hh>/<key>[.<output>] -> .trash/…            what it leaves, until it is removed

The work folders have the same form. Only lists and measures; `retention` says what is kept and why,
`collecting` takes the rest away. Standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core.artifacts import (
    TRASH,
    Finding,
    Presence,
    is_thrown_away,
    look,
    read_thrown_name,
)
from nexa_hpc.core.atomic import target_of_temporary
from nexa_hpc.core.paths import ProjectPaths, sharded
from nexa_hpc.core.reading import list_names
from nexa_hpc.errors import ArtifactError

_PLACE = re.compile(r"([0-9a-f]{64})(?:\..+)?")


@dataclass(frozen=True)
class Stored:
    """A place in the store, and what is found there."""

    place: Path
    finding: Finding

    @property
    def key(self) -> str | None:
        """The step key that the place is named by, or None when its name is no key."""
        return key_of(self.place.name)

    @property
    def is_ours(self) -> bool:
        """Whether it is an artifact, whole or damaged, and not something else in its place."""
        return self.key is not None and self.finding.presence is not Presence.FOREIGN


@dataclass(frozen=True)
class Thrown:
    """Something in the trash."""

    path: Path
    place: Path
    """Where it was."""
    at: float
    """When it was thrown away, in seconds since 1970."""


def key_of(name: str) -> str | None:
    """Return the step key in the name of a place, or None when there is none."""
    match = _PLACE.fullmatch(name)
    return match[1] if match is not None else None


def stored(paths: ProjectPaths) -> Iterator[Stored]:
    """Yield each place in the store and what is found there, in the order of keys.

    What may not be read counts as foreign, with the reason.
    """
    for place in sharded(paths.store):
        if target_of_temporary(place.name) is not None or is_thrown_away(place):
            continue
        try:
            finding = look(place)
        except ArtifactError as error:
            finding = Finding(Presence.FOREIGN, reason=str(error))
        if finding.presence is not Presence.ABSENT:
            yield Stored(place, finding)


def unfinished(paths: ProjectPaths) -> Iterator[tuple[Path, str | None]]:
    """Yield the temporary folder of each publication in the store, and the key that it is for."""
    for path in sharded(paths.store):
        target = target_of_temporary(path.name)
        if target is not None:
            yield path, key_of(target)


def thrown_away(folder: Path) -> Iterator[Thrown]:
    """Yield what is in the trash of the store or of the work folder, oldest names first."""
    for shard in list_names(folder):
        for name in list_names(folder / shard / TRASH):
            known = read_thrown_name(name)
            if known is not None:
                place = folder / shard / known[0]
                yield Thrown(folder / shard / TRASH / name, place, known[1])


def size_of(entry: Stored) -> int:
    """Return the size of what is at a place: where it is whole, of its payload."""
    artifact = entry.finding.artifact
    return artifact.size_bytes if artifact is not None else size_below(entry.place)


def size_below(path: Path) -> int:
    """Return the size of the files below `path`, as far as they can be seen."""
    return sum(stat.st_size for stat in _below(path))


def changed_at(path: Path) -> float:
    """Return when `path` itself, a link not followed, last changed; 0 when it is not there."""
    return max((stat.st_mtime for stat in _stat(path)), default=0.0)


def changed_below(path: Path) -> float:
    """Return when the folder `path`, or anything below it, last changed; 0 when it is gone."""
    return max((stat.st_mtime for stat in _below(path, folders=True)), default=0.0)


def _below(path: Path, *, folders: bool = False) -> Iterator[os.stat_result]:
    for parent, _, files in os.walk(path):
        for name in [*files, *([""] if folders else [])]:
            yield from _stat(os.path.join(parent, name))


def _stat(path: Path | str) -> Iterator[os.stat_result]:
    try:
        yield os.lstat(path)
    except OSError:
        return  # Removed meanwhile, or another user's.
