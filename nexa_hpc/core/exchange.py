"""A folder goes and leaves a link at its place, and comes back: no reader misses it meanwhile.

By renameat2(2) with RENAME_EXCHANGE, which makes two names change places as one change: Linux has
it since 3.15, on local filesystems and some others; NFS refuses it, and three renames have to do.
A part of `atomic`, for what `gc` takes; called by `publishing` and `collecting`. Standard library
alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.core import atomic

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def rename_leaving_link(source: Path, target: Path) -> None:
    """Rename the folder `source` to `target`, which must not exist, and leave a link to it behind.

    A reader at `source` finds the folder at every moment, where the filesystem can exchange two
    names; elsewhere (NFS) it misses it for some microseconds. Raises FileNotFoundError when
    `source` is not there, or is itself a link that was left.
    """
    os.symlink(os.path.relpath(target, source.parent), target)
    try:
        _swap(source, target)
        if os.path.islink(target):
            # Another process was first: what was moved is the link that it had left.
            _swap(source, target)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    except BaseException:
        if os.path.islink(target):
            target.unlink()
        raise
    atomic.sync_folder(target.parent)
    atomic.sync_folder(source.parent)


def replace_left_link(folder: Path, link: Path) -> bool:
    """Put `folder` where `rename_leaving_link` left the link `link`, again without a gap.

    Returns False, and changes nothing, when no link is there. Raises FileNotFoundError when
    `folder` is not there.
    """
    if not os.path.islink(link):
        return False
    try:
        with _leading_on(link, folder):
            _swap(folder, link)
    except FileNotFoundError:
        if not os.path.lexists(folder):
            raise
        return False
    if os.path.islink(folder):
        folder.unlink()
        atomic.sync_folder(link.parent)
        return True
    # Something new had come there at this moment.
    _swap(folder, link)
    return False


@contextmanager
def _leading_on(link: Path, folder: Path) -> Iterator[None]:
    """See that `link`, once it is where `folder` was, leads back: whoever has just read it, and
    comes where it led, finds it there and follows it once more.
    """
    onward = folder.parent / os.readlink(link)
    try:
        atomic.make_folder(onward.parent)
        os.symlink(os.path.relpath(link, onward.parent), onward)
    except OSError:
        yield  # It leads somewhere already, or cannot be made: it only serves for a microsecond.
        return
    try:
        yield
    finally:
        onward.unlink(missing_ok=True)
        atomic.remove_folder_if_empty(onward.parent)


def _swap(first: Path, second: Path) -> None:
    """Exchange what is at two names, the second a link: as one change, or else as good as one."""
    if exchange(first, second):
        return
    aside = atomic.temporary_beside(second)
    os.rename(second, aside)
    try:
        os.rename(first, second)
    except OSError:
        os.rename(aside, second)
        raise
    try:
        os.rename(aside, first)
    except IsADirectoryError:
        aside.unlink()  # Something new has come to stand there.


def exchange(first: Path, second: Path) -> bool:
    """Exchange what is at `first` and `second`; False where system or filesystem cannot.

    Raises OSError, for instance FileNotFoundError when either is not there.
    """
    # Imported here: only `gc`, and what publishes over something that it took, come this way.
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(first))
