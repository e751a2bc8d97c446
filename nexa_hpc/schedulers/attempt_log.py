"""The log of an attempt, kept for as long as there is room for it: nothing is decided by a log.

Whoever pumps a step's output must go on reading when the disk is full, or the step dies of its next
word, or waits for ever. A step that prints nothing has no log. Called by the schedulers. Standard
library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from nexa_hpc.core import atomic


class AttemptLog:
    """Appends to the log at `path`, which its first text makes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: BinaryIO | None = None

    def write(self, text: bytes) -> None:
        """Append `text`, or pass over it where it finds no room."""
        try:
            if self._log is None:
                self._log = atomic.open_log(self._path)
            self._log.write(text)
        except OSError:
            pass  # There may be room for what comes next.

    def close(self) -> None:
        """Close the log, if there is one."""
        if self._log is not None:
            self._log.close()
            self._log = None
