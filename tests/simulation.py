"""Drivers that take turns at every system call, on a filesystem that may answer late or stale.

An *actor* is a thread in which the real code runs; only one moves at a time, and it stops before
each of its system calls, so that a test decides who goes next and who is killed there. `World.lag`
makes each actor a host of its own on NFS: a name that it once looked for in vain stays absent to it
for up to 30 simulated seconds, whatever others make, until it lists the folder; and opening a file
to read it may fail with ESTALE. Everything random comes from one seed.
"""

from __future__ import annotations

import errno
import os
import shutil  # Before os is patched: it decides at import how it removes trees. # noqa: F401
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nexa_hpc import advance, worker
from nexa_hpc.core import artifacts, reading
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.frontier import Frontier
from nexa_hpc.core.holding import HeldServers
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.core.standings import fold
from nexa_hpc.core.truths import Truth
from nexa_hpc.schedulers.base import Element, JobReport

NEGATIVE_S = 30.0
PATIENCE_S = 180.0
_LOOKING = ("stat", "lstat", "readlink", "listdir", "scandir", "access")
_MAKING = {"mkdir": 0, "link": 1, "symlink": 1, "rename": 1, "replace": 1}
_REMOVING = ("unlink", "rmdir", "remove")


class Killed(BaseException):
    """Raised in an actor that is no more, at every system call that it still tries."""


@dataclass(eq=False, repr=False)
class Actor:
    """A process, as far as the filesystem can tell."""

    name: str
    number: int
    thread: threading.Thread | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: bool = False
    dead: bool = False
    silent: bool = False
    """Taken for dead by all others, and still at work."""
    error: BaseException | None = None
    absent_until: dict[str, float] = field(default_factory=dict)
    """What this host believes to be absent, and until when."""
    stale: int = 0

    def __repr__(self) -> str:
        return self.name

    @property
    def fair(self) -> bool:
        """Whether nothing was done to it, so that its work must succeed."""
        return not self.dead and not self.silent


