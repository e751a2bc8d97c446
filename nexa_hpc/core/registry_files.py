"""The model registry's files, without its rules: what is there, and adding one more.

    <folder>/<model>/                artifacts/.registry/<model>
        versions/<n>.json            version n: where its artifact is, its hash, what is said of it
        versions/<n>.deleted.json    its tombstone; the number is never used again
        tags/<tag>/<n>.json          the n-th move of a tag; the highest n is where it points

Every file is created once and never changed, and creating it is what decides a race, so there is
no lock, and a tag's history comes for free. A file holds what its place does not say: neither the
model, nor the tag, nor the number. Called by `registry` alone. Standard library alone.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.artifacts import place_of
from nexa_hpc.core.reading import list_names, read_json
from nexa_hpc.core.registry_entries import Tag, Version
from nexa_hpc.core.registry_names import name_problem
from nexa_hpc.errors import StateError

FORMAT = 1
_ENTRY = ".json"
_TOMBSTONE = ".deleted.json"


@dataclass(frozen=True)
class RegistryFiles:
    """The files below `folder`; artifacts below `project`, too, are written relative to it."""

    folder: Path
    project: Path

    def model_names(self) -> list[str]:
        """Return the names that may be models."""
        return [name for name in list_names(self.folder) if name_problem(name) is None]

    def numbers(self, model: str) -> tuple[set[int], set[int]]:
        """Return the numbers of all versions of `model`, and of those that are deleted."""
        names = list_names(self._versions(model))
        return _numbers(names, _ENTRY), _numbers(names, _TOMBSTONE)

    def add_version(self, model: str, content: Mapping[str, Any]) -> int:
        """Write the next version of `model` and return the number it got."""
        number = max(self.numbers(model)[0], default=0) + 1
        while not self._create(self._version(model, number), {"registered": _stamp(), **content}):
            number += 1
        return number

    def read_version(self, model: str, number: int) -> Version:
        """Return a version that is there."""
        file = self._version(model, number)
        content = _read(file)
        try:
            return Version(
                model=model,
                number=number,
                path=place_of(self.folder / content["path"]),
                artifact_hash=content["artifact_hash"],
                step_key=content["step_key"],
                meta=content["meta"],
                registered_at=content["registered"]["at"],
                registered_by=content["registered"]["by"],
                source=content["source"],
            )
        except (KeyError, TypeError) as error:
            raise StateError(f"{file}: not a version's file ({error!r})") from error

    def bury(self, model: str, number: int) -> bool:
        """Write a version's tombstone; False when it has one."""
        return self._create(self._tombstone(model, number), {"deleted": _stamp()})

    def unbury(self, model: str, number: int) -> None:
        """Take back the tombstone that this process wrote a moment ago."""
        self._tombstone(model, number).unlink()

    def tag_names(self, model: str) -> list[str]:
        """Return the names of all tags of `model` that there have been."""
        return [n for n in list_names(self.folder / model / "tags") if name_problem(n) is None]

    def sequences(self, model: str, tag: str) -> list[int]:
        """Return the numbers of a tag's moves, in order."""
        return sorted(_numbers(list_names(self._tag(model, tag)), _ENTRY))

    def add_move(
        self, model: str, tag: str, after: Tag | None, action: str, version: int | None
    ) -> Tag | None:
        """Write the move that follows `after`; None when somebody else's move follows it."""
        sequence = 1 if after is None else after.sequence + 1
        content = {
            "action": action,
            "version": version,
            "previous": None if after is None else after.version,
            "set": _stamp(),
        }
        won = self._create(self._move(model, tag, sequence), content)
        return self.read_move(model, tag, sequence) if won else None

    def read_move(self, model: str, tag: str, sequence: int) -> Tag:
        """Return a move that is there."""
        file = self._move(model, tag, sequence)
        content = _read(file)
        try:
            return Tag(
                model=model,
                name=tag,
                sequence=sequence,
                version=content["version"],
                previous=content["previous"],
                action=content["action"],
                set_at=content["set"]["at"],
                set_by=content["set"]["by"],
            )
        except (KeyError, TypeError) as error:
            raise StateError(f"{file}: not a tag's file ({error!r})") from error

    def portable(self, path: Path) -> str:
        """Return `path` as a version's file holds it: relative in a project that holds both."""
        folder, project = os.path.realpath(self.folder), os.path.realpath(self.project)
        inside = path.is_relative_to(project) and Path(folder).is_relative_to(project)
        return os.path.relpath(path, folder) if inside else str(path)

    def _create(self, file: Path, content: Mapping[str, Any]) -> bool:
        return atomic.create_once(file, {"format": FORMAT, **content})

    def _versions(self, model: str) -> Path:
        return self.folder / model / "versions"

    def _version(self, model: str, number: int) -> Path:
        return self._versions(model) / f"{number}{_ENTRY}"

    def _tombstone(self, model: str, number: int) -> Path:
        return self._versions(model) / f"{number}{_TOMBSTONE}"

    def _tag(self, model: str, tag: str) -> Path:
        return self.folder / model / "tags" / tag

    def _move(self, model: str, tag: str, sequence: int) -> Path:
        return self._tag(model, tag) / f"{sequence}{_ENTRY}"


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StateError(
            f"{file}: not an entry of a registry of format {FORMAT}",
            hint="it was written by another version of nexa_hpc, or changed by hand",
        )
    return content


def _numbers(names: list[str], ending: str) -> set[int]:
    """Return the numbers of the entries among `names`; temporary files and others are left out."""
    stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return {int(stem) for stem in stems if stem.isdecimal() and stem.isascii()}


def _stamp() -> dict[str, str]:
    """Return when and by whom, for people to read: nothing is ordered by a clock."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # A container often has no such user.
        name = str(os.getuid())
    return {"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "by": name}
