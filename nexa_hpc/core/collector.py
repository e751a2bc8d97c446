"""The cyclic garbage collector, held off while much is made that stays.

It would walk all of it again and again: two thirds of the time of reading 10,000 steps, for
nothing. Called by whatever reads and plans documents. Standard library alone.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Hold the collector off within."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def made_to_stay() -> Iterator[None]:
    """The same, and never look at what there is by then: only where the process is ours, and ends.

    In a process of others their cycles would not be collected any more, either.
    """
    with without_gc():
        yield
        gc.freeze()
