"""Outside the jobs: the driver, which is a function and not a process.

`advance(run)` reads what is true, decides, starts what can be started, records it and returns.
Calling it twice, from two places, or killing it anywhere does no harm: an attempt belongs to
whoever created its claim, and a result to its key. `drive` calls it until nothing is left to do, as
the login-node command and the Python interface do for local steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nexa_hpc import worker
from nexa_hpc.core import records
from nexa_hpc.core.atomic import sync_folder
from nexa_hpc.core.drivers import Driver, Heartbeat, Life, Watch
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.leftovers import attempt_tag, end_leftovers
from nexa_hpc.core.links import link_outputs
from nexa_hpc.core.projection import write_projection
from nexa_hpc.core.runs import Run, newest_run
from nexa_hpc.core.standings import Truth, blocked, fold, fold_all
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.errors import ArtifactError, Interrupted
from nexa_hpc.schedulers.base import Element, Scheduler
from nexa_hpc.schedulers.local import LocalScheduler

_WAIT_S = (0.2, 5.0)
_PROJECT_EVERY_S = 1.0


class Observer(Protocol):
    """Is told what happens, as it happens; the command line shows it."""

    def started(self, instance: Instance, attempt: int) -> None:
        """An attempt begins."""

    def output(self, instance: Instance, text: bytes) -> None:
        """A running step printed something."""

    def progressed(self, instance: Instance, progress: Progress) -> None:
        """A running step told how far it is."""

    def settled(self, instance: Instance, standing: Standing) -> None:
        """Nothing more happens to an instance in this round."""

    def waits(self, instance: Instance, standing: Standing) -> None:
        """An instance is in other hands."""


@dataclass
class View:
    """What one driver knows of a run; settled instances are not looked at again."""

    run: Run
    driver: Driver
    observer: Observer
    scheduler: Scheduler
    watch: Watch
    before: Mapping[str, int]
    standings: dict[str, Standing] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    """What went wrong beside the steps, such as an `out` in the way; told at the end."""
    linked: set[Path] = field(default_factory=set)
    """Folders in which links changed, to be synced once at the end."""
    newest: Run | None = None
    """The pipeline's newest run, where it is another one than this."""
    projected_at: float = 0.0

    def settle(self) -> None:
        """Leave everything durable and the projection true, at the end of driving."""
        for folder in self.linked:
            sync_folder(folder)
        self.project(always=True)

    def note_newest(self) -> None:
        """Look which run is the pipeline's newest."""
        newest = newest_run(self.run.paths, self.run.pipeline)
        self.newest = newest if newest is not None and newest.id != self.run.id else None

    def project(self, *, always: bool = False) -> None:
        """Write the projection, at most once a second unless `always`."""
        if always or time.monotonic() - self.projected_at >= _PROJECT_EVERY_S:
            pending = Standing(State.PENDING)
            known = {step: self.standings.get(step, pending) for step in self.run.instances}
            write_projection(self.run, known)
            self.projected_at = time.monotonic()


def drive(run: Run, observer: Observer) -> dict[str, Standing]:
    """Advance `run` until every instance has settled, and return step id -> standing.

    Waits for instances that another process runs. Raises Interrupted on Ctrl-C, SIGTERM or
    `cancel`, after the projection was written; ArtifactError when a link could not be made.
    """
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    view = View(
        run,
        driver,
        observer,
        LocalScheduler(_execute),
        Watch(run.paths.state),
        run.attempts_before(),
    )
    with (
        _stopped_by_signals() as interrupt,
        Heartbeat(driver, run.paths.state, run.place.cancelled, interrupt),
    ):
        try:
            _drive(view)
        except (KeyboardInterrupt, Interrupted) as error:
            where = _where(view)
            view.standings = fold_all(run, view.watch)
            raise Interrupted(
                f"run {run.id} was stopped{where}; what is finished stays",
                hint=f"nexa-hpc pipeline resume {run.id}",
            ) from error
        finally:
            view.settle()
    if view.damage:
        raise ArtifactError("\n".join(view.damage), hint=f"nexa-hpc pipeline resume {run.id}")
    return view.standings


def advance(view: View) -> bool:
    """Make one pass in graph order over what has not settled; return whether anything changed."""
    changed = False
    view.note_newest()
    for step, instance in view.run.instances.items():
        known = view.standings.get(step)
        if known is not None and known.state.settled:
            continue
        if not all(view.standings[parent].state.settled for parent in instance.parents):
            view.standings[step] = Standing(State.PENDING)
            continue
        standing = blocked(instance, view.standings) or _advance_instance(view, instance)
        view.standings[step] = standing
        if standing.state.settled:
            changed = True
            view.observer.settled(instance, standing)
            view.project()
        elif standing != known:
            view.observer.waits(instance, standing)
    return changed


