"""Whether the process that drives an attempt still lives, asked from any node.

A driver is a process of ours that runs steps itself (the local scheduler). On its own machine the
kernel knows. From elsewhere only its heartbeat tells: a counter in a file that it replaces every
`BEAT_INTERVAL_S`. An observer times the counter on its own monotonic clock, for no two hosts agree
on the hour, and gives a change `SILENCE_S` to become visible (NFS repeats old answers for 60 s and
more). Called by `advance`. Standard library alone.
"""

from __future__ import annotations

import enum
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.reading import read_json_or_none

BEAT_INTERVAL_S = 10.0
SILENCE_S = 90.0
_MARKER_INTERVAL_S = 1.0


class Life(enum.Enum):
    """What is known of a driver."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """On another machine, and not yet watched for long enough."""


@dataclass(frozen=True)
class Driver:
    """A process, named so that no other one on any machine is taken for it."""

    host: str
    machine: str
    """Machine and pid namespace: what must agree for a pid to mean the same process."""
    pid: int
    started: str
    heartbeat: str
    """The heartbeat file, relative to the state folder."""

    @classmethod
    def this_process(cls, drivers: Path, state: Path) -> Driver:
        """Describe the calling process, with a new heartbeat file in the folder `drivers`."""
        host, pid = socket.gethostname(), os.getpid()
        name = f"{host.split('.')[0]}-{pid}-{os.urandom(4).hex()}.json"
        heartbeat = os.path.relpath(drivers / name, state)
        return cls(host, _machine(), pid, _process_start(pid) or "", heartbeat)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Driver:
        """Return the driver that `to_json` wrote."""
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Return the driver as a claim records it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Heartbeat:
    """Beats for this process while the context is open, and watches for a run's cancel marker.

    From the beating thread, `on_cancel` is called once, when `marker` appears, and `on_tick` every
    second.
    """

    def __init__(
        self,
        driver: Driver,
        state: Path,
        marker: Path,
        on_cancel: Callable[[], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_tick = on_tick
        self._file = state / driver.heartbeat
        self._marker = marker
        self._on_cancel = on_cancel
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        atomic.write_json(self._file, {"beat": 0})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        count, next_beat, cancelled = 0, time.monotonic() + BEAT_INTERVAL_S, False
        while not self._stop.wait(_MARKER_INTERVAL_S):
            if not cancelled and self._is_marked():
                cancelled = True
                self._on_cancel()
            try:
                self._on_tick()
                if time.monotonic() >= next_beat:
                    count, next_beat = count + 1, time.monotonic() + BEAT_INTERVAL_S
                    atomic.write_json(self._file, {"beat": count})
            except OSError:
                # A full disk must not end the step; the next beat may get through.
                continue

    def _is_marked(self) -> bool:
        try:
            return self._marker.exists()
        except OSError:
            return False  # A filesystem that hesitates must not end the beating.


class Watch:
    """Observes drivers over time; keep one for as long as the observing goes on."""

    def __init__(self, state: Path, *, silence_s: float = SILENCE_S) -> None:
        self._state = state
        self._silence_s = silence_s
        self._seen: dict[str, tuple[Any, float]] = {}

    def life(self, driver: Driver) -> Life:
        """Say whether `driver` lives, as far as can be known now."""
        if driver.machine == _machine() and not _is_hidden(driver.pid):
            alive = _process_start(driver.pid) == driver.started
            return Life.ALIVE if alive else Life.ENDED
        beat = read_json_or_none(self._state / driver.heartbeat)
        last, since = self._seen.get(driver.heartbeat, (None, None))
        if since is None or beat != last:
            self._seen[driver.heartbeat] = (beat, time.monotonic())
            # A file that is gone was removed by its owner, or by hand; that is no beat.
            return Life.UNKNOWN if since is None or beat is None else Life.ALIVE
        return Life.ENDED if time.monotonic() - since >= self._silence_s else Life.UNKNOWN


def is_this_host(machine: str) -> bool:
    """Return whether `Driver.machine` is of this host since it last started, containers of it
    that share its name included.
    """
    return machine.split("/")[:2] == _machine().split("/")[:2]


def _machine() -> str:
    """Identify the kernel and the pid namespace of this process; a reboot makes a new one."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        try:
            parts.append(Path(source).read_text().strip())
        except OSError:
            continue
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return "/".join(parts)


def _is_hidden(pid: int) -> bool:
    """Return whether `pid` is another user's and kept out of our /proc (hidepid, proc(5))."""
    if not Path("/proc/self/stat").exists() or Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False


def _process_start(pid: int) -> str | None:
    """Return a text that names when `pid` started, or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _process_start_by_ps(pid)
    except ProcessLookupError:
        return None
    # Field 22, starttime in clock ticks since boot (proc(5)); the name in field 2 may hold spaces.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _process_start_by_ps(pid: int) -> str | None:
    # Imported here: only systems without /proc come this way.
    import subprocess

    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
