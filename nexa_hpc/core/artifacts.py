"""Artifacts: immutable published folders, each whole or absent.

    <destination>/
        …              the payload, as the producer wrote it
        meta.json      kind, uri, hash, bytes, created_at, inputs, labels;
                       files: {path: {bytes, sha256}};
                       key: the readable document behind the step key (null for a free-standing one)
        COMPLETE       the SHA-256 of meta.json; written last

How one comes about is `publishing`'s; here it is read. Standard library alone.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core.canonical import sha256_bytes, sha256_json
from nexa_hpc.core.reading import is_there, list_names, read_bytes
from nexa_hpc.errors import ArtifactError

META = "meta.json"
COMPLETE = "COMPLETE"
TRASH = ".trash"
"""The folder, beside artifacts, of those that were moved away."""
_THROWN = re.compile(r"(?P<name>.+)\.(?P<at>[0-9]+)\.[^.]+\.[0-9]+\.[0-9a-f]{8}")
_CHUNK_BYTES = 1 << 20


class Presence(str, enum.Enum):
    """What is found at an artifact's place."""

    COMPLETE = "complete"
    ABSENT = "absent"
    PURGED = "purged"
    """COMPLETE is there, but files are gone or short (a scratch purge)."""
    FOREIGN = "foreign"
    """Something is there that is no artifact of ours."""


class Artifact(NamedTuple):
    """A published folder and what its `meta.json` says."""

    place: str
    """The folder as text: a Path costs more than reading what a cached step has."""
    meta: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.place)

    @property
    def hash(self) -> str:
        """SHA-256 over the payload's paths, sizes and digests: equal for equal content."""
        return str(self.meta["hash"])

    @property
    def size_bytes(self) -> int:
        """Size of the payload."""
        return int(self.meta["bytes"])

    @property
    def key(self) -> str | None:
        """The step key that made it, or None for a free-standing artifact."""
        return self.meta.get("step_key")


class Finding(NamedTuple):
    """`look`'s answer: what is there, the artifact if it is complete, and else what is wrong."""

    presence: Presence
    artifact: Artifact | None = None
    reason: str = ""


def is_thrown_away(place: Path | str) -> bool:
    """Return whether `place` is the link that `gc` leaves when it moves an artifact to the trash.

    Whoever has begun to use the artifact still finds it there; nobody begins to.
    """
    try:
        # Hardly any place is a link, and an error costs more than this question.
        is_link = stat.S_ISLNK(os.lstat(place).st_mode)
        return is_link and os.readlink(place).startswith(f"{TRASH}/")
    except OSError:
        return False


def read_thrown_name(name: str) -> tuple[str, float] | None:
    """Return the name that something in the trash had, and when it was thrown away (seconds since
    1970); None for a name that `publishing.move_to_trash` did not give.
    """
    match = _THROWN.fullmatch(name)
    return (match["name"], float(match["at"])) if match is not None else None


def place_of(path: str | os.PathLike[str]) -> Path:
    """Return the real path of an artifact; of one in the trash, the place that it had."""
    real = Path(os.path.realpath(path))
    thrown = read_thrown_name(real.name) if real.parent.name == TRASH else None
    return real.parent.parent / thrown[0] if thrown is not None else real


def look(path: Path | str) -> Finding:
    """Say what is at `path`, from COMPLETE, meta.json and the files' sizes, not their bytes.

    Raises ArtifactError when that cannot be told: what may not be read, or not now, is not purged.
    """
    try:
        return _look(str(path))
    except OSError as error:
        raise ArtifactError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _look(path: str) -> Finding:
    seal = _read_seal(path)
    if seal is None:
        if not is_there(path):
            return Finding(Presence.ABSENT, reason="no result yet")
        seal = _read_seal_listed(path)
    if seal is None:
        return Finding(Presence.FOREIGN, reason="a folder without COMPLETE")
    try:
        raw = read_bytes(f"{path}/{META}")
    except FileNotFoundError:
        return Finding(Presence.PURGED, reason="meta.json is gone")
    if seal.decode("ascii", "replace").strip() != sha256_bytes(raw):
        return Finding(Presence.PURGED, reason="COMPLETE does not match meta.json")
    meta = json.loads(raw)
    if not isinstance(meta.get("files"), dict):
        return Finding(Presence.FOREIGN, reason="meta.json lists no files")
    for name, entry in meta["files"].items():
        try:
            size = os.stat(f"{path}/{name}").st_size
        except (FileNotFoundError, NotADirectoryError):
            return Finding(Presence.PURGED, reason=f"{name} is gone")
        if size != entry["bytes"]:
            return Finding(Presence.PURGED, reason=f"{name} has {size} bytes, not {entry['bytes']}")
    return Finding(Presence.COMPLETE, Artifact(path, meta))


def _read_seal(path: str) -> bytes | None:
    """Return the content of COMPLETE, or None where it cannot be found at once.

    A file that opens is there; only its absence takes listings, for an NFS client repeats an old
    "no" until it has listed the folder anew.
    """
    try:
        return read_bytes(f"{path}/{COMPLETE}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_seal_listed(path: str) -> bytes | None:
    """Return the content of COMPLETE, or None where a fresh listing has no such name."""
    return read_bytes(f"{path}/{COMPLETE}") if COMPLETE in list_names(path) else None


def open_artifact(path: Path) -> Artifact:
    """Return the complete artifact at `path`; raises ArtifactError saying what is wrong."""
    finding = look(path)
    if finding.artifact is None:
        raise ArtifactError(f"{path}: {finding.presence.value}: {finding.reason}")
    return finding.artifact


def verify(artifact: Artifact) -> list[str]:
    """Read every byte of `artifact` and return what differs from `meta.json`, in words."""
    files = artifact.meta["files"]
    wrong = (
        [] if payload_hash(files) == artifact.hash else ["meta.json: its hash is not of its files"]
    )
    for name, entry in files.items():
        try:
            digest = sha256_file(artifact.path / name)
        except OSError as error:
            wrong.append(f"{name}: {error.strerror}")
            continue
        if digest != entry["sha256"]:
            wrong.append(f"{name}: its content is not what was published")
    return wrong


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def payload_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an artifact's `hash`, from the `files` of its `meta.json`."""
    return sha256_json([[name, entry["bytes"], entry["sha256"]] for name, entry in files.items()])
