"""Driving: calling `advance` until nothing is left to do, in this process, as long as it lives.

What the login-node command and the Python interface do for local steps. Beats, so that other nodes
know that this process lives; ends cleanly on Ctrl-C, SIGTERM, a closed terminal and `cancel`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc import worker
from nexa_hpc.advance import View, advance, stop
from nexa_hpc.core import batches
from nexa_hpc.core.drivers import Driver, Heartbeat
from nexa_hpc.core.frontier import Frontier
from nexa_hpc.core.holding import HeldServers
from nexa_hpc.core.runs import Run, last_cancel, open_run
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing, State
from nexa_hpc.core.truths import Observer as StandingObserver
from nexa_hpc.errors import ArtifactError, Interrupted, SchedulerError
from nexa_hpc.observing import Observer
from nexa_hpc.schedulers.base import Element, Scheduler
from nexa_hpc.schedulers.local import LocalScheduler
from nexa_hpc.schedulers.pool import WorkerPool
from nexa_hpc.schedulers.singly import Stopper
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.schedulers.slurm.watching import Observer as SlurmObserver
from nexa_hpc.schedulers.slurm.watching import observer_of
from nexa_hpc.submitting import SlurmSide

_WAIT_S = (0.2, 5.0)


def drive(run: Run, observer: Observer, jobs: int = 1, *, wait: bool = True) -> dict[str, Standing]:
    """Advance `run` until every instance has settled, and return step id -> standing.

    With several `jobs`, independent steps run side by side, each in a worker process of its own;
    else one after the other in this process. Waits for instances that another process runs; for
    those that Slurm has only if it is to `wait`, else the advance job is left to go on. Raises
    Interrupted on Ctrl-C, SIGTERM or `cancel`, after the projection was written; SchedulerError
    when nothing could be submitted; ArtifactError when a link could not be made; UserError for
    another user's run.
    """
    require_own(run.place.folder, "the run in")
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    watch = observer_of(run)
    before = run.attempts_before()
    slurm = _slurm_side(run, driver, watch, before)
    view = View(
        run,
        driver,
        observer,
        _scheduler(jobs),
        watch,
        before,
        Frontier(run.instances),
        HeldServers(run, driver),
        slurm=slurm,
        runs_here=jobs == 1,
    )
    with (
        _stopped_by_signals() as interrupt,
        Heartbeat(driver, run.paths.state, run.place.cancelled, interrupt, _each_second(view)),
    ):
        try:
            try:
                _drive(view, wait=wait)
            finally:
                # What was submitted before something was refused is looked after as well.
                if not isinstance(sys.exc_info()[1], (KeyboardInterrupt, Interrupted)):
                    _arm(view)
        except (KeyboardInterrupt, Interrupted) as error:
            raise _interrupted(view) from error
        finally:
            try:
                view.holding.close()
            finally:
                view.settle()
    if view.damage:
        raise ArtifactError("\n".join(view.damage), hint=f"nexa-hpc pipeline resume {run.id}")
    return view.standings


def _each_second(view: View) -> Callable[[], None]:
    """Return what is done every second, from a thread of its own, while a run is driven."""
    stopper = Stopper(view.run, view.scheduler)

    def tick() -> None:
        view.project_late()
        stopper.look(view.started)

    return tick


def close_ended(run: Run) -> None:
    """Record how the attempts ended whose jobs Slurm says have: they are then of this round."""
    if Terms.of(run.request) is None:
        return
    require_own(run.place.folder, "the run in")
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    slurm = _slurm_side(run, driver, observer_of(run), run.attempts_before())
    if slurm is not None:
        slurm.mend()
        for instance in run.instances.values():
            if instance.scheduler == "slurm":
                slurm.look(instance)


def advance_in_job(reference: str) -> None:
    """Advance a run from its advance job; `reference` is `<run folder>#<token>`."""
    folder, _, token = reference.rpartition("#")
    run = open_run(Path(folder))
    require_own(run.place.folder, "the run in")
    if not batches.is_answered_by(run.place, token, os.environ.get("SLURM_JOB_ID", "")):
        print("another advance job looks after the run, or this one was given up")
        return
    # From now on it waits no more: who submits meanwhile arms another one.
    batches.record_beginning(run.place, token)
    if run.cancelled:
        print(f"run {run.id} was cancelled")
        return
    signal.signal(signal.SIGUSR2, _out_of_time)
    try:
        standings = drive(run, Observer(), wait=False)
    except _OutOfTime as error:
        print(f"run {run.id}: {error}; the next advance job goes on")
        return
    counts = Counter(standing.state.value for standing in standings.values())
    print(f"run {run.id}: {dict(counts)}")


class _OutOfTime(Exception):
    """Neither an OSError nor a NexaError, so that nobody on the way takes it for one."""


def _out_of_time(signum: int, frame: object) -> None:
    # Slurm's word that the limit is near: left in time, the run gets another advance job.
    raise _OutOfTime("this advance job is near its time limit")


def _slurm_side(
    run: Run, driver: Driver, watch: StandingObserver, before: Mapping[str, int]
) -> SlurmSide | None:
    terms = Terms.of(run.request)
    if terms is None:
        return None
    if not isinstance(watch, SlurmObserver) or watch.cluster != terms.name:
        raise SchedulerError(
            f"run {run.id} was submitted to the cluster '{terms.name}', which this host is not "
            "part of",
            hint=f"call this on a login node of '{terms.name}'",
        )
    return SlurmSide(run, terms, driver, watch, before)


def _interrupted(view: View) -> Interrupted:
    """Stop what this process runs, and return the error that says what became of the run."""
    run = view.run
    where = _where(view)
    stop(view)
    view.standings = fold_all(run, view.watch)
    live = [s for s in view.standings.values() if s.state in (State.SUBMITTED, State.RUNNING)]
    if live and not run.cancelled:
        return Interrupted(
            f"no longer following run {run.id}: {len(live)} steps are in Slurm's hands and go on",
            hint=f"nexa-hpc status {run.id}    (or `nexa-hpc resume {run.id} --wait`)",
        )
    marker = last_cancel(run) if run.cancelled else None
    why = f": {marker['why']}" if marker is not None and marker.get("why") else where
    return Interrupted(
        f"run {run.id} was stopped{why}; what is finished stays",
        hint=f"nexa-hpc pipeline resume {run.id}",
    )


def _arm(view: View) -> None:
    """Leave an advance job behind where jobs of the run are in Slurm's hands."""
    if view.slurm is None or view.run.cancelled:
        return
    if view.frontier.is_empty:
        view.slurm.disarm()
        return
    trouble = view.slurm.arm(view.standings)
    if trouble is not None and trouble not in view.noted:
        view.noted.add(trouble)
        print(f"note: {trouble}", file=sys.stderr)


def _scheduler(jobs: int) -> Scheduler:
    return LocalScheduler(_execute) if jobs == 1 else WorkerPool(jobs)


def _execute(element: Element) -> object:
    return worker.execute(
        element.run,
        element.instance.step,
        element.attempt,
        element.on_progress,
        begins=not element.is_started,
        just_looked=element.is_started,
    )


def _where(view: View) -> str:
    running = [step for step, s in view.standings.items() if s.state is State.RUNNING]
    names = ", ".join(f"'{step}'" for step in running)
    return f" in step {names}" if running else ""


def _drive(view: View, *, wait: bool) -> None:
    least, most = _WAIT_S
    wait_s = least
    while True:
        changed = advance(view)
        if view.frontier.is_empty:
            return
        if not changed and not wait and view.is_in_slurms_hands:
            return
        if wait and view.slurm is not None and view.slurm.is_to_arm:
            # Whoever follows may be gone the next moment: a closed terminal, kill -9.
            _arm(view)
        wait_s = least if changed else min(wait_s * 1.5, most)
        view.scheduler.wait(wait_s)


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


if __name__ == "__main__":
    advance_in_job(sys.argv[1])
