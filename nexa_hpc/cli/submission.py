"""What a plan comes to in Slurm, as people read it. Called by `cli/run.py`."""

from __future__ import annotations

from typing import Any

from nexa_hpc.cli.tables import print_table
from nexa_hpc.slurm_plans import PlannedSubmission

_STEPS_NAMED = 3
_ROWS_SHOWN = 30


def print_submission(submission: PlannedSubmission, *, with_scripts: bool) -> None:
    """Print the arrays, what they ask for, and, `with_scripts`, what sbatch would get."""
    arrays = submission.arrays()
    if submission.later:
        steps = "step is" if submission.later == 1 else "steps are"
        print(f"\n{submission.later} {steps} submitted later, behind local steps or canaries")
    if not arrays:
        return
    if with_scripts:
        for array, script in zip(arrays, submission.scripts(), strict=True):
            print(f"\n# ---- job {array['number']}: {_steps(array)}\n{script}")
    print(f"\non cluster {submission.terms.name}:")
    rows = [
        [
            str(array["number"]),
            str(array["elements"]),
            _steps(array),
            f"{array['time_min']} min",
            ", ".join(f"{name} {value}" for name, value in array["resources"].items()),
            ", ".join(map(str, array["after"])),
        ]
        for array in arrays[:_ROWS_SHOWN]
    ]
    print_table(["JOB", "ELEMENTS", "STEPS", "TIME", "ASKS", "AFTER"], rows)
    if len(arrays) > _ROWS_SHOWN:
        print(f"and {len(arrays) - _ROWS_SHOWN} more")
    cores, gpus = submission.hours()
    print(f"at most {cores:.1f} core-hours and {gpus:.1f} GPU-hours; sbatch calls: {len(arrays)}")


def _steps(array: dict[str, Any]) -> str:
    named = ", ".join(array["steps"][:_STEPS_NAMED])
    return named if len(array["steps"]) <= _STEPS_NAMED else f"{named} …"
