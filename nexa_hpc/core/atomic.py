"""The one module that writes: whole files or none, on local disks and on NFS, Lustre and GPFS.

A file is written under a unique temporary name beside its target, fsynced, then renamed or linked
into place. Rewriting in place is not safe on a shared filesystem (2,617 of 3,456 concurrent reads
were torn on NFS v3, none with a rename), nor is a shared append. Everything else in nexa_hpc that
wants a byte on the project's disk calls this module; handlers write only inside the folders they
are given. Standard library alone.

What is made is its maker's alone, or shared as the folder is in which it is made (`access`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nexa_hpc.core.access import PRIVATE, Access, access_in, set_access, set_file_access
from nexa_hpc.core.encoding import encoder

_PIECE_BYTES = 1 << 20
_TEMPORARY = re.compile(r"(?P<target>.+)\.tmp\.[^.]+\.[0-9]+\.[0-9a-f]{8}")

_encode = encoder(ensure_ascii=False)
_HOST = socket.gethostname().split(".")[0][:24]


def unique_suffix() -> str:
    """Return a name part that no other process on any host uses: host, pid and random digits."""
    return f"{_HOST}.{os.getpid()}.{os.urandom(4).hex()}"


def temporary_beside(path: Path) -> Path:
    """Return an unused name in the folder of `path`, for something that will become `path`."""
    return path.with_name(f"{path.name}.tmp.{unique_suffix()}")


def target_of_temporary(name: str) -> str | None:
    """Return the name that a temporary one was to become, or None when `name` is none of ours."""
    match = _TEMPORARY.fullmatch(name)
    return match["target"] if match is not None else None


def make_folder(path: Path, access: Access | None = None) -> None:
    """Create `path` and its missing parents, each with `access`, or as shared as its parent is."""
    try:
        _make_one_folder(path, access or access_in(path.parent))
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        make_folder(path.parent, access)
        make_folder(path, access)


def make_private_folder(path: Path) -> None:
    """Create `path`, which must not exist, for its maker alone; missing parents are shared as
    `make_folder` has it.
    """
    try:
        os.mkdir(path, PRIVATE.folder_mode)
    except FileNotFoundError:
        make_folder(path.parent)
        os.mkdir(path, PRIVATE.folder_mode)


def _make_one_folder(path: Path, access: Access) -> None:
    if access.gid is None:
        os.mkdir(path, access.folder_mode)
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    # Renamed into place with its rights: whoever finds it meanwhile may use it already.
    temporary = temporary_beside(path)
    os.mkdir(temporary, PRIVATE.folder_mode)
    try:
        set_access(temporary, access)
        os.rename(temporary, path)
    except OSError as error:
        os.rmdir(temporary)
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR) or os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, error.strerror, str(path)) from error
        raise


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_and_digest(path: str) -> tuple[int, str]:
    """Make the content of `path` durable; return its size in bytes and its SHA-256."""
    digest, size_bytes = hashlib.sha256(), 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.read(fd, _PIECE_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
        os.fsync(fd)
    finally:
        os.close(fd)
    return size_bytes, digest.hexdigest()


def write_new_file(
    path: Path, content: bytes, access: Access | None = None, *, durable: bool = True
) -> None:
    """Create `path`, which must not exist, with `content`, and fsync it (not its folder)."""
    access = access or access_in(path.parent)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, access.file_mode)
    try:
        set_file_access(fd, access)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _temporary_file(path: Path, content: bytes, *, durable: bool = True) -> Iterator[Path]:
    temporary = temporary_beside(path)
    try:
        try:
            write_new_file(temporary, content, durable=durable)
        except FileNotFoundError:
            make_folder(path.parent)
            write_new_file(temporary, content, durable=durable)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`: a reader sees the old file or the new one, never a part."""
    payload = content.encode() if isinstance(content, str) else content
    with _temporary_file(path, payload) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces `path` once the context is left without an error."""
    with _temporary_file(path, b"") as temporary:
        with open(temporary, "r+b") as stream:
            yield stream
        sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


def encode_json(value: Any) -> bytes:
    """Return `value` as the JSON text that our files hold: a line for each entry two levels deep.

    Readable, and still encoded in C: json's own `indent` is written in Python and ten times slower,
    which a plan of 10,000 steps would feel.
    """
    return (_lay_out(value, depth=2, indent="") + "\n").encode()


def _lay_out(value: Any, depth: int, indent: str) -> str:
    inner = indent + " "
    if depth and isinstance(value, dict) and value:
        entries = [
            f"{inner}{_encode(str(key))}: {_lay_out(item, depth - 1, inner)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if depth and isinstance(value, list) and value:
        entries = [inner + _lay_out(item, depth - 1, inner) for item in value]
        return "[\n" + ",\n".join(entries) + f"\n{indent}]"
    return _encode(value)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON."""
    write_file(path, encode_json(value))