def _where(view: View) -> str:
    running = [step for step, s in view.standings.items() if s.state is State.RUNNING]
    return f" in step '{running[0]}'" if running else ""


def _drive(view: View) -> None:
    least, most = _WAIT_S
    wait_s = least
    while True:
        changed = advance(view)
        if all(standing.state.settled for standing in view.standings.values()):
            return
        wait_s = least if changed else min(wait_s * 1.5, most)
        time.sleep(wait_s)


def _advance_instance(view: View, instance: Instance) -> Standing:
    """Run `instance` unless it is done, has failed in this round, or is in other hands."""
    truth = fold(view.run, instance, view.before, view.watch)
    if truth.standing.state.succeeded:
        _link(view, instance)
        return truth.standing
    if truth.life in (Life.ALIVE, Life.UNKNOWN) or _is_answer(view.run, truth):
        return truth.standing
    number = _next_attempt(view.run, instance, truth)
    if not _claim(view, instance, number):
        return Standing(State.PENDING, message="another process was first")
    try:
        _start(view, instance, number)
    except (KeyboardInterrupt, Interrupted):
        # Where the worker had not begun, or had not ended, nobody else records it.
        folder = view.run.paths.records(instance.key)
        records.end(folder, number, State.CANCELLED, message=worker.STOPPED)
        raise
    ended = fold(view.run, instance, view.before, view.watch)
    if ended.standing.state.succeeded:
        _link(view, instance)
    return ended.standing


def _is_answer(run: Run, truth: Truth) -> bool:
    """Return whether a settled failure stands for this round, rather than being tried again."""
    if not truth.standing.state.settled or truth.attempt is None:
        return False
    if truth.standing.reason == Reason.LOST.value:
        return False
    cancelled = truth.standing.state is State.CANCELLED
    return not (cancelled and truth.attempt.claim.get("run") != run.id)


def _next_attempt(run: Run, instance: Instance, truth: Truth) -> int:
    """Return the number of the attempt to claim, first closing one whose process is gone."""
    if truth.attempt is None:
        return 1
    if truth.life is Life.ENDED:
        end_leftovers(attempt_tag(instance.key, truth.attempt.number))
        folder = run.paths.records(instance.key)
        message = truth.standing.message
        records.end(folder, truth.attempt.number, State.FAILED, reason=Reason.LOST, message=message)
    return truth.attempt.number + 1


def _claim(view: View, instance: Instance, number: int) -> bool:
    run = view.run
    log = run.place.log(instance.step, number)
    content: dict[str, Any] = {
        "run": run.id,
        "pipeline": run.pipeline,
        "step": instance.step,
        "user": run.request["user"],
        "scheduler": view.scheduler.name,
        "driver": view.driver.to_json(),
        "job": str(view.driver),
        "log": os.path.relpath(log, run.paths.state),
    }
    return records.claim(run.paths.records(instance.key), number, content)


def _start(view: View, instance: Instance, number: int) -> None:
    view.observer.started(instance, number)
    view.standings[instance.step] = Standing(State.RUNNING, attempt=number, job=str(view.driver))
    view.project()
    element = Element(
        view.run,
        instance,
        number,
        view.run.place.log(instance.step, number),
        on_output=lambda text: view.observer.output(instance, text),
        on_progress=lambda progress: view.observer.progressed(instance, progress),
    )
    view.scheduler.submit([element])
    view.note_newest()


def _execute(element: Element) -> object:
    return worker.execute(element.run, element.instance.step, element.attempt, element.on_progress)


def _link(view: View, instance: Instance) -> None:
    """Link `out` while the newest plan of the pipeline still asks for this key."""
    if view.newest is not None:
        asked = view.newest.instances.get(instance.step)
        if asked is None or asked.key != instance.key:
            return
    try:
        view.linked |= link_outputs(instance, view.run.paths)
    except ArtifactError as error:
        view.damage.append(f"step '{instance.step}': {error}")


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that what is true gets recorded.

    Yields a function that stops this process in the same way, for `cancel`. It sends SIGTERM, as
    SIGINT is ignored in what a shell script started with `&`. A hang-up that `nohup` ignores stays
    ignored.
    """

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        # In a notebook server's worker, say: signals are the caller's.
        yield lambda: os.kill(os.getpid(), signal.SIGINT)
        return
    caught = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        caught.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
