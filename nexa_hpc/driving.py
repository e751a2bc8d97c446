"""Driving: calling `advance` until nothing is left to do, in this process, as long as it lives.

What the login-node command and the Python interface do for local steps. Beats, so that other nodes
know that this process lives; ends cleanly on Ctrl-C, SIGTERM, a closed terminal and `cancel`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nexa_hpc import worker
from nexa_hpc.advance import Observer, View, advance, stop
from nexa_hpc.core.drivers import Driver, Heartbeat, Watch
from nexa_hpc.core.frontier import Frontier
from nexa_hpc.core.runs import Run
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing, State
from nexa_hpc.errors import ArtifactError, Interrupted
from nexa_hpc.schedulers.base import Element, Scheduler
from nexa_hpc.schedulers.local import LocalScheduler
from nexa_hpc.schedulers.pool import WorkerPool

_WAIT_S = (0.2, 5.0)


def drive(run: Run, observer: Observer, jobs: int = 1) -> dict[str, Standing]:
    """Advance `run` until every instance has settled, and return step id -> standing.

    With several `jobs`, independent steps run side by side, each in a worker process of its own;
    else one after the other in this process. Waits for instances that another process runs. Raises
    Interrupted on Ctrl-C, SIGTERM or `cancel`, after the projection was written; ArtifactError when
    a link could not be made; UserError for another user's run.
    """
    require_own(run.place.folder, "the run in")
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    view = View(
        run,
        driver,
        observer,
        _scheduler(jobs),
        Watch(run.paths.state),
        run.attempts_before(),
        Frontier(run.instances),
    )
    with (
        _stopped_by_signals() as interrupt,
        Heartbeat(driver, run.paths.state, run.place.cancelled, interrupt, view.project_late),
    ):
        try:
            _drive(view)
        except (KeyboardInterrupt, Interrupted) as error:
            where = _where(view)
            stop(view)
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


def _scheduler(jobs: int) -> Scheduler:
    return LocalScheduler(_execute) if jobs == 1 else WorkerPool(jobs)


def _execute(element: Element) -> object:
    return worker.execute(element.run, element.instance.step, element.attempt, element.on_progress)


def _where(view: View) -> str:
    running = [step for step, s in view.standings.items() if s.state is State.RUNNING]
    names = ", ".join(f"'{step}'" for step in running)
    return f" in step {names}" if running else ""


def _drive(view: View) -> None:
    least, most = _WAIT_S
    wait_s = least
    while True:
        changed = advance(view)
        if view.frontier.is_empty:
            return
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
