"""Outside the jobs: the driver, which is a function and not a process.

`advance(run)` reads what is true, decides, starts what can be started, records it and returns.
Calling it twice, from two places, or killing it anywhere does no harm: an attempt belongs to
whoever created its claim, and a result to its key. `drive` calls it in a loop.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nexa_hpc import worker
from nexa_hpc.core import records
from nexa_hpc.core.atomic import sync_folder
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.frontier import Frontier
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import RUN, SKIP, Instance
from nexa_hpc.core.leftovers import attempt_tag, end_leftovers
from nexa_hpc.core.links import link_outputs
from nexa_hpc.core.projection import write_projection
from nexa_hpc.core.runs import Run, newest_run
from nexa_hpc.core.standings import Truth, blocked, fold
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.errors import ArtifactError, Interrupted
from nexa_hpc.schedulers.base import Element, JobState, Scheduler

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
    frontier: Frontier
    standings: dict[str, Standing] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    """What went wrong beside the steps, such as an `out` in the way; told at the end."""
    linked: set[Path] = field(default_factory=set)
    """Folders in which links changed, to be synced once at the end."""
    started: dict[str, tuple[Instance, int]] = field(default_factory=dict)
    """Handle -> instance and attempt, for jobs of this driver that have not been seen to end."""
    due: set[str] = field(default_factory=set)
    """Steps that only wait for room."""
    newest: Run | None = None
    """The pipeline's newest run, where it is another one than this."""
    projected_at: float = 0.0
    is_late: bool = False
    projecting: threading.Lock = field(default_factory=threading.Lock)

    def settle(self) -> None:
        """Leave everything durable and the projection true, at the end of driving."""
        for folder in self.linked:
            sync_folder(folder)
        self.project(always=True)

    def is_ours(self, instance: Instance) -> bool:
        """Return whether this driver runs `instance` at present."""
        return any(started.key == instance.key for started, _ in self.started.values())

    def note_newest(self) -> None:
        """Look which run is the pipeline's newest."""
        newest = newest_run(self.run.paths, self.run.pipeline)
        self.newest = newest if newest is not None and newest.id != self.run.id else None

    def project(self, *, always: bool = False) -> None:
        """Write the projection, at most once a second unless `always`.

        What is put off is written by `project_late`, which another thread may call.
        """
        with self.projecting:
            self.is_late = not always and time.monotonic() - self.projected_at < _PROJECT_EVERY_S
            if self.is_late:
                return
            pending = Standing(State.PENDING)
            known = {step: self.standings.get(step, pending) for step in self.run.instances}
            write_projection(self.run, known)
            self.projected_at = time.monotonic()

    def project_late(self) -> None:
        """Write the projection that was put off, if one was."""
        if self.is_late:
            self.project()


def advance(view: View) -> bool:
    """Make one pass in graph order over what may move; return whether anything settled."""
    changed = False
    view.note_newest()
    _note_ended(view)
    for step in view.frontier.open():
        if step in view.due and view.scheduler.room() < 1:
            # All before it run, all after it were looked at: there is nothing to do but to wait.
            break
        instance, known = view.run.instances[step], view.standings.get(step)
        standing = blocked(instance, view.standings) or _advance_instance(view, instance)
        view.standings[step] = standing
        if standing.state.settled:
            changed = True
            view.frontier.settle(step)
            view.observer.settled(instance, standing)
            if standing.state is not State.SKIPPED:
                view.project()
        elif standing != known and not view.is_ours(instance):
            view.observer.waits(instance, standing)
    return changed


def stop(view: View) -> None:
    """Stop what this driver has started, and record what its workers could not record."""
    view.scheduler.cancel(view.started)
    for instance, number in view.started.values():
        folder = view.run.paths.records(instance.key)
        records.end(folder, number, State.CANCELLED, message=worker.STOPPED)
    view.started.clear()


def _note_ended(view: View) -> None:
    """Forget the jobs that have ended, closing the attempts of those that crashed."""
    for handle, report in view.scheduler.poll(list(view.started)).items():
        if report.state is not JobState.ENDED:
            continue
        instance, number = view.started.pop(handle)
        folder = view.run.paths.records(instance.key)
        if report.message:
            # Has no effect where the worker recorded its end itself.
            records.end(
                folder, number, State.FAILED, reason=Reason.EXCEPTION, message=report.message
            )


def _advance_instance(view: View, instance: Instance) -> Standing:
    """Run `instance` unless it is done, has failed in this round, or is in other hands."""
    truth = fold(view.run, instance, view.before, view.watch)
    if truth.standing.state.succeeded:
        _link(view, instance)
        return truth.standing
    if truth.life in (Life.ALIVE, Life.UNKNOWN) or _is_answer(view.run, truth):
        return truth.standing
    if view.scheduler.room() < 1:
        view.due.add(instance.step)
        return Standing(State.PENDING)
    if instance.action == SKIP and not instance.effect:
        # Planned at a glance; what a look finds is the reason to show.
        instance = instance.decided(RUN, truth.standing.message or "its result is gone")
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
        folder = run.paths.records(instance.key)
        end_leftovers(attempt_tag(folder, truth.attempt.number))
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
    (handle,) = view.scheduler.submit([element])
    view.started[handle] = (instance, number)
    view.note_newest()


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
