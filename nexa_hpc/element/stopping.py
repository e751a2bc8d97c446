"""What is recorded, and asked of Slurm, when an element's step was stopped before its end.

    the run was cancelled, or
    this step of it alone        CANCELLED
    time limit, work saved       given back, and this very job is requeued; a successor is submitted
                                 instead where a site forbids that
    time limit, nothing saved    FAILED: timeout; as well when `total_time_min` is over
    SIGTERM                      nothing: Slurm says whether the job comes back (preemption) or not
    killed                       FAILED: out_of_memory, as likely as not

Called by `main`. Standard library alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from nexa_hpc.core import checkpoints, records
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, State
from nexa_hpc.core.trying import attempts_in_round, is_out_of_time
from nexa_hpc.element.child import TERMINATION, TIME_LIMIT
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.terms import Terms

_KILLED = 137
_WAIT_FOR_END_S = 120.0


@dataclass(frozen=True)
class Ending:
    """How an attempt ends that its own process did not end."""

    state: State
    reason: Reason | None
    message: str
    is_to_go_on: bool = False
    """Whether this very job is to make the next attempt."""


def decide(
    run: Run, instance: Instance, number: int, got: set[int], code: int, said: str = ""
) -> Ending | None:
    """Return how attempt `number` ends whose process exited with `code` after the signals `got`.

    `said`: what is known of such an exit. None leaves it open, for Slurm to tell.
    """
    if run.cancelled:
        return Ending(State.CANCELLED, None, "the run was cancelled")
    if instance.step in (stopped := run.stopped):
        return Ending(State.CANCELLED, None, stopped[instance.step])
    if TIME_LIMIT in got and instance.resumable:
        return _at_time_limit(run, instance, number)
    if TERMINATION in got:
        return None
    if code == _KILLED:
        message = "its process was killed by SIGKILL, most likely for want of memory"
        return Ending(State.FAILED, Reason.OUT_OF_MEMORY, message)
    message = said or f"its process exited with {code} and left no end record"
    return Ending(State.FAILED, Reason.EXCEPTION, message)


def _at_time_limit(run: Run, instance: Instance, number: int) -> Ending:
    work = run.paths.work_of(instance.key) / str(number)
    if checkpoints.newest([work]) is None:
        message = "it reached its time limit and had saved nothing since it began"
        return Ending(State.FAILED, Reason.TIMEOUT, message)
    terms = Terms.of(run.request)
    assert terms is not None, "an element runs under the terms of its run"
    retry = terms.retry(instance)
    attempts = attempts_in_round(run, instance, run.attempts_before())
    if is_out_of_time(attempts, retry):
        message = f"time limit: its attempts may take {retry['total_time_min']} min together"
        return Ending(State.FAILED, Reason.TIMEOUT, message)
    message = f"time limit: saved, to go on as attempt {number + 1}"
    return Ending(State.PENDING, Reason.TIMEOUT, message, terms.cluster["requeue"])


def carry_out(run: Run, instance: Instance, number: int, ending: Ending | None, job: str) -> None:
    """Record `ending`; where the job is to go on, ask Slurm for that and wait to be ended."""
    if ending is None:
        return
    folder = run.paths.records(instance.key)
    if not ending.is_to_go_on:
        records.end(folder, number, ending.state, reason=ending.reason, message=ending.message)
        return
    records.end(
        folder, number, ending.state, reason=ending.reason, message=ending.message, requeued=True
    )
    print(f"step '{instance.step}': {ending.message}", flush=True)
    try:
        run_slurm(["scontrol", "requeue", job])
    except SchedulerError as error:
        # The attempt is given back all the same: whoever advances the run submits a successor.
        print(f"could not requeue: {error}", flush=True)
        return
    time.sleep(_WAIT_FOR_END_S)
