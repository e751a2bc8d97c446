"""Publishing an artifact: a finished temporary folder, sealed, is renamed to its destination.

A rename cannot replace a folder that is not empty, so a destination already there is looked at and
adopted; a damaged one is moved aside first. `create_artifact` is the public form, for any
destination; the worker uses `Publication`. Standard library alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic, exchange
from nexa_hpc.core.access import PRIVATE, Access, access_in, set_access, shared_with
from nexa_hpc.core.artifacts import (
    COMPLETE,
    META,
    TRASH,
    Artifact,
    Presence,
    is_thrown_away,
    look,
    open_artifact,
    payload_hash,
)
from nexa_hpc.core.canonical import sha256_bytes
from nexa_hpc.errors import ArtifactError


def create_artifact(
    destination: str | os.PathLike[str],
    producer: Callable[[Path], object],
    *,
    kind: str = "artifact",
    inputs: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Artifact:
    """Call `producer` with an empty folder and publish what it wrote at `destination`, atomically.

    A complete artifact already at `destination` is verified and returned; `producer` is not called.
    Raises ArtifactError when something that is no artifact of ours is in the way, or when the
    payload holds links or special files; whatever `producer` raises passes through, and nothing is
    left behind.
    """
    target = Path(os.path.abspath(destination))
    there = look(target)
    if there.artifact is not None:
        return there.artifact
    if there.presence is Presence.FOREIGN:
        raise ArtifactError(
            f"{target} exists and is no artifact of nexa_hpc; it is left alone",
            hint="move it away, or choose another destination",
        )
    publication = Publication.begin(target)
    try:
        producer(publication.folder)
        return publication.publish(kind=kind, inputs=inputs, labels=labels)
    finally:
        publication.discard()


@dataclass(frozen=True)
class Publication:
    """A temporary folder on its way to `destination`."""

    destination: Path
    folder: Path

    @classmethod
    def begin(cls, destination: Path) -> Publication:
        """Make the temporary folder beside `destination`, so that the rename stays on one disk.

        Until it is published it is its maker's alone.
        """
        folder = atomic.temporary_beside(destination)
        atomic.make_private_folder(folder)
        return cls(destination, folder)

    def publish(
        self,
        *,
        kind: str,
        inputs: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        step_key: str | None = None,
        key_document: Mapping[str, Any] | None = None,
        uri: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Seal the folder and rename it to its destination; adopt a complete one that is there.

        In a shared store the group may read all of it, whatever umask the files were made under.
        """
        access = _published_in(self.destination.parent)
        meta = {
            "kind": kind,
            "uri": uri or str(self.destination),
            **_describe(self.folder, access),
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "inputs": dict(inputs or {}),
            "labels": dict(labels or {}),
            "step_key": step_key,
            "key": key_document,
            **(extra or {}),
        }
        raw = atomic.encode_json(meta)
        seal = (sha256_bytes(raw) + "\n").encode()
        atomic.write_new_file(self.folder / META, raw, access)
        atomic.write_new_file(self.folder / COMPLETE, seal, access)
        if access.gid is not None:
            set_access(self.folder, access)
        atomic.sync_folder(self.folder)
        if atomic.rename_folder(self.folder, self.destination):
            return Artifact(str(self.destination), meta)
        return self._adopt(meta)

    def _adopt(self, meta: Mapping[str, Any]) -> Artifact:
        """Take what stands at the destination if it is whole, else move it aside."""
        # What is in the trash may be removed at any moment.
        is_trash = is_thrown_away(self.destination)
        if is_trash and exchange.replace_left_link(self.folder, self.destination):
            return Artifact(str(self.destination), meta)
        there = look(self.destination)
        if there.artifact is not None:
            return there.artifact
        if there.presence is Presence.FOREIGN:
            raise ArtifactError(f"{self.destination} is no artifact of nexa_hpc; it is left alone")
        self._move_aside()
        if atomic.rename_folder(self.folder, self.destination):
            return Artifact(str(self.destination), meta)
        return open_artifact(self.destination)

    def _move_aside(self) -> None:
        try:
            move_to_trash(self.destination)
        except PermissionError:
            # Another user's, who alone may move it to another folder; beside itself anybody may who
            # may publish here. Under a temporary name it is swept up with what killed ones leave.
            atomic.rename_folder(self.destination, atomic.temporary_beside(self.destination))

    def discard(self) -> None:
        """Remove the temporary folder, if it is still there."""
        atomic.remove_tree(self.folder)


def discard_left_behind(folder: Path, destination: Path) -> None:
    """Remove a temporary folder that an ended attempt has left on its way to `destination`.

    It is renamed first: a process that was taken for dead, and was not, can then no more publish it
    while it is being removed; it finds it gone, or has published it whole. Another user's is left
    alone: whether their attempt has ended only their state knows.
    """
    aside = atomic.temporary_beside(destination)
    try:
        if folder.lstat().st_uid != os.geteuid():
            return
        atomic.rename_folder(folder, aside)
    except FileNotFoundError:
        return
    atomic.remove_tree(aside)


def move_to_trash(path: Path, now: float | None = None, *, leave_link: bool = False) -> Path:
    """Rename the folder at `path` into `.trash` beside it; return its new place.

    The new name holds the time, in seconds, so that `artifacts gc` can tell its age. With
    `leave_link` who reads at `path` reads on, see `artifacts.is_thrown_away`.
    """
    trash = path.parent / TRASH
    atomic.make_folder(trash)
    at = int(time.time() if now is None else now)
    moved = trash / f"{path.name}.{at}.{atomic.unique_suffix()}"
    try:
        if leave_link:
            exchange.rename_leaving_link(path, moved)
        else:
            atomic.rename_folder(path, moved)
    except FileNotFoundError:
        pass  # Somebody else moved it first.
    return moved


def _published_in(folder: Path) -> Access:
    """Return the access of what is published in `folder`: for others to read, never to write."""
    gid = access_in(folder).gid
    return PRIVATE if gid is None else shared_with(gid, writable=False)


def _describe(folder: Path, access: Access) -> dict[str, Any]:
    """Digest and fsync every file below `folder`: its `hash`, `bytes` and `files`."""
    files = {}
    for name in sorted(_payload_names(folder, access)):
        size_bytes, digest = atomic.sync_and_digest(f"{folder}/{name}")
        files[name] = {"bytes": size_bytes, "sha256": digest}
    return {
        "hash": payload_hash(files),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }


def _payload_names(folder: Path, access: Access) -> list[str]:
    """Return the names of all files below `folder`, having shared what a group is to read."""
    names = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{folder}/{below}" if below else str(folder)) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                _check_entry(entry, name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                else:
                    names.append(name)
                if access.gid is not None:
                    set_access(Path(entry.path), access)
        if below:
            atomic.sync_folder(folder / below)
    return names


def _check_entry(entry: os.DirEntry[str], name: str) -> None:
    if name in (META, COMPLETE):
        raise ArtifactError(f"the payload holds a file named {name}, which is reserved")
    if not _is_text(name):
        raise ArtifactError(f"the payload holds a name that is not UTF-8: {name!a}")
    if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        raise ArtifactError(
            f"the payload holds {name}, which is a link or a special file",
            hint="an artifact holds files and folders only: copy what the link points to",
        )


def _is_text(name: str) -> bool:
    """Whether `name` can stand in meta.json: bytes that are no UTF-8 arrive as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
