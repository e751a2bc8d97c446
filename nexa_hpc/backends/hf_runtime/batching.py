"""Requests wait in a queue of bounded length; one thread takes batches from it and runs them.

What does not fit is refused at once (QueueFull), so that memory is bounded by `max_queue` requests
that wait and `max_batch` that run. Called by the app.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

_QUIET_S = 0.01
_GATHER_S = 0.1
"""A batch begins when it is full, or none has come for `_QUIET_S`, or after `_GATHER_S`: of clients
that ask at the same time, those that come a little late would else wait for a whole batch."""


class QueueFull(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class Work:
    """One thing to compute; `deliver` is called from the batch thread, with the last call ending
    it.
    """

    payload: Any
    key: Hashable
    """Only work of one key is computed together."""
    deliver: Callable[[Any], None]
    cancelled: bool = False
    """Whether nobody waits for it any more."""
    notes: dict[str, Any] = field(default_factory=dict)


class Batcher:
    """Runs `compute` on batches of work of one key, in the order of arrival."""

    def __init__(
        self, compute: Callable[[Sequence[Work]], None], *, max_batch: int, max_queue: int
    ) -> None:
        self._compute = compute
        self.max_batch = max_batch
        self.max_queue = max_queue
        self._waiting: deque[Work] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, work: Sequence[Work]) -> None:
        """Queue all of `work`, or none of it: raises QueueFull."""
        with self._changed:
            if len(self._waiting) + len(work) > self.max_queue:
                raise QueueFull
            self._waiting.extend(work)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            batch = self._take()
            try:
                self._compute(batch)
            except Exception as error:
                # One batch that cannot be computed must not end the server; clients are told.
                for work in batch:
                    work.deliver(error)

    def _take(self) -> list[Work]:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            latest = time.monotonic() + _GATHER_S
            while len(self._waiting) < self.max_batch and time.monotonic() < latest:
                if not self._changed.wait(_QUIET_S):
                    break
            batch: list[Work] = []
            left: deque[Work] = deque()
            for work in self._waiting:
                if work.cancelled:
                    continue
                fits = len(batch) < self.max_batch and (not batch or work.key == batch[0].key)
                (batch if fits else left).append(work)
            self._waiting = left
        return batch
