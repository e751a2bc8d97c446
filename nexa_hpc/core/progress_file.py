"""How far a step in a job is, in a small file of its run that people's commands read.

Replaced at most every `EVERY_S`, so that a thousand jobs do not trouble a shared disk; advisory, as
all that is shown of a running step. Written in the job, read by `status` and `--wait`. Standard
library alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import StateError

EVERY_S = 10.0


def progress_writer(file: Path) -> Callable[[Progress], None]:
    """Return what writes progress to `file`, now and then; never raises."""
    written_at = float("-inf")

    def write(progress: Progress) -> None:
        nonlocal written_at
        if time.monotonic() - written_at < EVERY_S:
            return
        written_at = time.monotonic()
        try:
            atomic.write_json(file, {**vars(progress), "metrics": dict(progress.metrics)})
        except OSError:
            return  # The step goes on.

    return write


def read_progress(file: Path) -> Progress | None:
    """Return what was last written to `file`, or None."""
    try:
        content = read_json_or_none(file)
        return None if content is None else Progress(**content)
    except (StateError, OSError, TypeError):
        return None
