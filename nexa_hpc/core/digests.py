"""Digests of files and folders that go into a step key, remembered from call to call.

A file's digest is remembered per host by size, mtime, ctime, inode and device. The memory is
advisory: losing it costs time, never correctness; a file changed in the last minute is not
remembered, for a second change within the timestamp's resolution would go unseen. Called by
`inputs`. Standard library alone.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.canonical import sha256_json
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import StateError, UserError

_SETTLED_S = 60.0
_BYTES_PER_GB = 1e9


@dataclass(frozen=True)
class InputDigest:
    """What a path held when it was looked at."""

    sha256: str
    """Names the content (or the stat data, where the step asks for no more)."""
    signature: str
    """Names sizes and times: equal signatures mean that nobody wrote since."""


class Digester:
    """Digests paths, with the memory of one host; `save` keeps it for the next call."""

    def __init__(self, memory_file: Path | None = None, *, limit_gb: float = 50.0) -> None:
        self._memory_file = memory_file
        self._limit_gb = limit_gb
        self._memory: dict[str, list[Any]] = _load(memory_file)
        self._changed = False

    def digest(self, path: Path, mode: str = "content") -> InputDigest:
        """Digest a file or folder; `mode` is content, stat (sizes and times) or none (its name).

        Raises UserError when the content is larger than the limit, saying what to write instead.
        """
        if mode == "none":
            return InputDigest("none", "none")
        entries = sorted(files_below(path), key=lambda entry: entry[0])
        stats = [[name, s.st_size, s.st_mtime_ns] for name, s in entries]
        signature = sha256_json(stats)
        if mode == "stat":
            return InputDigest(signature, signature)
        self._check_size(path, sum(s.st_size for _, s in entries))
        content = [[name, self._file(path / name, s)] for name, s in entries]
        single = len(entries) == 1 and entries[0][0] == "."
        return InputDigest(content[0][1] if single else sha256_json(content), signature)

    def save(self) -> None:
        """Keep the memory; a failure to is no loss."""
        if self._memory_file is None or not self._changed:
            return
        try:
            atomic.make_folder(self._memory_file.parent, PRIVATE)
            atomic.write_json(self._memory_file, self._memory)
        except (OSError, ValueError):
            return  # ValueError: the name of some file is not text.

    def _check_size(self, path: Path, size_bytes: int) -> None:
        if size_bytes > self._limit_gb * _BYTES_PER_GB:
            raise UserError(
                f"{path} holds {size_bytes / _BYTES_PER_GB:.1f} GB, more than paths.hash_limit_gb "
                f"({self._limit_gb:g})",
                hint="write {path: …, digest: stat} (sizes and times) or digest: none in the "
                "step's `in`, or raise paths.hash_limit_gb in nexa.yaml",
            )

    def _file(self, path: Path, found: os.stat_result) -> str:
        name = os.path.abspath(path)
        seen = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
        remembered = self._memory.get(name)
        if isinstance(remembered, list) and remembered[:-1] == seen:
            return str(remembered[-1])
        digest = sha256_file(path)
        if time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED_S:
            self._memory[name] = [*seen, digest]
            self._changed = True
        return digest


def signature(path: Path) -> str:
    """Return the signature of `path` now, to compare with an earlier `InputDigest.signature`."""
    return Digester().digest(path, "stat").signature


def host_name() -> str:
    """Return this host's name as the memory's file uses it."""
    return socket.gethostname().split(".")[0] or "localhost"


def files_below(
    path: Path, name: str = ".", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (relative name, stat) of every file at or below `path`; a lone file is named `.`.

    Byte code is passed over: Python writes it whenever it likes. Links are followed, but not into
    one of the folders `above`. Raises OSError for what cannot be read: a part that is left out
    would not be in the key.
    """
    found = path.stat()
    if stat.S_ISREG(found.st_mode):
        yield name, found
        return
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is neither a file nor a folder; reading it might never end")
    this = (found.st_dev, found.st_ino)
    if this in above:
        raise UserError(f"{path} links to a folder that it lies in", hint="remove the link")
    for entry in os.listdir(path):
        if entry != "__pycache__":
            below = entry if name == "." else f"{name}/{entry}"
            yield from files_below(path / entry, below, (*above, this))


def _load(memory_file: Path | None) -> dict[str, list[Any]]:
    if memory_file is None:
        return {}
    try:
        memory = read_json_or_none(memory_file)
    except (OSError, StateError):
        return {}
    return memory if isinstance(memory, dict) else {}
