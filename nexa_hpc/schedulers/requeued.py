"""What a driver in a job does when Slurm starts that job once more: not what has been cancelled.

Called before a run is recorded, and before one is resumed.
"""

from __future__ import annotations

import os

from nexa_hpc.core.runs import Run
from nexa_hpc.errors import Interrupted


def stay_cancelled(newest: Run | None) -> None:
    """Raise Interrupted in a job that was requeued, where the run was cancelled since.

    `newest` is the pipeline's newest run, or None. Outside of a requeued job, whoever asks for a
    cancelled run again means it.
    """
    restarts = os.environ.get("SLURM_RESTART_COUNT") or "0"
    if newest is not None and restarts.isdecimal() and int(restarts) and newest.cancelled:
        raise Interrupted(
            f"run {newest.id} was cancelled while this job waited to go on",
            hint="submit it again to go on nevertheless",
        )
