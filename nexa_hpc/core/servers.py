"""Servers that we started: a handle for each on disk, what is true of it, and how it is stopped.

    .nexa_state/serve/<name>.json    the handle: made by who starts it, then its supervisor's alone
    .nexa_state/serve/<name>.stop    the wish that it end; from any node
    .nexa_state/serve/<name>.keep    the wish that one which is held stay without (`leases`)
    .nexa_state/serve/<name>.token   what clients must show; its maker's alone, 0600
    .nexa_state/serve/<name>.log     what the server and its supervisor print

Called by `serve`, by the handler, by steps that read a server, and by driving. Standard library
alone.
"""

from __future__ import annotations

import enum
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.answering import where
from nexa_hpc.core.drivers import SILENCE_S, Driver, Life, Watch
from nexa_hpc.core.leftovers import end_leftovers
from nexa_hpc.core.reading import list_names, read_json_or_none
from nexa_hpc.errors import StateError, StepError, UnknownNameError, UserError, nearest

LOCAL, SLURM = "local", "slurm"
"""Where a server runs: on the machine that started it, or as a job."""
EVERYWHERE = "0.0.0.0"
"""What a server listens on that other machines reach."""
TAG_VARIABLE = "NEXA_HPC_SERVER"
"""Names, in the environment of a server and all it starts, which one they are of."""
STOP_GRACE_S = 20.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LISTS = ("argv", "notes", "folders", "secrets")
_POLL_S = 0.1


