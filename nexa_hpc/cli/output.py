"""Standard output when its reader has gone (`| head`). Light: `main` needs it."""

from __future__ import annotations

import os
import sys


def discard_output() -> None:
    """Send standard output nowhere from now on; Python flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
