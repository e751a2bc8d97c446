"""One sbatch call through submitit: with its token in the job's name, and its answer recorded.

The intent is on disk before the call. Where the answer is lost (`Socket timed out`, kill -9), the
job is looked for by its name before anything is submitted again. What a job needs is there before
it: its elements are told run and token, and read nothing that is written after sbatch has answered,
as submitit's own pickles are. Called by `handover` and, for the advance job, by `rearming`. The
door to submitit.
"""

from __future__ import annotations

import random
import re
import shlex
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic, batches
from nexa_hpc.core.batches import Batch
from nexa_hpc.core.paths import RunPaths
from nexa_hpc.errors import SchedulerError, UserError
from nexa_hpc.schedulers.slurm.commands import calls, is_passing
from nexa_hpc.schedulers.slurm.queue import Queue

_TRIES = 4
_PAUSE_S = 2.0
_INSTALLED = Path(__file__).resolve().parents[3]
_START = (
    "import sys, runpy; sys.path[:] = [*filter(None, sys.path), sys.argv.pop()]; "
    "runpy.run_module('{}', None, '__main__')"
)
"""Nothing is imported from the current folder, which `python -m` would begin with; where nexa_hpc
is not installed it is found all the same, after all else."""
_SETUP = 'test -z "$SLURM_CPUS_PER_TASK" || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
"""srun takes it from sbatch no more since Slurm 22.05 (srun(1))."""
_FULL = (
    "MaxSubmitJob",
    "SubmitLimit",
    "Job violates accounting/QOS policy",
    "Max job count",
    "Slurm temporarily unable to accept job",
    "MaxJobCount",
)
"""Words in which sbatch says that the user has as many jobs as is allowed, or the cluster has."""
_NEVER = re.compile(r"(?:QOS|Assoc|Max|Min)\w*(?:PerJob|PerNode|WallDuration|TimeLimit)")
"""In which it names a limit that one such job can never keep, behind the same words."""


class QueueFullError(SchedulerError):
    """As many jobs are submitted as the site allows; nothing of this call was."""


class Submission:
    """Submits the batches of one run."""

    def __init__(self, place: RunPaths, queue: Queue, *, python: str | None = None) -> None:
        self._place = place
        self._queue = queue
        self._python = python

    def submit(self, batch: Batch, parameters: Mapping[str, Any], module: str) -> str:
        """Hand over `batch`, whose intent is recorded, and return its job's id, recorded as well.

        Each element runs MODULE as `python -m` would, with `<run folder>#<token>`. Raises
        QueueFullError when Slurm takes no more, SchedulerError when it refuses; the batch is then
        void.
        """
        refuse_if_shared(self._place.folder)
        for left in range(_TRIES - 1, -1, -1):
            asked_at = time.time()
            try:
                job = self._submit_once(batch, parameters, module)
            except SchedulerError as error:
                passing = is_passing(str(error))
                found = self._find(batch, asked_at) if passing else None
                if found is not None:
                    return found
                if not passing or not left:
                    batches.record_void(self._place, batch.token, str(error))
                    raise
                time.sleep(_PAUSE_S * (1 + random.random()))
                continue
            batches.record_job(self._place, batch.token, job)
            return job
        raise AssertionError

    def recover(self, batch: Batch) -> str | None:
        """Return the job of a batch whose submission was interrupted, recorded; else void it.

        Returns None, and voids nothing, where Slurm does not answer.
        """
        found = self._find(batch, time.time())
        if found is None and self._queue.trouble is None:
            batches.record_void(self._place, batch.token, "its submission was interrupted")
        return found

    def text(self, batch: Batch, parameters: Mapping[str, Any], module: str) -> str:
        """Return the sbatch script of `batch`, as `submit` has it written."""
        executor = self._executor(batch, parameters)
        text: str = executor._make_submission_file_text(self._command(batch, module), "")
        return text

    def _command(self, batch: Batch, module: str) -> str:
        python = shlex.quote(self._python or sys.executable)
        start = shlex.quote(_START.format(module))
        reference = shlex.quote(f"{self._place.folder}#{batch.token}")
        return f"{python} -u -c {start} {reference} {shlex.quote(str(_INSTALLED))}"

    def _find(self, batch: Batch, asked_at: float) -> str | None:
        job = self._queue.look(newer_than=asked_at).job_named(batch.name)
        if job is not None:
            batches.record_job(self._place, batch.token, job)
        return job

    def _submit_once(self, batch: Batch, parameters: Mapping[str, Any], module: str) -> str:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor(batch, parameters)
        atomic.make_folder(self._place.slurm / batch.token)
        calls["sbatch"] += 1
        try:
            # From inside a job, its own variables would change what is asked for (submitit).
            with submitit.helpers.clean_env():
                job = executor._submit_command(self._command(batch, module))
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise _refusal(error) from error
        return str(job.job_id)

    def _executor(self, batch: Batch, parameters: Mapping[str, Any]) -> Any:
        # Imported here: submitit costs 0.1 s, and only submitting needs it.
        import submitit

        executor = submitit.SlurmExecutor(self._place.slurm / batch.token)
        given = {name: value for name, value in parameters.items() if name != "additional"}
        executor.update_parameters(
            job_name=batch.name,
            comment=f"nexa_hpc {self._place.run_id}",
            use_srun=True,
            # A site may have keys of its own; submitit's is none of theirs.
            wckey=None,
            additional_parameters=dict(parameters.get("additional", {})),
            setup=[_SETUP],
            **given,
        )
        if batch.width > 1:
            executor.parameters["map_count"] = batch.width
        return executor


def refuse_if_shared(folder: Path) -> None:
    """Raise UserError when others could put files where our jobs load theirs from."""
    for place in (folder, folder.parent):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH or mode & stat.S_IWGRP:
            raise UserError(
                f"the job folder {place} can be changed by others, and jobs load what lies in it",
                hint=f"chmod go-w '{place}'",
            )


def _refusal(error: Exception) -> SchedulerError:
    lines = [line for line in str(error).splitlines() if "error:" in line.lower()]
    said = "; ".join(line.strip() for line in lines) or str(error).strip().splitlines()[-1]
    if any(words in str(error) for words in _FULL) and not _NEVER.search(str(error)):
        return QueueFullError(said, hint="what is left is submitted when jobs have ended")
    return SchedulerError(said, hint="nexa-hpc doctor")
