"""Who holds the server of a step, so that it lives as long as somebody does, and no longer.

    .nexa_state/serve/<name>.lease.<driver>.json   a process that drives a run whose steps read it
    .nexa_state/serve/<name>.keep                  the wish that it stay without one

A driver writes its lease before it starts a server or looks whether one is there, and removes it
when the last step that reads it has ended. The supervisor ends a server that no living driver
holds: so none outlives a driver that was killed. Standard library alone.
"""

from __future__ import annotations

import time
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.answering import silence
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.reading import list_names, read_json_or_none
from nexa_hpc.core.servers import Condition, Handle, Servers

_POLL_S = 0.1
_DECIDED_S = 30.0
_ASK_S = 10.0


class Leases:
    """The leases on the servers of one project; keep one for as long as the observing goes on."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        # Heartbeats are named from the state folder, in which that of the servers lies.
        self._watch = Watch(servers.folder.parent, silence_s=servers.silence_s)

    def take(self, name: str, driver: Driver) -> None:
        """Have `driver` hold the server `name`, which need not have been started."""
        atomic.make_folder(self._servers.folder)
        atomic.write_json(self._file(name, driver), driver.to_json())

    def drop(self, name: str, driver: Driver) -> None:
        """Have `driver` hold the server `name` no more."""
        atomic.remove_file(self._file(name, driver))

    def lives(self, name: str, besides: Driver | None = None) -> list[Life]:
        """Return what is known of the drivers, `besides` this one, that hold `name` and may live.

        Leases of drivers that have ended are removed.
        """
        found: list[Life] = []
        own = self._file(name, besides).name if besides is not None else None
        for file in list_names(self._servers.folder):
            is_lease = file.startswith(f"{name}.lease.") and file.endswith(".json")
            if not is_lease or file == own:
                continue
            lease = read_json_or_none(self._servers.folder / file)
            if lease is None:
                continue  # Dropped meanwhile.
            life = self._watch.life(Driver.from_json(lease))
            if life is not Life.ENDED:
                found.append(life)
            else:
                atomic.remove_file(self._servers.folder / file)
        return found

    def is_wanted(self, handle: Handle) -> bool:
        """Return whether a server is to go on, as far as leases tell."""
        return self.is_kept(handle) or bool(self.lives(handle.name))

    def keep(self, handle: Handle) -> None:
        """Have a server stay, whoever holds it."""
        atomic.write_json(self._servers.file(handle.name, "keep"), {"tag": handle.tag})

    def is_kept(self, handle: Handle) -> bool:
        """Return whether a server stays though nobody holds it."""
        if not handle.leased:
            return True
        wish = read_json_or_none(self._servers.file(handle.name, "keep"))
        return wish is not None and wish.get("tag") == handle.tag

    def healthy(self, name: str) -> Handle | None:
        """Return the handle of `name` if it answers, for who holds it; None if it does not.

        Waits for one that is about to end: it ends, or its supervisor has seen the lease.
        """
        deadline = time.monotonic() + _DECIDED_S
        while (handle := self._servers.find(name)) is not None:
            condition, _ = self._servers.condition(handle)
            if condition is Condition.HEALTHY:
                # Of one from before a reboot, or on another machine, it may say so for long.
                return handle if silence(self._servers, handle, _ASK_S) is None else None
            if condition is not Condition.STOPPING or time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
        return None

    def _file(self, name: str, driver: Driver) -> Path:
        return self._servers.folder / f"{name}.lease.{Path(driver.heartbeat).name}"
