"""Slurm's own commands, run as processes: one place that counts them and waits out passing faults.

`calls` is what `status --json` shows, so that a site can see how often we ask. Called by all of
`schedulers.slurm`, `cluster probe` and `doctor`. Standard library alone.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

from nexa_hpc.errors import SchedulerError

calls: Counter[str] = Counter()
"""Command name -> how often this process has run it."""

_PASSING = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Connection refused",
    "Connection timed out",
    "Resource temporarily unavailable",
    "Transport endpoint is not connected",
    "Slurm temporarily unable",
    "slurm_receive_msg",
    "Zero Bytes were transmitted or received",
)
"""Words in which Slurm's commands tell of faults that pass (src/common/slurm_errno.c)."""
_TRIES = 3
_PAUSE_S = 0.5


def is_passing(message: str) -> bool:
    """Return whether `message`, from a Slurm command, tells of a fault that passes by itself."""
    return any(words in message for words in _PASSING)


def require_command(name: str) -> None:
    """Raise SchedulerError where there is no such command of Slurm's on this machine."""
    if shutil.which(name) is None:
        raise _missing(name)


def _missing(name: str) -> SchedulerError:
    return SchedulerError(
        f"there is no {name} on this machine",
        hint="run this on a login node of the cluster, or use `--scheduler local`",
    )


def run_slurm(argv: Sequence[str], *, timeout_s: float = 60, tries: int = _TRIES) -> str:
    """Run one of Slurm's commands and return what it prints; passing faults are waited out.

    For commands that may be repeated: a submission is not among them. Raises SchedulerError with
    what the command said.
    """
    for left in range(tries - 1, -1, -1):
        try:
            return _run_once(argv, timeout_s)
        except SchedulerError as error:
            if not left or not is_passing(str(error)):
                raise
        time.sleep(_PAUSE_S * (1 + random.random()))
    raise AssertionError


def _environment() -> dict[str, str]:
    """Return ours without what would change the columns, and with whole index sets of arrays."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def _run_once(argv: Sequence[str], timeout_s: float) -> str:
    calls[argv[0]] += 1
    try:
        done = subprocess.run(
            argv,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except subprocess.TimeoutExpired as error:
        message = f"{argv[0]}: Socket timed out: no answer in {timeout_s:.0f} s"
        raise SchedulerError(message, hint="nexa-hpc doctor") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise SchedulerError(f"{argv[0]}: {said}", hint="nexa-hpc doctor")
    return done.stdout
