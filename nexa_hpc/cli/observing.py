"""What the light commands see of a run's processes and jobs; Slurm's side is loaded for runs there.

Called by `status` and `logs`.
"""

from __future__ import annotations

from nexa_hpc.core.runs import Run
from nexa_hpc.core.truths import Observer, Processes


def observer_of(run: Run) -> Observer:
    """Return what observes `run` from this host."""
    if run.request.get("slurm") is None:
        return Processes(run.paths.state)
    # Imported here: a run without Slurm is to be shown at once.
    from nexa_hpc.schedulers.slurm import watching

    return watching.observer_of(run)


def scheduler_calls(run: Run) -> dict[str, int]:
    """Return how often this process has asked the scheduler of `run`, by command."""
    if run.request.get("slurm") is None:
        return {}
    from nexa_hpc.schedulers.slurm import commands

    return dict(commands.calls)
