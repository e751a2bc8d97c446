"""Servers that are jobs: what Slurm says of them, submitting and cancelling them.

A job is found by its name, which holds the server's tag: so none is lost where the answer of sbatch
was. A job that is requeued begins a supervisor anew; what the one before wrote, its URL above all,
stands no more once Slurm counts one restart more than it. Called by `serve`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core.servers import SLURM, Condition, Handle, Servers
from nexa_hpc.errors import SchedulerError, StepError
from nexa_hpc.schedulers.slurm import words
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.scripts import submit_script

_FORMAT = "--Format=Name:|,State:|,RestartCnt:|,JobID:|,Reason:|"
_INTERVAL_S = 30.0
_YOUNG_S = 30.0
"""For so long a job that was submitted may be missing from the queue."""
_CANCEL_S = 60.0
_LOOK_S = 1.0
_ORDERLY = (words.COMPLETED, words.CANCELLED, words.PREEMPTED, "TIMEOUT", "DEADLINE")
"""Ends that no fault of the server's has brought."""


def submit(handle: Handle, script: str, folder: Path, log: Path) -> str:
    """Submit the job that holds the server of `handle`, and return its id; raises SchedulerError.

    It prints into `log`. `script` is `sbatch_templates/server.sbatch`, filled. Where the answer is
    lost the job may be there: `ServerJobs.cancel` ends it.
    """
    return submit_script(script, folder, [f"--job-name={job_name(handle)}", f"--output={log}"])


@dataclass(frozen=True)
class _Job:
    state: str
    restarts: int
    id: str
    reason: str

    @property
    def lives(self) -> bool:
        return words.lives(self.state)

    @property
    def waits(self) -> bool:
        return words.plain(self.state) in words.WAITING

    def told(self) -> str:
        if self.waits:
            return f"job {self.id} {words.waits(self.reason)}"
        if words.plain(self.state) == words.CANCELLED:
            return f"job {self.id} was cancelled"
        return f"job {self.id}: {words.ending(words.plain(self.state))}"


def job_name(handle: Handle) -> str:
    """Return the name of the job that holds the server of `handle`."""
    return f"nexa-serve-{handle.tag}"


class ServerJobs:
    """Knows the jobs of one project's servers; one squeue for all of them, every 30 s at most.

    More often only for a server whose handle has changed meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._servers = Servers(folder)
        self._jobs: Mapping[str, _Job] = {}
        self._seen: dict[str, Handle] = {}
        self._asked_at = float("-inf")
        self._trouble = ""

    def condition(self, handle: Handle) -> tuple[Condition, str]:
        """Return what is true of a server that is a job, and why.

        Where Slurm does not answer, its handle alone is believed, and that is said.
        """
        self._look(handle)
        job = self._jobs.get(job_name(handle))
        if self._trouble or (job is None and handle.ended):
            return _as_written(handle, self._trouble)
        if job is None:
            if 0 <= time.time() - handle.created_at < _YOUNG_S:
                return Condition.STARTING, ""
            return Condition.CRASHED, "its job is gone from the queue"
        return self._judged(handle, job)

    def cancel(self, handle: Handle) -> None:
        """End the job of a server and return when it is over.

        Raises StepError where it goes on, SchedulerError where Slurm does not answer.
        """
        run_slurm(["scancel", f"--name={job_name(handle)}"])
        deadline = time.monotonic() + _CANCEL_S
        while any(job.lives for job in _ask([job_name(handle)]).values()):
            if time.monotonic() > deadline:
                raise StepError(
                    f"the job of server '{handle.name}' has not ended yet",
                    hint=f"squeue --name={job_name(handle)}",
                )
            time.sleep(_LOOK_S)

    def _judged(self, handle: Handle, job: _Job) -> tuple[Condition, str]:
        """Return what follows from a handle and from what Slurm says of its job."""
        is_of_now = handle.supervisor is not None and handle.restarts == job.restarts
        if job.waits or (job.lives and not is_of_now):
            return Condition.STARTING, job.told() if job.waits else f"job {job.id} begins"
        was_asked = handle.ended == Condition.CRASHED.value or self._servers.is_to_stop(handle)
        if job.lives and handle.ended and not was_asked:
            # Slurm ends it, and may be about to queue it again.
            return Condition.STOPPING, handle.message
        if job.lives or (handle.ended and is_of_now):
            return _as_written(handle, "")
        is_orderly = words.plain(job.state) in _ORDERLY
        return (Condition.STOPPED if is_orderly else Condition.CRASHED), job.told()

    def _look(self, handle: Handle) -> None:
        is_fresh = time.monotonic() - self._asked_at < _INTERVAL_S
        if is_fresh and self._seen.get(handle.name) == handle:
            return
        listed = [self._servers.find(name) for name in self._servers.names()]
        self._seen = {h.name: h for h in listed if h is not None and h.scheduler == SLURM}
        self._seen[handle.name] = handle
        try:
            self._jobs, self._trouble = _ask([job_name(h) for h in self._seen.values()]), ""
        except SchedulerError as error:
            self._trouble = str(error)
        self._asked_at = time.monotonic()


def _as_written(handle: Handle, trouble: str) -> tuple[Condition, str]:
    """Return what the supervisor has written last."""
    if handle.ended:
        return Condition(handle.ended), handle.message
    return (Condition.HEALTHY if handle.url else Condition.STARTING), trouble


def _ask(names: list[str]) -> dict[str, _Job]:
    told = run_slurm(["squeue", "--noheader", "--states=all", f"--name={','.join(names)}", _FORMAT])
    found: dict[str, _Job] = {}
    for line in told.splitlines():
        name, state, restarts, job, reason = (line.split("|") + [""] * 5)[:5]
        found[name] = _Job(state, int(restarts) if restarts.isdigit() else 0, job, reason)
    return found
