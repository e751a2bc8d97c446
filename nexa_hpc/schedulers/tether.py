"""What a worker process owes the process that started it: its end with it, and its progress.

The other ends are in `pool`. Called by the worker. Standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable

from nexa_hpc.core.handlers import Progress
from nexa_hpc.errors import Interrupted
from nexa_hpc.schedulers.base import PARENT_VARIABLE, PROGRESS_VARIABLE


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the driver dies, so that its workers save and end, too."""
    pr_set_pdeathsig = 1  # prctl(2); Linux alone
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    parent = os.environ.pop(PARENT_VARIABLE, None)
    in_container = any(f"{name}_CONTAINER" in os.environ for name in ("APPTAINER", "SINGULARITY"))
    if parent is not None and os.getppid() != int(parent) and not in_container:
        # It died while the environment was entered, which may take minutes.
        sys.exit(Interrupted.exit_code)


def tell_progress() -> Callable[[Progress], None]:
    """Return what hands progress to the driver, on the file descriptor that it named."""
    fd = os.environ.pop(PROGRESS_VARIABLE, None)
    if fd is None:
        return lambda _: None
    try:
        os.set_inheritable(int(fd), False)
        stream = os.fdopen(int(fd), "w", encoding="utf-8")
    except OSError:
        return lambda _: None  # What we were started through has closed it.

    def tell(progress: Progress) -> None:
        try:
            stream.write(json.dumps({**vars(progress), "metrics": dict(progress.metrics)}) + "\n")
            stream.flush()
        except OSError:
            return  # The driver has gone; the step goes on to its end.

    return tell