class World:
    """All actors, their clock and their chance."""

    def __init__(self, home: Path, seed: int, *, lag: bool = False) -> None:
        self.home = str(home)
        self.random = Random(seed)
        self.lag = lag
        self.clock = 0.0
        self.actors: list[Actor] = []
        self._back = threading.Semaphore(0)
        self._current = threading.local()
        self._patch = pytest.MonkeyPatch()
        self._environment = dict(os.environ)
        self._lstat = os.lstat
        self._install()

    def close(self) -> None:
        """End all actors and take the patches off."""
        for actor in self.actors:
            self.kill(actor)
        self._patch.undo()
        os.environ.clear()
        os.environ.update(self._environment)

    # -------------------------------------------------------------------------------- actors

    def spawn(self, name: str, act: Callable[[Actor], object]) -> Actor:
        """Return an actor that is about to do `act`."""
        actor = Actor(name, len(self.actors))

        def run() -> None:
            self._current.actor = actor
            actor.go.acquire()
            try:
                if not actor.dead:
                    act(actor)
            except BaseException as error:
                actor.error = None if isinstance(error, Killed) else error
            actor.ended = True
            self._back.release()

        actor.thread = threading.Thread(target=run, daemon=True)
        self.actors.append(actor)
        actor.thread.start()
        return actor

    def step(self, actor: Actor, calls: int = 1) -> None:
        """Let `actor` make its next system calls; what it raises is raised here."""
        for _ in range(calls):
            if actor.ended:
                break
            self.clock += self.random.uniform(0, 0.02)
            actor.go.release()
            assert self._back.acquire(timeout=PATIENCE_S), f"{actor.name} hangs"
        if actor.error is not None and actor.fair:
            raise actor.error

    def kill(self, actor: Actor) -> None:
        """End `actor` before its next system call, as kill -9 does."""
        actor.dead = True
        while not actor.ended:
            actor.go.release()
            assert self._back.acquire(timeout=PATIENCE_S), f"{actor.name} hangs"

    def turn(self, *paths: Any) -> Actor | None:
        """Wait for this actor's next turn; None outside of all actors, and of all that is theirs.

        No turn is taken at what Python does for itself: an import, say, holds a lock meanwhile.
        """
        actor: Actor | None = getattr(self._current, "actor", None)
        if not all(isinstance(p, int) or _text(p).startswith(self.home) for p in paths):
            return None
        if actor is not None:
            if actor.dead:
                raise Killed
            self._back.release()
            actor.go.acquire()
            if actor.dead:
                raise Killed
        return actor

    def wait(self, seconds: float) -> None:
        """Let simulated time pass for an actor that waits."""
        if self.turn() is not None:
            self.clock += seconds

    # ---------------------------------------------------------------------------- filesystem

    def _install(self) -> None:
        for name in (*_LOOKING, *_REMOVING, *_MAKING):
            self._patch.setattr(os, name, self._wrapped(getattr(os, name), name))
        self._patch.setattr(os, "open", self._opening(os.open))
        self._patch.setattr(os, "fsync", self._sync)
        self._patch.setattr(time, "sleep", self._sleeping(time.sleep))
        self._patch.setattr(advance, "end_leftovers", lambda tag: 0)

    def _wrapped(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        made = _MAKING.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            inside = kwargs.get("dir_fd") is not None
            actor = self.turn() if inside else self.turn(args[made or 0])
            if actor is None or not self.lag or inside or isinstance(args[0], int):
                return real(*args, **kwargs)
            paths = [_text(arg) for arg in args[: 1 if made is None else made + 1]]
            if made is None:
                return self._look(actor, paths[0], lambda: real(*args, **kwargs), name)
            for path in [*paths[:made], _parent(paths[made])]:
                if name != "symlink" or path != paths[0]:
                    self._believe(actor, path)
            try:
                result = real(*args, **kwargs)
            except FileExistsError:
                self._forget(actor, paths[made])
                raise
            self._forget(actor, paths[made])
            return result

        return call

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            inside = kwargs.get("dir_fd") is not None
            actor = self.turn() if inside else self.turn(path)
            if actor is None or not self.lag or inside:
                return real(path, flags, *args, **kwargs)
            if flags & os.O_CREAT:
                self._believe(actor, _parent(_text(path)))
                self._forget(actor, _text(path))
                return real(path, flags, *args, **kwargs)
            if sys._getframe(1).f_globals["__name__"] == reading.__name__:
                self._turn_stale(actor, _text(path))
            return self._look(actor, _text(path), lambda: real(path, flags, *args, **kwargs), "")

        return call

    def _sync(self, fd: int) -> None:
        self.turn()  # Nobody pulls the plug here.

    def _sleeping(self, real: Callable[[float], None]) -> Callable[[float], None]:
        def call(seconds: float) -> None:
            if getattr(self._current, "actor", None) is None:
                real(seconds)
            else:
                self.wait(seconds)

        return call

    def _turn_stale(self, actor: Actor, path: str) -> None:
        """Raise ESTALE now and then, but never so often in a row that reading must give up."""
        if actor.stale < 3 and self.random.random() < 0.05:
            actor.stale += 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        actor.stale = 0

    def _look(self, actor: Actor, path: str, real: Callable[[], Any], name: str) -> Any:
        self._believe(actor, path)
        try:
            result = real()
        except FileNotFoundError:
            missing = path
            while not self._is_there(parent := _parent(missing)):
                missing = parent
            actor.absent_until[missing] = self.clock + self.random.uniform(0, NEGATIVE_S)
            raise
        if name in ("listdir", "scandir"):
            for known in [p for p in actor.absent_until if _parent(p) == path]:
                del actor.absent_until[known]
        return result

    def _believe(self, actor: Actor, path: str) -> None:
        """Raise ENOENT where this host still holds `path`, or a folder above it, for absent."""
        while True:
            if actor.absent_until.get(path, 0.0) > self.clock:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if (above := _parent(path)) == path:
                return
            path = above

    def _is_there(self, path: str) -> bool:
        """Return whether something is at `path`, whoever asks."""
        try:
            self._lstat(path)
        except OSError:
            return False
        return True

    def _forget(self, actor: Actor, path: str) -> None:
        actor.absent_until.pop(path, None)


def _text(path: Any) -> str:
    return "/" if isinstance(path, int) else os.path.abspath(os.fsdecode(path))


def _parent(path: str) -> str:
    return os.path.dirname(path)


# ---------------------------------------------------------------------------------------- drivers


class Lives(Watch):
    """Knows which actors live: what the kernel and the heartbeats tell a real `Watch`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def life(self, driver: Driver) -> Life:
        actor = self.world.actors[driver.pid]
        return Life.ENDED if actor.ended or actor.dead or actor.silent else Life.ALIVE


class Inline:
    """A scheduler that runs elements where they are, without capturing what they print."""

    name = "inline"

    def __init__(self, world: World) -> None:
        self.world = world

    def room(self) -> int:
        return 1

    def submit(self, elements: Sequence[Element]) -> list[str]:
        for element in elements:
            worker.execute(element.run, element.instance.step, element.attempt)
        return ["done"]

    def poll(self, handles: Iterable[str]) -> Mapping[str, JobReport]:
        return {}

    def wait(self, timeout_s: float) -> None:
        self.world.wait(timeout_s)

    def cancel(self, handles: Iterable[str]) -> None:
        pass

    def render(self, elements: Sequence[Element]) -> str:
        return ""


class Quiet:
    """An observer that says nothing."""

    def started(self, instance: Instance, attempt: int) -> None: ...
    def output(self, instance: Instance, text: bytes) -> None: ...
    def progressed(self, instance: Instance, progress: object) -> None: ...
    def settled(self, instance: Instance, standing: object) -> None: ...
    def waits(self, instance: Instance, standing: object) -> None: ...


class Work:
    """The handler: fills every output with what tells one execution from all others."""

    effect = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.executions: list[str] = []

    def run(self, task: Any) -> None:
        actor = self.world.turn()
        assert actor is not None
        mine = f"{actor.name}, attempt {task.attempt}, execution {len(self.executions) + 1}"
        self.executions.append(mine)
        (task.work_dir / "scratch").write_text(mine)
        for folder in task.outputs.values():
            self.world.turn()
            for part in ("one", "two"):
                (folder / part).write_text(mine)
        self.world.turn()
        assert (task.work_dir / "scratch").read_text() == mine


def drive(world: World, actor: Actor, run: Run) -> None:
    """Drive `run` to its end as `driving.drive` does, without signals, heartbeat and projection."""
    driver = Driver("here", "here", actor.number, "", "beat.json")
    view = advance.View(
        run,
        driver,
        Quiet(),
        Inline(world),
        Lives(world),
        run.attempts_before(),
        Frontier(run.instances),
        HeldServers(run, driver),
        projected_at=float("inf"),
    )
    while True:
        advance.advance(view)
        if view.frontier.is_empty:
            break
        world.wait(world.random.uniform(0.2, 5))
    assert all(standing.state.succeeded for standing in view.standings.values()), view.standings
    assert view.damage == []


def truth_of(world: World, run: Run, instance: Instance) -> Truth:
    """Return what the fold says now; from an actor, what it says as others go on."""
    return fold(run, instance, {}, Lives(world))


def published(place: Path) -> str | None:
    """Return which execution's result stands whole at `place`, or None; looks at every byte."""
    artifact = artifacts.look(place).artifact
    if artifact is None:
        return None
    assert artifacts.verify(artifact) == []
    contents = {(place / part).read_text() for part in ("one", "two")}
    assert len(contents) == 1, f"of several executions: {contents}"
    return contents.pop()
