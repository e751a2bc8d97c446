"""A command and all it started, which share a process group: asked to stop, waited for, ended.

The shell of `cd src; python train.py` dies of SIGTERM at once, while the training that got it too
saves its checkpoint: the group has ended when its last process has. Used by `command` and
`train_axolotl`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nexa_hpc.errors import CommandError

_POLL_S = 0.05
_SAY_AFTER_S = 1.0
_STOP_FOLLOWS_S = 0.3


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to what is left of the group that `process` leads."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def ask_to_stop(process: subprocess.Popen[bytes], asked: int, grace_s: float) -> bool:
    """Send the signal `asked` to the group; return whether all of it ended within `grace_s`.

    Where that takes a while, says so on standard error. Ctrl-C passes through.
    """
    signal_group(process, asked)
    began, said = time.monotonic(), False
    while (waited_s := time.monotonic() - began) < grace_s:
        if process.poll() is not None and not _has_members(process.pid):
            return True
        if waited_s >= _SAY_AFTER_S and not said:
            said = True
            print(
                f"stopping: the command got {signal.Signals(asked).name} and has {grace_s:.0f} s "
                "to end; another Ctrl-C ends it at once",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_POLL_S)
    return False


def await_stop() -> None:
    """In a job, give a stop that the command was told of first the time to reach us as well.

    Slurm signals every process of a job, the youngest first: what it stops so is no failure, and
    no end either.
    """
    if "SLURM_JOB_ID" in os.environ:
        time.sleep(_STOP_FOLLOWS_S)


def failure(code: int, what: str = "the command") -> CommandError:
    """Return the error for an exit code; one of 137 is what a shell makes of SIGKILL."""
    if -code == signal.SIGKILL or code == 128 + signal.SIGKILL:
        error = CommandError(f"{what} was killed by SIGKILL, most likely for want of memory")
        error.reason = "out_of_memory"
        return error
    if code >= 0:
        return CommandError(f"{what} exited with {code}")
    return CommandError(f"{what} was killed by {signal.Signals(-code).name}")


def _has_members(group: int) -> bool:
    """Return whether a process of `group` runs; one that nobody waits for (a zombie) does not."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # State, parent and group follow the name, which may hold spaces (proc(5)).
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[2] == str(group) and fields[0] not in "ZX":
            return True
    return False
