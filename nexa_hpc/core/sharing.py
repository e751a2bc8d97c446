"""Whose a project's folders are: made for their owner, or for the `paths.group` of `nexa.yaml`.

With a group, the store and the registry are for all of it to add to (2770), and the state for it to
read (2750): another user's run is shown, never advanced. What is made below follows by itself
(`access`); scratch and remembered digests stay private. Called before anything is written. Standard
library alone.
"""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE, Access, access_in, set_access, shared_with
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.errors import UserError

_READ_ONLY_BELOW = 2
"""Below <store>/<hh>/ all is published, and not even the group may change it."""


def user_name() -> str:
    """Return the user's name, or the number where there is none (a container's uid)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def prepare(paths: ProjectPaths, group: str | None) -> None:
    """See that what is about to be written below `paths` gets into the right hands.

    Raises UserError, before anything is written, for a group that is not there or not the caller's,
    and for a root that somebody else may tamper with.
    """
    writable, readable = _accesses(group)
    require_own(paths.state, "the state folder")
    require_own(paths.work, "the work folder")
    _require_own_or_shared(paths.store)
    prepare_registry(paths, group)
    scratch = (paths.work, paths.remembered_digests("x").parent)
    _make_root(paths.state, readable, paths.root, private=scratch)
    _make_root(paths.store, writable, paths.root, read_only_below=_READ_ONLY_BELOW)


def prepare_registry(paths: ProjectPaths, group: str | None) -> None:
    """The same for what only changes the model registry."""
    writable, _ = _accesses(group)
    _require_own_or_shared(paths.registry)
    _make_root(paths.registry, writable, paths.root)


def _accesses(group: str | None) -> tuple[Access, Access]:
    """Return how what the group may add to, and what it may read, are shared."""
    gid = group_id(group)
    if gid is None:
        return PRIVATE, PRIVATE
    if os.geteuid() != 0 and gid not in _groups():
        raise UserError(f"paths.group: you are not in the group '{group}'", hint="see `id`")
    return shared_with(gid, writable=True), shared_with(gid, writable=False)


def group_id(group: str | None) -> int | None:
    """Return the number of `group`, a name or a number; UserError when it is unknown."""
    if group is None:
        return None
    # Imported here: only a project with a group needs it.
    import grp

    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UserError(
            f"paths.group: no group '{group}' on this machine", hint="`id` lists yours"
        ) from None


def require_own(folder: Path, what: str) -> None:
    """Raise UserError when `folder` is there and is another user's, or anybody's to change."""
    found = _stat(folder)
    if found is None:
        return
    if found.st_uid != os.geteuid():
        raise UserError(
            f"{what} {folder} belongs to {owner_of(found)}: another user's runs are shown, never "
            "advanced",
            hint="to run the pipeline yourself, keep your own state: "
            "NEXA_HPC_STATE=FOLDER nexa-hpc run FILE",
        )
    refuse_if_anybodys(folder, what, found)


def is_own(folder: Path) -> bool:
    """Return whether `folder` is there and the caller's."""
    found = _stat(folder)
    return found is not None and found.st_uid == os.geteuid()


def refuse_if_anybodys(folder: Path, what: str, found: os.stat_result | None = None) -> None:
    """Raise UserError when every user of the machine may replace what is in `folder`."""
    mode = (found or folder.stat()).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise UserError(f"{what} {folder} can be changed by anybody", hint=f"chmod o-w '{folder}'")


def not_permitted(error: OSError) -> UserError | None:
    """Return what to tell of `error`, or None where it is not for want of permission."""
    if not isinstance(error, PermissionError) or not error.filename:
        return None
    path = Path(os.fsdecode(error.filename))
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    return UserError(
        f"{path}: permission denied ({there} belongs to {owner_of(there.lstat())})",
        hint="its owner can let a group read runs and results by `paths: {group: …}` in nexa.yaml",
    )


def owner_of(found: os.stat_result) -> str:
    """Return the name of a file's owner, or the number where there is none."""
    import pwd

    try:
        return pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        return f"user {found.st_uid}"


def _require_own_or_shared(root: Path) -> None:
    found = _stat(root)
    if found is None:
        return
    refuse_if_anybodys(root, "the folder", found)
    shared = access_in(root)
    ours = shared.gid in _groups() and shared.folder_mode & stat.S_IWGRP
    if found.st_uid != os.geteuid() and not ours:
        raise UserError(
            f"{root} belongs to {owner_of(found)} and is not shared with a group of yours",
            hint="its owner can share it by `paths: {{group: …}}` in nexa.yaml and one more run; "
            "or use another folder",
        )


def _make_root(
    root: Path,
    access: Access,
    project: Path,
    *,
    private: tuple[Path, ...] = (),
    read_only_below: int = 99,
) -> None:
    """Make `root`, where what it would inherit is not `access`; share an older one of our own."""
    found = _stat(root)
    if found is None:
        above = next(folder for folder in root.parents if folder.exists())
        if access_in(above) != access:
            atomic.make_folder(root, access)
        return
    if access.gid is None or found.st_uid != os.geteuid() or access_in(root) == access:
        return
    published = shared_with(access.gid, writable=False)
    for path, depth in _own_below(root, set(private)):
        set_access(path, access if depth < read_only_below else published)
    for folder in _made_above(root, project):
        set_access(folder, access)
    # The root last: it tells that all else has been shared.
    set_access(root, access)


def _made_above(root: Path, project: Path) -> Iterator[Path]:
    """Yield the folders between `project` and `root` that are the caller's alone, as ours are."""
    for folder in root.parents:
        if folder == project or not folder.is_relative_to(project):
            return
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield folder


def _own_below(root: Path, left_out: set[Path]) -> Iterator[tuple[Path, int]]:
    """Yield what the caller owns below `root`, with its depth, but for folders in `left_out`."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in left_out]
        depth = len(Path(folder).relative_to(root).parts) + 1
        for path in (Path(folder, name) for name in [*folders, *files]):
            if path.lstat().st_uid == os.geteuid():
                yield path, depth


def _stat(folder: Path) -> os.stat_result | None:
    try:
        return folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _groups() -> set[int]:
    return {os.getegid(), *os.getgroups()}
