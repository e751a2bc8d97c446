"""Ending jobs: those of a whole run, or some. Called by `cancel` and `submitting`.

Standard library alone.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from nexa_hpc.core import batches, records
from nexa_hpc.core.batches import Batch
from nexa_hpc.core.endpoints import is_kept
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.parts import LIVE
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.here import this_cluster

_PER_CALL = 200


def cancel_run(run: Run) -> int:
    """Ask Slurm to end all jobs of `run` on this cluster; return how many it was asked to end.

    The advance job goes first, or it would look after what is being ended. The run's marker has
    been left before: what starts all the same finds it. Raises SchedulerError when Slurm does not
    answer, and for jobs on another cluster.
    """
    if run.request.get("slurm") is None:
        return 0
    here = this_cluster()
    own = _batches(run)
    own.sort(key=lambda batch: batch.kind != batches.ADVANCE)
    # The job that we are in, which stops the run, ends by itself; it must come to its end.
    ours = os.environ.get("SLURM_JOB_ID")
    jobs = [job for job in _jobs(run, own, here) if job != ours]
    _end_elements(jobs)
    elsewhere = sorted({batch.cluster for batch in own} - {here})
    if elsewhere:
        names = ", ".join(f"'{name}'" for name in elsewhere)
        raise SchedulerError(
            f"run {run.id} is marked as cancelled, and what starts of it stops; but its jobs wait "
            f"on {names}, which this host is not part of",
            hint=f"call `nexa-hpc cancel {run.id}` on a login node of {names}",
        )
    return len(jobs)


def end_stopped(run: Run, standings: Mapping[str, Standing]) -> list[str]:
    """Ask Slurm to end the elements in which nothing is left but what was stopped singly.

    `standings` are those of all instances. Returns the elements; what runs in another run's job, or
    on another cluster, is not ours to end. Raises SchedulerError when Slurm does not answer.
    """
    stopped = run.stopped
    jobs = _stopped_elements(run, standings, stopped)
    _end_elements(jobs)
    ended = set(jobs)
    for step, standing in standings.items():
        if standing.job in ended and step in stopped:
            _close_unstarted(run, run.instances[step], stopped[step])
    return jobs


def _close_unstarted(run: Run, instance: Instance, why: str) -> None:
    # An element that waits unsplit in its array, and is cancelled, leaves no trace in squeue or
    # sacct (Slurm 22.05). If it starts after all, it finds that it was stopped.
    folder = run.paths.records(instance.key)
    attempt = read_attempts(folder)[-1]
    if attempt.start is None and attempt.end is None:
        records.end(folder, attempt.number, State.CANCELLED, message=why)


def _stopped_elements(
    run: Run, standings: Mapping[str, Standing], stopped: Mapping[str, str]
) -> list[str]:
    left: dict[str, set[str]] = defaultdict(set)
    for step, standing in standings.items():
        instance = run.instances[step]
        # A server that stays is there though its step is done.
        stays = instance.serves and is_kept(instance) and standing.state is State.COMPLETED
        if (standing.state in LIVE or stays) and standing.job:
            left[standing.job].add(step)
    found = [job for job, steps in left.items() if steps <= stopped.keys()]
    own = set(_jobs(run, _batches(run), this_cluster())) if found else set()
    return [job for job in found if job.partition("_")[0] in own]


def _end_elements(jobs: Sequence[str]) -> None:
    for some in _slices(jobs):
        run_slurm(["scancel", "--quiet", *some])


def _batches(run: Run) -> list[Batch]:
    return [batches.read_batch(run.place, token) for token in batches.tokens(run.place)]


def _jobs(run: Run, own: Sequence[Batch], cluster: str | None) -> list[str]:
    """Return the jobs of the batches `own` that are on `cluster`."""
    answers = [batches.answer_to(run.place, b.token) for b in own if b.cluster == cluster]
    return [answer.job for answer in answers if answer is not None]


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Ask Slurm to end `jobs` or elements; what it does not do now is asked for again."""
    for some in _slices(jobs):
        try:
            run_slurm(["scancel", "--quiet", *some])
        except SchedulerError:
            continue


def _slices(jobs: Sequence[str]) -> list[Sequence[str]]:
    return [jobs[first : first + _PER_CALL] for first in range(0, len(jobs), _PER_CALL)]
