"""Reading small files and listing folders on a filesystem that may answer late or stale.

Absence is never concluded from one `exists()`: NFS clients repeat a cached "no" for 30 s and more,
while a fresh listing of the folder shows the name at once (measured). Standard library alone.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from nexa_hpc.errors import StateError

_STALE_RETRIES = 5
_FIRST_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20


def read_bytes(path: Path | str) -> bytes:
    """Return the content of `path`, opening it anew when a replaced file turns stale (ESTALE)."""
    for attempt in range(_STALE_RETRIES):
        try:
            return _read(path)
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == _STALE_RETRIES - 1:
                raise
            time.sleep(0.01 * 2**attempt)
    raise AssertionError("unreachable")


def _read(path: Path | str) -> bytes:
    # By system calls: a file object costs more than reading the few hundred bytes of such a file,
    # and so does the memory for a large piece.
    fd = os.open(path, os.O_RDONLY)
    try:
        content = piece = os.read(fd, _FIRST_BYTES)
        while piece:
            piece = os.read(fd, _FIRST_BYTES if len(piece) < _FIRST_BYTES else _PIECE_BYTES)
            content += piece
        return content
    finally:
        os.close(fd)


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`; raise FileNotFoundError, or StateError when it is torn."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise StateError(f"{path}: not valid JSON ({error})") from error


def read_json_or_none(path: Path) -> Any:
    """Return the JSON value in `path`, or None when there is no such file."""
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_names(folder: Path | str) -> list[str]:
    """Return the names in `folder` by a fresh listing, sorted; empty when there is no folder.

    The folder itself may be what an old "no" hides: that is believed once no fresh listing of the
    folder above has its name.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        if not _is_listed(folder):
            return []
    except NotADirectoryError:
        return []
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_there(path: Path | str) -> bool:
    """Return whether something is at `path`, were it a dangling link; raise OSError when that
    cannot be told (EIO, ESTALE), where `os.path.lexists` says no.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return _is_listed(path)
    except NotADirectoryError:
        return False
    return True


def _is_listed(path: Path | str) -> bool:
    path = Path(path)
    return path != path.parent and path.name in list_names(path.parent)
