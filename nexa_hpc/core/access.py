"""Who may use what is made: its maker alone (0700, 0600), or a group, too; whatever the umask.

What is made in a folder that is shared with its group - one with the setgid bit that its group may
read - gets the same group and the same rights. So who may read what is decided once, at the roots
(`sharing`), and handed down by the disk to every process and every user that writes there. Called
by `atomic`, `publishing` and `sharing`. Standard library alone.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Access:
    """Who else than its maker may use what is made: nobody, or a group."""

    folder_mode: int = 0o700
    gid: int | None = None

    @property
    def file_mode(self) -> int:
        """The mode of files: the group, where there is one, reads them and never writes."""
        return 0o600 | self.folder_mode & 0o040


PRIVATE = Access()


def shared_with(gid: int, *, writable: bool) -> Access:
    """Return the access of a folder in which a group may read or, if `writable`, make things."""
    return Access(0o2770 if writable else 0o2750, gid)


def access_in(folder: Path) -> Access:
    """Return what is made in `folder` gets: the sharing of `folder`, or PRIVATE."""
    found = os.stat(folder)
    if found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IRGRP:
        return shared_with(found.st_gid, writable=bool(found.st_mode & stat.S_IWGRP))
    return PRIVATE


def set_access(path: Path, access: Access) -> None:
    """Give a folder or file of the caller's own the group and the mode that `access` says.

    A file stays executable if it is. Links are left alone.
    """
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return
    if access.gid is not None and found.st_gid != access.gid:
        os.chown(path, -1, access.gid)
    if stat.S_ISDIR(found.st_mode):
        os.chmod(path, access.folder_mode)
    else:
        executable = found.st_mode & stat.S_IXUSR
        os.chmod(path, access.file_mode | executable | access.folder_mode & (executable >> 3))


def set_file_access(fd: int, access: Access) -> None:
    """Give an open file that was just made to the group, if there is one, past the umask."""
    if access.gid is None:
        return
    if os.fstat(fd).st_gid != access.gid:
        os.fchown(fd, -1, access.gid)
    os.fchmod(fd, access.file_mode)
