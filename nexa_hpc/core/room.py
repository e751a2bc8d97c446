"""No room left, in words: on which filesystem, whether of bytes, of inodes or by a quota.

"No space left on device" is said for both, and a disk with gigabytes free puzzles people: on a
cluster it is often the number of files that ran out. Called by the worker, before what it had
written is removed again, and by the command line. Standard library alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.errors import NoRoomError, StepError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room_told(*folders: Path) -> Iterator[None]:
    """Turn what is raised for want of room into NoRoomError; `folders` are those written to."""
    try:
        yield
    except (OSError, StepError) as error:
        told = no_room(error, *folders)
        if told is None:
            raise
        raise told from error


def no_room(error: BaseException, *folders: Path) -> NoRoomError | None:
    """Return what to tell of `error`, or None where it is not for want of room.

    What is no OSError, such as a command's exit code, counts when one of `folders` is full now.
    """
    if isinstance(error, NoRoomError):
        return None
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        named = [Path(os.fsdecode(error.filename))] if error.filename else []
        places = [*named, *folders] or [Path.cwd()]
        full = next((place for place in places if _ran_out(place)), places[0])
        what = _ran_out(full) or ("quota" if error.errno == errno.EDQUOT else "bytes")
        return _told(what, full, f"{type(error).__name__}: {error}")
    if isinstance(error, StepError):
        for place in folders:
            if (ran_out := _ran_out(place)) is not None:
                return _told(ran_out, place, str(error))
    return None


def _told(what: str, place: Path, cause: str) -> NoRoomError:
    if what == "quota":
        said = f"the quota of bytes or of inodes (files) is used up at {place}"
        look = "`quota -s` shows it"
    else:
        name = "inodes (files)" if what == "inodes" else "bytes"
        said = f"no {name} left on the filesystem of {place}"
        look = f"`df -{'i' if what == 'inodes' else 'h'} {_existing(place)}` shows it"
    return NoRoomError(
        f"{said}: {cause}", hint=f"{look}; make room, then: nexa-hpc pipeline resume"
    )


def _ran_out(place: Path) -> str | None:
    """Return what the filesystem of `place` has none of: "bytes", "inodes", or None."""
    try:
        found = os.statvfs(_existing(place))
    except OSError:
        return None
    if found.f_files and not found.f_favail:  # Some filesystems count none at all.
        return "inodes"
    return None if found.f_bavail else "bytes"


def _existing(place: Path) -> Path:
    return next((p for p in (place, *place.parents) if os.path.lexists(p)), Path("/"))
