"""Processes that a killed attempt left behind on this machine: found by a tag, and ended.

`kill -9` of a driver leaves the commands that it started alive. Every process of an attempt
inherits an environment variable that names it; before the next attempt starts, what still carries
the tag of the last one is ended, so that no two attempts at a key ever work side by side. Called by
`advance`. Standard library alone; without /proc nothing is found.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

TAG_VARIABLE = "NEXA_HPC_ATTEMPT"
LAUNCH_VARIABLE = "NEXA_HPC_LAUNCH"
"""Names, in all that a command of a step starts, which start of it they are of."""
_PATIENCE_S = 10.0


def attempt_tag(records: Path, attempt: int) -> str:
    """Return the value of `TAG_VARIABLE` in every process of this attempt.

    By the folder of its records and not by its key: copies of a project share keys.
    """
    return f"{records}/{attempt}"


def untagged(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables for what is to outlive the attempt that starts it."""
    own = (TAG_VARIABLE, LAUNCH_VARIABLE)
    return {name: value for name, value in environ.items() if name not in own}


def end_leftovers(tag: str, variable: str = TAG_VARIABLE) -> int:
    """Kill every process of ours that carries `tag`, wait until it is gone, and return how many.

    The calling process is spared: what a step starts may resume the run that the step is part of.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + _PATIENCE_S
    while (found := _tagged(variable, tag)) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ended |= set(found)
        time.sleep(0.02)
    return len(ended)


def _tagged(variable: str, tag: str) -> list[int]:
    wanted = f"{variable}={tag}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(os.getpid()):
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # Ended meanwhile, or another user's.
    return found
