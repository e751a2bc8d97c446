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
from typing import Any

from nexa_hpc import worker
from nexa_hpc.core import records, truths
from nexa_hpc.core.atomic import sync_folder
from nexa_hpc.core.drivers import Driver, Life
from nexa_hpc.core.environments import needs_process
from nexa_hpc.core.frontier import Frontier
from nexa_hpc.core.holding import HeldServers
from nexa_hpc.core.instances import RUN, SKIP, Instance
from nexa_hpc.core.leftovers import attempt_tag, end_leftovers
from nexa_hpc.core.links import link_outputs
from nexa_hpc.core.progress_file import read_progress
from nexa_hpc.core.projection import write_projection
from nexa_hpc.core.runs import Run, is_asked, newest_run
from nexa_hpc.core.standings import as_stopped, blocked, fold, fold_after
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.core.truths import Truth
from nexa_hpc.errors import ArtifactError, Interrupted, SchedulerError
from nexa_hpc.observing import Observer
from nexa_hpc.schedulers.base import Element, JobState, Scheduler
from nexa_hpc.submitting import SlurmSide

_PROJECT_EVERY_S = 1.0


@dataclass
class View:
    """What one driver knows of a run; settled instances are not looked at again."""

    run: Run
    driver: Driver
    observer: Observer
    scheduler: Scheduler
    watch: truths.Observer
    before: Mapping[str, int]
    frontier: Frontier
    holding: HeldServers
    standings: dict[str, Standing] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    """What went wrong beside the steps, such as an `out` in the way; told at the end."""
    noted: set[str] = field(default_factory=set)
    """What the user was told of already."""
    linked: set[Path] = field(default_factory=set)
    """Folders in which links changed, to be synced once at the end."""
    slurm: SlurmSide | None = None
    """The Slurm steps of the run, where it has some."""
    started: dict[str, tuple[Instance, int]] = field(default_factory=dict)
    """Handle -> instance and attempt, for jobs of this driver that have not been seen to end."""
    due: set[str] = field(default_factory=set)
    """Steps that only wait for room."""
    newest: Run | None = None
    """The pipeline's newest run, where it is another one than this."""
    runs_here: bool = False
    """Whether the scheduler runs at once, in this process, what needs none of its own."""
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

    @property
    def is_in_slurms_hands(self) -> bool:
        """Whether nothing of the run is left that another pass of this process could move."""
        local = (State.RUNNING, State.SUBMITTED, State.PENDING)
        return (
            self.slurm is not None
            and not self.slurm.is_unsure
            and not any(
                standing.state in local and self.run.instances[step].scheduler != "slurm"
                for step, standing in self.standings.items()
            )
        )

    def is_run_here(self, instance: Instance) -> bool:
        """Return whether `instance` is run in this process, and has ended when it was submitted."""
        return self.runs_here and not needs_process(instance.env)

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
    if view.slurm is not None:
        view.slurm.mend()
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
            view.holding.settled(instance)
            view.observer.settled(instance, standing)
            if standing.state is not State.SKIPPED:
                view.project()
            continue
        if standing != known and not view.is_ours(instance):
            view.observer.waits(instance, standing)
        if standing.state is State.PENDING and step in view.run.shared_elements:
            _look_again(view, view.run.shared_elements[step])
    if view.slurm is not None and not view.run.cancelled:
        view.slurm.end_stopped(view.standings)
        view.slurm.stop_if_hopeless(view.standings)
        if view.slurm.is_due and not view.run.cancelled:
            _hand_over(view, view.slurm)
    return changed


def _look_again(view: View, server: str) -> None:
    """See what is true now of a `server` that had come up, as a step in its element is to be tried
    again: its job may have gone, or have been requeued.
    """
    if not view.standings[server].state.settled:
        return
    standing = view.standings[server] = _look_at_slurm(view, view.run.instances[server])
    if not standing.state.settled:
        view.frontier.reopen(server)


def _hand_over(view: View, slurm: SlurmSide) -> None:
    done = slurm.hand_over(view.standings)
    for step, job in done.jobs.items():
        view.standings[step] = Standing(State.SUBMITTED, job=job)
    if done.jobs:
        view.observer.handed_over(done)
    view.project()
    if done.trouble:
        raise SchedulerError(
            "\n".join(dict.fromkeys(done.trouble)),
            hint=f"mend it, then: nexa-hpc resume {view.run.id}",
        )


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
        why = view.run.stopped.get(instance.step) if report.message else None
        # Neither has an effect where the worker recorded its end itself.
        if why is not None:
            records.end(folder, number, State.CANCELLED, message=why)
        elif report.message:
            records.end(
                folder, number, State.FAILED, reason=Reason.EXCEPTION, message=report.message
            )


def _advance_instance(view: View, instance: Instance) -> Standing:
    """Run `instance` unless it is done, has failed in this round, or is in other hands."""
    if instance.scheduler == "slurm":
        return _look_at_slurm(view, instance)
    truth = fold(view.run, instance, view.before, view.watch)
    if instance.serves:
        truth = view.holding.look(instance, truth)
    if truth.standing.state.succeeded:
        _link(view, instance)
        return truth.standing
    if truth.life in (Life.ALIVE, Life.UNKNOWN):
        return truth.standing
    # Asked anew for each: what is run in this process is run within one pass.
    why = view.run.stopped.get(instance.step)
    if why is not None or _is_answer(view.run, truth):
        return as_stopped(truth.standing, why)
    if view.scheduler.room() < 1:
        view.due.add(instance.step)
        return Standing(State.PENDING)
    if instance.action == SKIP and not instance.effect:
        # Planned at a glance; what a look finds is the reason to show.
        instance = instance.decided(RUN, truth.standing.message or "its result is gone")
    return _make_attempt(view, instance, truth)


def _make_attempt(view: View, instance: Instance, truth: Truth) -> Standing:
    """Claim and start the next attempt at `instance`, of which `truth` was found."""
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
    look = fold_after if view.is_run_here(instance) else fold
    ended = look(view.run, instance, view.before, view.watch)
    if ended.standing.state.succeeded:
        _link(view, instance)
    if ended.life is Life.ENDED:
        # Ours was purged, and whoever made the next attempt is gone: to be tried, and no answer.
        return Standing(State.PENDING, message=ended.standing.message)
    if ended.standing.state is State.CANCELLED:
        return as_stopped(ended.standing, view.run.stopped.get(instance.step))
    return ended.standing


def _look_at_slurm(view: View, instance: Instance) -> Standing:
    assert view.slurm is not None
    standing = view.slurm.look(instance).standing
    if standing.state.succeeded:
        _link(view, instance)
    elif standing.state is State.RUNNING and standing.attempt is not None:
        progress = read_progress(view.run.place.progress(instance.step, standing.attempt))
        if progress is not None:
            view.observer.progressed(instance, progress)
    return standing


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
    start = records.here() if view.is_run_here(instance) else None
    return records.claim(run.paths.records(instance.key), number, content, start=start)


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
        is_to_stop=lambda: instance.step in view.run.stopped,
        is_started=view.is_run_here(instance),
    )
    (handle,) = view.scheduler.submit([element])
    view.started[handle] = (instance, number)
    if any(instance.outputs.values()):
        view.note_newest()


def _link(view: View, instance: Instance) -> None:
    """Link `out` while the newest plan of the pipeline still asks for this key."""
    if not any(instance.outputs.values()) or not is_asked(view.newest, instance):
        return
    try:
        view.linked |= link_outputs(instance, view.run.paths, view.run.views(instance))
    except ArtifactError as error:
        view.damage.append(f"step '{instance.step}': {error}")