def create_once(path: Path, value: Any, *, settle: bool = True, durable: bool = True) -> bool:
    """Create `path` holding `value` as JSON, or return False when it already exists.

    The content is durable before the name exists; `settle` makes the name durable as well, which a
    caller may leave to a later write in the same folder. Of a file that is not to be `durable` a
    power cut may take the name, or the content alone; who reads it must be content with either.

    Of any number of callers on any number of hosts exactly one gets True: `link` is the arbiter.
    A link whose reply was lost reports EEXIST after it succeeded (link(2), NFS); the link count of
    our temporary file tells.
    """
    with _temporary_file(path, encode_json(value), durable=durable) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            if os.stat(temporary).st_nlink != 2:
                return False
        except OSError as error:
            if error.errno != errno.ESTALE or os.stat(temporary).st_nlink != 2:
                raise
    if settle and durable:
        sync_folder(path.parent)
    return True


def link_file(file: Path, link: Path) -> None:
    """Give `file` a second name, `link`, which must not exist; its missing folders are made."""
    make_folder(link.parent)
    os.link(file, link)


def replace_link(link: Path, target: str, access: Access | None = None) -> None:
    """Point the symlink `link` at `target`, atomically; the caller knows that `link` is ours.

    Missing folders above it get `access`. The link's folder is left to the caller to sync, once for
    all links in it.
    """
    make_folder(link.parent, access)
    temporary = temporary_beside(link)
    os.symlink(target, temporary)
    try:
        os.replace(temporary, link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_link(link: Path, target: str) -> None:
    """Make the symlink `link` in a folder that is not in use yet."""
    os.symlink(target, link)


def rename_folder(source: Path, target: Path) -> bool:
    """Rename the folder `source` to `target`; return False when `target` is there and not empty."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    sync_folder(target.parent)
    return True


def remove_tree(path: Path) -> OSError | None:
    """Remove a folder that nobody needs; return what kept a part of it, or None when all is gone.

    What another client holds open (`.nfs…`) or another user owns stays behind.
    """
    try:
        # Most often it is empty, or gone already: one call, where a walk takes ten.
        os.rmdir(path)
    except FileNotFoundError:
        return None
    except OSError:
        pass
    else:
        return None
    # Imported here: it brings the compression libraries along, and `status` removes nothing.
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return None
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def remove_file(path: Path) -> OSError | None:
    """Remove a file or link that nobody needs; return what kept it, or None when it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file and its mode to `target`, which must not exist, and fsync it (not its folder)."""
    import shutil

    with source.open("rb") as stream, target.open("xb") as copy:
        shutil.copyfileobj(stream, copy, _PIECE_BYTES)
        copy.flush()
        os.fchmod(copy.fileno(), os.fstat(stream.fileno()).st_mode & 0o777)
        os.fsync(copy.fileno())


def remove_folder_if_empty(path: Path) -> None:
    """Remove a folder unless it is gone, or something is in it."""
    try:
        os.rmdir(path)
    except OSError:
        return


def open_log(path: Path) -> BinaryIO:
    """Open the log at `path` for appending, unbuffered, so that a killed process loses no line of
    it.

    A log has one writer; it is not fsynced, and nothing is ever decided by it.
    """
    make_folder(path.parent)
    access = access_in(path.parent)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, access.file_mode)
    set_file_access(fd, access)
    return os.fdopen(fd, "ab", buffering=0)
