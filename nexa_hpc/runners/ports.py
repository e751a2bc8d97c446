"""Ports of this machine: one for a server that is about to start, and whose a listening one is.

A port that is bound is not listened on before a model is loaded, and may be bound twice until then
(SO_REUSEADDR, socket(7)); so servers of ours claim theirs of each other first. Called by the
supervisor. Standard library alone.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path

_TRIES = 100
_LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""


class Claim:
    """A port that no other server of ours on this machine takes while this object, or rather its
    process, lives.
    """

    def __init__(self, port: int) -> None:
        """Raises OSError where it is another's."""
        self.port = port
        self._held: socket.socket | None = None
        if sys.platform != "linux":  # Abstract names, which go with their holder (unix(7)).
            return
        try:
            self._held = socket.socket(socket.AF_UNIX)
        except OSError:
            return  # A sandbox has none.
        try:
            self._held.bind(f"\0nexa_hpc/port/{port}")
        except OSError:
            self._held.close()
            raise

    def drop(self) -> None:
        """Leave the port to others."""
        if self._held is not None:
            self._held.close()


def claim(host: str, port: int) -> Claim | None:
    """Return a claim on `port`, on which a server can listen at `host`; None where it is taken."""
    try:
        _bound(host, port)
        return Claim(port)
    except OSError:
        return None


def claim_any(host: str) -> Claim:
    """Return a claim on a free port; raises OSError where `host` is not this machine's."""
    for _ in range(_TRIES):
        found = claim(host, _bound(host, 0))
        if found is not None:
            return found
    raise OSError(errno.EADDRINUSE, "no free port")


def is_listened_on_by(session: int, port: int) -> bool:
    """Return whether a process of the session (setsid(2)) listens on `port`; true where the system
    does not tell.
    """
    if not Path("/proc/net/tcp").exists():
        return True
    sockets = {Path(f"socket:[{inode}]") for inode in _listening(port)}
    members = [p for p in Path("/proc").glob("[0-9]*") if _is_of(p, session)]
    return any(_holds(process, sockets) for process in members)


def _holds(process: Path, sockets: Collection[Path]) -> bool:
    """Return whether a process has one of the sockets open; true where that is kept from us."""
    try:
        for descriptor in (process / "fd").iterdir():
            try:
                if descriptor.readlink() in sockets:
                    return True
            except FileNotFoundError:
                continue  # Closed meanwhile.
    except PermissionError:
        # Of one that has ended and was not waited for, nobody is told (proc(5)).
        return not _has_ended(process)
    except OSError:
        pass  # Ended meanwhile.
    return False


def _has_ended(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _listening(port: int) -> list[str]:
    """Return the inodes of the sockets that listen on `port` (proc(5))."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if table.endswith("6") and not Path(table).exists():
            continue  # IPv6 is switched off.
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found


def _is_of(process: Path, session: int) -> bool:
    try:
        return os.getsid(int(process.name)) == session
    except (ProcessLookupError, PermissionError):
        return False


def _bound(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # What was closed within the last minute does not hinder a server either.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