class Condition(enum.Enum):
    """What is true of a server."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    """It answered once, and nothing says that it has ended."""
    STOPPING = "STOPPING"
    """Nobody holds it any more: it is about to end, unless somebody does so now."""
    STOPPED = "STOPPED"
    CRASHED = "CRASHED"

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self not in (Condition.STOPPED, Condition.CRASHED)


@dataclass(frozen=True)
class Handle:
    """What is recorded of one server."""

    name: str
    tag: str
    """Unique; in the environment of its processes."""
    backend: str
    model: str
    """As people name it."""
    served_as: str
    """The name that requests give."""
    host: str
    """What it listens on."""
    port: int
    """The port that was asked for, and then the one it has; 0 for a free one."""
    argv: tuple[str, ...]
    """With `{host}` and `{port}` to be filled in."""
    variables: Mapping[str, str]
    token_variable: str
    """In which variable the server is given its token; empty without one."""
    created_at: float
    deadline_s: float
    """How long it may take to answer."""
    scheduler: str = LOCAL
    restarts: int = 0
    """How often its job had been requeued when its supervisor began."""
    supervisor: Mapping[str, Any] | None = None
    url: str = ""
    """Where it answers; empty until it has."""
    ended: str = ""
    """STOPPED or CRASHED."""
    message: str = ""
    notes: tuple[str, ...] = field(default=())
    leased: bool = False
    """Whether it ends when nobody holds it any more (`leases`)."""
    folders: tuple[str, ...] = ()
    """What it reads, for as long as it may be started again."""
    ending: bool = False
    """Whether its supervisor has found that nobody does."""
    secrets: tuple[str, ...] = ()
    """Names of variables whose values its log does not show."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Handle:
        """Return the handle that `to_json` wrote; raises StateError for another thing."""
        try:
            lists = {name: tuple(value.get(name, ())) for name in _LISTS}
            return cls(**{**value, **lists})
        except TypeError as error:
            raise StateError(f"a server's handle cannot be understood: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return the handle as its file holds it."""
        return asdict(self)

    def command(self, port: int) -> list[str]:
        """Return the argv with which it listens on `port`."""
        known = {"{host}": self.host, "{port}": str(port)}
        return [known.get(part, part) for part in self.argv]


class Jobs(Protocol):
    """Who knows of the jobs that hold servers: `schedulers.slurm.server_jobs`."""

    def condition(self, handle: Handle) -> tuple[Condition, str]:
        """Return what is true of a server that is a job, and why."""

    def cancel(self, handle: Handle) -> None:
        """End its job and return when that is done; raises StepError where it goes on."""


class Servers:
    """The servers of one project; `folder` is `ProjectPaths.servers`.

    Without `jobs`, those in Slurm are known by what their supervisors write alone.
    """

    def __init__(
        self, folder: Path, jobs: Jobs | None = None, *, silence_s: float = SILENCE_S
    ) -> None:
        self.folder = folder
        self._jobs = jobs
        self.silence_s = silence_s
        """After which a process on another machine that does not beat has ended."""
        self._watch = Watch(folder, silence_s=silence_s)

    @property
    def beats(self) -> Path:
        """The folder of the supervisors' heartbeats."""
        return self.folder / "beats"

    def file(self, name: str, kind: str = "json") -> Path:
        """Return the file of `name`: json, stop, keep, token or log."""
        return self.folder / f"{name}.{kind}"

    def names(self) -> list[str]:
        """Return the names of the servers that have a handle."""
        found = (n for n in list_names(self.folder) if n.endswith(".json"))
        return sorted(n[:-5] for n in found if _NAME.fullmatch(n[:-5]))

    def find(self, name: str) -> Handle | None:
        """Return the handle of `name`; None without one."""
        found = read_json_or_none(self.file(name))
        return None if found is None else Handle.from_json(found)

    def get(self, name: str) -> Handle:
        """Return the handle of `name`; raises UnknownNameError with the nearest name."""
        handle = self.find(name) if _NAME.fullmatch(name) else None
        if handle is None:
            raise UnknownNameError(
                f"no server '{name}'" + nearest(name, self.names()), hint="nexa-hpc serve list"
            )
        return handle

    def token(self, name: str) -> str | None:
        """Return what clients of `name` must show, or None; raises UserError where it is
        another user's.
        """
        try:
            return self.file(name, "token").read_text().strip()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise UserError(f"the token of '{name}' is for its owner alone") from error

    def condition(self, handle: Handle) -> tuple[Condition, str]:
        """Return what is true of a server, as far as this machine knows, and why."""
        if handle.scheduler == SLURM and self._jobs is not None:
            return self._jobs.condition(handle)
        if handle.ended:
            return Condition(handle.ended), handle.message
        if handle.supervisor is None:
            return Condition.STARTING, ""
        life = self._watch.life(Driver.from_json(handle.supervisor))
        if life is Life.ENDED:
            return Condition.CRASHED, "its supervisor was killed"
        if handle.ending:
            return Condition.STOPPING, ""
        return (Condition.HEALTHY if handle.url else Condition.STARTING), ""

    def heard_s(self, handle: Handle) -> float:
        """Return how long ago the supervisor of `handle` last beat, by this machine's clock; 0
        where it left nothing.
        """
        beat = str((handle.supervisor or {}).get("heartbeat"))
        try:
            return max(0.0, time.time() - (self.folder / beat).stat().st_mtime)
        except OSError:
            return 0.0

    def create(self, handle: Handle, token: str | None) -> None:
        """Record that `handle` is about to start; raises UserError where one of its name lives."""
        atomic.make_folder(self.folder)
        before = self.find(handle.name)
        if before is not None:
            condition, _ = self.condition(before)
            if condition.lives:
                raise _taken(before)
            self.forget(before)
        # First the name, which one of several gets; nobody supervises before this returns.
        if not atomic.create_once(self.file(handle.name), handle.to_json()):
            raise _taken(self.get(handle.name))
        for kind in ("token", "log"):
            atomic.remove_file(self.file(handle.name, kind))
        if token is not None:
            content = f"{token}\n".encode()
            atomic.write_new_file(self.file(handle.name, "token"), content, PRIVATE)

    def update(self, handle: Handle) -> None:
        """Replace the handle; its supervisor alone calls it, or who found that gone."""
        atomic.write_json(self.file(handle.name), handle.to_json())

    def is_to_stop(self, handle: Handle) -> bool:
        """Return whether somebody wants it to end."""
        wish = read_json_or_none(self.file(handle.name, "stop"))
        return wish is not None and wish.get("tag") == handle.tag

    def stop(self, handle: Handle) -> None:
        """End a server and all it started, and forget it; returns when that is done.

        One on another machine is asked through the disk, and has gone if it does not take the
        silence of a driver to answer. Raises StepError where it goes on.
        """
        atomic.write_json(self.file(handle.name, "stop"), {"tag": handle.tag})
        _signal_supervisor(handle)
        is_near = is_here(handle) or handle.scheduler == SLURM
        grace_s = STOP_GRACE_S + (5 if is_near else self.silence_s)
        deadline = time.monotonic() + grace_s
        while (now := self.find(handle.name)) is not None and now.tag == handle.tag:
            condition, _ = self.condition(now)
            is_job = now.scheduler == SLURM and self._jobs is not None
            if not condition.lives or now.supervisor is None:
                break
            if is_job and condition is Condition.STARTING:
                break  # It waits, perhaps once more: nobody is there to see the wish.
            if time.monotonic() > deadline:
                if now.scheduler == LOCAL and not is_here(now):
                    raise StepError(f"'{handle.name}' on {where(now)} has not ended yet")
                break
            time.sleep(_POLL_S)
        if handle.scheduler == SLURM and self._jobs is not None:
            self._jobs.cancel(handle)
        # What a supervisor that was killed could not end.
        end_leftovers(handle.tag, TAG_VARIABLE)
        self.forget(handle)

    def forget(self, handle: Handle) -> None:
        """Remove what is recorded of a server that has ended, but for its log."""
        now = self.find(handle.name)
        if now is not None and now.tag != handle.tag:
            return  # Another one has taken the name meanwhile.
        for kind in ("token", "json", "stop", "keep"):
            atomic.remove_file(self.file(handle.name, kind))

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of its log."""
        try:
            text = self.file(name, "log").read_bytes()[-20_000:].decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])


def name_problem(name: object) -> str | None:
    """Return what is wrong with a server's name, or None."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return "a server's name is made of letters, digits, - and _, at most 64"


def is_here(handle: Handle) -> bool:
    """Return whether the supervisor of a server is one of this machine's processes."""
    here = Driver.this_process(Path("/"), Path("/")).machine
    return handle.supervisor is not None and handle.supervisor["machine"] == here


def _signal_supervisor(handle: Handle) -> None:
    if not is_here(handle) or handle.supervisor is None:
        return
    driver = Driver.from_json(handle.supervisor)
    if Watch(Path("/")).life(driver) is Life.ALIVE:
        try:
            os.kill(driver.pid, signal.SIGTERM)
        except OSError:
            return  # Ended meanwhile, or another user's: the wish is on disk.


def _taken(handle: Handle) -> UserError:
    where = f" at {handle.url}" if handle.url else ""
    return UserError(
        f"a server '{handle.name}' is there already{where}",
        hint=f"nexa-hpc serve stop {handle.name}, or choose another --name",
    )
