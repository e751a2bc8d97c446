"""Whether a folder's filesystem does what we rely on: found out by doing it, in one of its own.

The very functions that write the project's files are called, so that what is tried is what will be
done. Called by `doctor`. Standard library alone.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.core import atomic, exchange
from nexa_hpc.core.access import Access, shared_with
from nexa_hpc.core.findings import Finding, ok, problem, warning
from nexa_hpc.errors import NexaError

SKEW_S = 5
"""Clocks that differ by more than that are told of; nothing is decided by a clock."""
_LEAST_BYTES = 1 << 30
_LEAST_INODES = 10_000
_ELSEWHERE = "ask the site for a filesystem that does (NFS, Lustre, GPFS and local disks do); "
_MOVE = _ELSEWHERE + "`paths` in nexa.yaml says where state and store are"


@contextmanager
def trial_folder(near: Path) -> Iterator[Path]:
    """Make a folder of our own where `near` is or will be, and remove it again."""
    above = next(place for place in (near, *near.parents) if place.is_dir())
    folder = above / f".nexa-doctor.{atomic.unique_suffix()}"
    atomic.make_folder(folder, Access())
    try:
        yield folder
    finally:
        atomic.remove_tree(folder)


def check_disk(name: str, place: Path, gid: int | None) -> list[Finding]:
    """Return what is found of the filesystem of `place`; with `gid`, it is shared with that group.

    `name` says what the place is for.
    """
    try:
        with trial_folder(place) as folder:
            found = [_tried(name, trial, folder) for trial in _TRIALS]
            found.append(_exchange(name, folder))
            found.append(_clock(name, folder))
            if gid is not None:
                found.append(_tried(name, lambda place: _setgid(place, gid), folder))
    except (OSError, NexaError) as error:
        return [
            problem(
                f"{name}: folder",
                f"nothing can be written at {place}: {error}",
                "see its owner and mode, or move it by `paths` in nexa.yaml",
            )
        ]
    wrong = [finding for finding in found if finding is not None]
    kind = filesystem_of(place)
    good = ok(f"{name}: filesystem", f"{place} ({kind}) does what is needed")
    return [*(wrong or [good]), *_room(name, place)]


def filesystem_of(place: Path) -> str:
    """Return the kind of filesystem that `place` is on (`nfs4`, `lustre`, `ext4`), or `?`."""
    real = os.path.realpath(place)
    best = ("", "?")
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return best[1]
    for line in mounts:
        _, where, kind, *_ = line.split()
        where = where.encode().decode("unicode_escape")
        within = real == where or real.startswith(f"{where.rstrip('/')}/")
        if within and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]


Trial = Callable[[Path], "str | None"]


def _tried(name: str, trial: Trial, folder: Path) -> Finding | None:
    """Return what is wrong, or None; what cannot even be done is wrong, too."""
    try:
        wrong = trial(folder)
    except OSError as error:
        wrong = f"{trial.__doc__}: {error}"
    return problem(f"{name}: filesystem", wrong, _MOVE) if wrong else None


def _modes(folder: Path) -> str | None:
    """modes are kept"""
    inner, file = folder / "modes", folder / "modes" / "file"
    atomic.make_folder(inner, Access())
    atomic.write_new_file(file, b"x", Access())
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (inner, file)]
    if modes != [0o700, 0o600]:
        return f"modes are not kept: asked for 0700 and 0600, got {modes[0]:04o} and {modes[1]:04o}"
    if file.stat().st_uid != os.geteuid():
        return f"what we write belongs to user {file.stat().st_uid}, not to us"
    return None


def _replacing(folder: Path) -> str | None:
    """a file is replaced by a rename"""
    file = folder / "replaced"
    atomic.write_file(file, b"old")
    atomic.write_file(file, b"new")
    return None if file.read_bytes() == b"new" else "a rename over a file does not replace it"


def _one_winner(folder: Path) -> str | None:
    """names are created once (hard links, exclusive creation)"""
    if not atomic.create_once(folder / "once", 1) or atomic.create_once(folder / "once", 2):
        return "of two that create one name by a hard link, not exactly one wins"
    atomic.write_new_file(folder / "exclusive", b"", Access())
    try:
        atomic.write_new_file(folder / "exclusive", b"", Access())
    except FileExistsError:
        return None
    return "exclusive creation does not refuse a name that is there"


def _folder_renames(folder: Path) -> str | None:
    """a folder is renamed"""
    for name in ("first", "second"):
        atomic.make_folder(folder / name, Access())
        atomic.write_new_file(folder / name / "file", name.encode(), Access())
    if atomic.rename_folder(folder / "first", folder / "second"):
        return "a renamed folder replaces one that is not empty"
    return None if atomic.rename_folder(folder / "first", folder / "third") else "folders stay"


def _links(folder: Path) -> str | None:
    """symbolic links are made and replaced"""
    for target in ("one", "other"):
        atomic.replace_link(folder / "link", target)
    return None if os.readlink(folder / "link") == "other" else "a symlink keeps its old target"


_TRIALS: tuple[Trial, ...] = (_modes, _replacing, _one_winner, _folder_renames, _links)


def _setgid(folder: Path, gid: int) -> str | None:
    """what is made in a shared folder is the group's"""
    shared = folder / "shared"
    atomic.make_folder(shared, shared_with(gid, writable=True))
    atomic.write_file(shared / "file", b"")
    found = (shared / "file").stat()
    if stat.S_IMODE(shared.stat().st_mode) != 0o2770:
        return f"the setgid bit is not kept (mode {stat.S_IMODE(shared.stat().st_mode):04o})"
    if found.st_gid != gid or not found.st_mode & stat.S_IRGRP:
        return "files in a shared folder do not become the group's"
    return None


def _exchange(name: str, folder: Path) -> Finding | None:
    for each in ("left", "right"):
        atomic.make_folder(folder / each, Access())
    if exchange.exchange(folder / "left", folder / "right"):
        return None
    return warning(
        f"{name}: exchange",
        "two names cannot be exchanged at once here, as on every NFS",
        "nothing: `artifacts gc` then takes three renames, and a reader may miss a result for "
        "some microseconds",
    )


def _clock(name: str, folder: Path) -> Finding | None:
    skew_s = clock_skew_s(folder)
    if abs(skew_s) <= SKEW_S:
        return None
    return warning(
        f"{name}: clock",
        f"the clock of its file server is {skew_s:+.0f} s off this machine's",
        "tell the site; ages and times will look wrong, no decision depends on them",
    )


def clock_skew_s(folder: Path) -> float:
    """Return by how many seconds the clock of the server of `folder` is ahead of ours."""
    file = folder / f"clock.{atomic.unique_suffix()}"
    before = time.time()
    atomic.write_new_file(file, b"x", Access())
    middle = (before + time.time()) / 2
    return file.stat().st_mtime - middle


def _room(name: str, place: Path) -> list[Finding]:
    above = next(folder for folder in (place, *place.parents) if folder.is_dir())
    room = os.statvfs(above)
    free_bytes = room.f_bavail * room.f_frsize
    found = []
    if free_bytes < _LEAST_BYTES:
        message = f"{free_bytes / 1e9:.2f} GB left at {above}"
        found.append(warning(f"{name}: room", message, "free some; `nexa-hpc artifacts gc`"))
    # Some filesystems have no fixed number of them, and say 0.
    if room.f_files and room.f_favail < _LEAST_INODES:
        message = f"{room.f_favail:,} inodes (files) left at {above}"
        found.append(warning(f"{name}: room", message, "remove files; `df -i` shows it"))
    return found
