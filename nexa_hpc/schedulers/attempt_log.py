"""The log of an attempt, kept for as long as there is room for it: nothing is decided by a log.

Whoever pumps a step's output must go on reading when the disk is full, or the step dies of its next
word, or waits for ever. Called by the schedulers. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.core import atomic


@contextmanager
def attempt_log(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends to the log at `path`, and passes over what finds no room."""
    try:
        log = atomic.open_log(path)
    except OSError:
        yield lambda _: None
        return

    def write(text: bytes) -> None:
        try:
            log.write(text)
        except OSError:
            pass  # There may be room for what comes next.

    with log:
        yield write
