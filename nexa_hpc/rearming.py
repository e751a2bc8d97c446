"""The advance job: a small Slurm job that advances a run when some of its arrays have ended.

One at a time waits for a run. It waits in the queue, not on a node: for the end of any of the jobs
that it is told of, and never less than some minutes; where nothing may ever end by itself, for a
time that doubles up to an hour. Killed or rejected, it is submitted anew by whoever calls next.
Called by `submitting`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nexa_hpc.core import batches
from nexa_hpc.core.batches import ADVANCE, Batch
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.runs import Run
from nexa_hpc.errors import SchedulerError
from nexa_hpc.handover import job_name
from nexa_hpc.schedulers.slurm import requests, words
from nexa_hpc.schedulers.slurm.cancelling import cancel_jobs
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.queue import Queue
from nexa_hpc.schedulers.slurm.submission import Submission
from nexa_hpc.schedulers.slurm.terms import Terms

_MODULE = "nexa_hpc.driving"
"""What the advance job runs."""
_JOBS_NAMED = 20
_LONGEST_MIN = 60
_SEEN_AFTER_S = 30.0
"""How long after its submission a job may be missing in what Slurm says (clocks differ)."""


class AdvanceJob:
    """Looks after the advance job of one run."""

    def __init__(
        self,
        run: Run,
        terms: Terms,
        queue: Queue,
        driver: Driver,
    ) -> None:
        self._run = run
        self._terms = terms
        self._queue = queue
        self._driver = driver
        self._own: str | None = None
        """The one that this process armed."""

    @property
    def is_wanted(self) -> bool:
        """Whether the policy has it, and nodes may submit jobs: it would be of no use otherwise."""
        is_enabled = self._terms.policy["advance_job"]["enabled"]
        return bool(is_enabled and self._terms.cluster["sbatch_on_nodes"])

    def instead(self) -> str:
        """Return what looks after the run where there is none, in words."""
        root = shlex.quote(str(self._run.paths.root))
        why = ""
        if not self._terms.cluster["sbatch_on_nodes"]:
            why = f"nodes of {self._terms.name} cannot submit jobs, so none advances the run; "
        return (
            f"{why}call `nexa-hpc advance {self._run.id}` when jobs have ended, or let scrontab "
            f"call `nexa-hpc --project {root} advance --all`"
        )

    def arm(self, jobs: Sequence[str], state: str) -> str | None:
        """See that an advance job waits for one of `jobs`; return its id when it is a new one.

        `state` says where the run stands: where it is as when the last one was armed, the next
        waits longer. Raises SchedulerError when Slurm refuses.
        """
        number, earlier = self._newest()
        if earlier is not None and self._waits(earlier):
            if earlier.token == self._own:
                self._name(earlier, jobs)
            return None
        batch = self._batch(jobs, state, earlier)
        batches.record_intent(self._run.place, batch)
        if not batches.claim_advance(self._run.place, number + 1, batch.token):
            batches.record_void(self._run.place, batch.token, "another process was first")
            return None
        self._own = batch.token
        submission = Submission(self._run.place, self._queue, python=self._terms.cluster["python"])
        parameters = self._parameters(jobs, _request(batch)["after_min"])
        return submission.submit(batch, parameters, _MODULE)

    def disarm(self) -> None:
        """Cancel the advance job that waits, if one does."""
        _, newest = self._newest()
        if newest is None or not self._waits(newest):
            return
        answer = batches.answer_to(self._run.place, newest.token)
        if answer is not None:
            cancel_jobs([answer.job])

    def _newest(self) -> tuple[int, Batch | None]:
        number, token = batches.newest_advance(self._run.place)
        return number, None if token is None else batches.read_batch(self._run.place, token)

    def _waits(self, batch: Batch) -> bool:
        """Return whether an advance job is yet to begin; one that has may be past its last look."""
        place = self._run.place
        if batches.has_begun(place, batch.token) or batches.is_void(place, batch.token):
            return False
        answer = batches.answer_to(place, batch.token)
        if answer is None:
            return True  # Another process is submitting it, or `mend` tells what became of it.
        snapshot = self._queue.look()
        word = snapshot.word(answer.job, None, batch.name)
        if word is None:
            return snapshot.asked_at - answer.answered_at < _SEEN_AFTER_S
        return words.plain(word.state) not in words.ENDS

    def _batch(self, jobs: Sequence[str], state: str, earlier: Batch | None) -> Batch:
        token = batches.new_token()
        after_min = self._pause_min(state, earlier)
        return Batch(
            token=token,
            name=job_name(self._run, "advance", 1, token),
            cluster=self._terms.name,
            elements=(),
            kind=ADVANCE,
            driver=self._driver.to_json(),
            request={"after_min": after_min, "jobs": list(jobs), "state": state},
        )

    def _pause_min(self, state: str, earlier: Batch | None) -> float:
        least = float(self._terms.policy["advance_job"]["not_before_min"])
        if earlier is None or not state or _request(earlier)["state"] != state:
            return least
        return float(min(_LONGEST_MIN, max(least, 2 * _request(earlier)["after_min"])))

    def _name(self, batch: Batch, jobs: Sequence[str]) -> None:
        """Have the one that was armed before all was submitted wait for `jobs` as well."""
        answer = batches.answer_to(self._run.place, batch.token)
        waits = _dependency(jobs)
        if answer is None or not waits or list(jobs) == _request(batch)["jobs"]:
            return
        try:
            run_slurm(["scontrol", "update", f"JobId={answer.job}", f"Dependency={waits}"])
        except SchedulerError:
            return  # It wakes for the first one all the same.

    def _parameters(self, jobs: Sequence[str], after_min: float) -> dict[str, object]:
        asked = self._terms.policy["advance_job"]
        resources = self._terms.resources({})
        found: dict[str, object] = {
            name: resources[name] for name in ("account", "qos") if name in resources
        }
        partition = asked["partition"] or resources.get("partition")
        if partition:
            found["partition"] = partition
        if jobs:
            found["dependency"] = _dependency(jobs)
        return {
            **found,
            "time": asked["timeout_min"],
            "mem": requests.memory(asked["mem_gb"]),
            "cpus_per_task": 1,
            "signal_delay_s": 60,
            "additional": {"begin": f"now+{round(after_min * 60)}", "no-requeue": True},
        }


def _dependency(jobs: Sequence[str]) -> str:
    return "?".join(f"afterany:{job}" for job in jobs[:_JOBS_NAMED])


def _request(batch: Batch) -> Mapping[str, Any]:
    return batch.request or {"after_min": 0.0, "jobs": [], "state": ""}
