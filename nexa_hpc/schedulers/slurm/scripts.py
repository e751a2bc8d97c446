"""Handing one plain script to sbatch, on its standard input.

Called by `sbatch`, `doctor` and `serve`. Runs of pipelines are not submitted here: those go through
submitit, with intents and tokens.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nexa_hpc.core.leftovers import untagged
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm.commands import calls

_TIMEOUT_S = 60


def submit_script(script: str, folder: Path, options: Sequence[str] = ()) -> str:
    """Submit `script` from `folder` and return the job's id; raises SchedulerError.

    It is asked once: where the answer is lost, the job may be there.
    """
    calls["sbatch"] += 1
    command = ["sbatch", "--parsable", *options]
    try:
        done = subprocess.run(
            command,
            input=script,
            cwd=folder,
            # Jobs get our variables; what a step submits is no part of its attempt.
            env=untagged(os.environ),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        message = "there is no sbatch on this machine"
        raise SchedulerError(message, hint="run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        message = f"sbatch: no answer in {_TIMEOUT_S} s"
        raise SchedulerError(
            message, hint="`squeue --me` shows whether the job is there"
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise SchedulerError(f"sbatch: {said}", hint="nexa-hpc doctor")
    # `<job>;<cluster>` where there are several clusters.
    return done.stdout.strip().partition(";")[0]
