"""The one door to pickles: a Hydra app's own objects, from its user to its user's jobs and back.

Hydra hands a launcher live objects (a task function, callbacks, resolvers) that have no other form.
Nothing is loaded from where others could have put it: a pickle must be a plain file of the reader's
own that nobody else may change, in a folder for which the same is true, and neither may be a link.
Called by `hydra_runs` alone.
"""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from nexa_hpc.core import atomic
from nexa_hpc.errors import StateError, UserError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def dump(value: Any) -> bytes:
    """Return `value` as bytes that `load` takes; functions of `__main__` go by value.

    Raises whatever the objects in it raise that cannot be sent.
    """
    content: bytes = cloudpickle.dumps(value)
    return content


def check(content: bytes) -> None:
    """Raise whatever `load` would raise for what this process has just dumped."""
    pickle.loads(content)


def write(file: Path, content: bytes) -> None:
    """Put what `dump` has returned into `file`, whole or not at all."""
    atomic.write_file(file, content)


def write_new(contents: Mapping[Path, bytes]) -> None:
    """Put what `dump` has returned into files of a new folder that nobody knows of yet."""
    folders = {file.parent for file in contents}
    for folder in folders:
        atomic.make_folder(folder)
    for file, content in contents.items():
        atomic.write_new_file(file, content)
    for folder in folders:
        atomic.sync_folder(folder)


def load(file: Path) -> Any:
    """Return what `write` has put there.

    Raises UserError where others could have put it there, StateError where it is gone.
    """
    folder = _open(file.parent, os.O_DIRECTORY, file.parent)
    try:
        _require_own(folder, file.parent)
        opened = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError as error:
        raise StateError(f"{file} is gone") from error
    except OSError as error:
        raise UserError(f"{file} is not loaded: {error.strerror}") from error
    finally:
        os.close(folder)
    with os.fdopen(opened, "rb") as stream:
        _require_own(stream.fileno(), file)
        return pickle.load(stream)


def _open(path: Path, flags: int, told: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags)
    except FileNotFoundError as error:
        raise StateError(f"{told} is gone") from error
    except OSError as error:
        raise UserError(f"{told} is not loaded from: {error.strerror}") from error


def _require_own(fd: int, told: Path) -> None:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise UserError(f"{told} is not loaded: it belongs to user {found.st_uid}, not to you")
    if found.st_mode & _OTHERS:
        raise UserError(f"{told} is not loaded: others can change it", hint=f"chmod go-w '{told}'")
