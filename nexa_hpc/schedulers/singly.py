"""Ending single worker processes of a driver whose steps a user has stopped.

A stop is a file that somebody on any node has left; a driver looks for it every second while
something of it runs. Called from the thread that beats, so it returns at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.schedulers.base import Scheduler


class Stopper:
    """Ends what one driver has started of a run, where it was stopped singly."""

    def __init__(self, run: Run, scheduler: Scheduler) -> None:
        self._run = run
        self._scheduler = scheduler
        self._told: set[str] = set()
        """Handles of those that are being ended."""

    def look(self, started: Mapping[str, tuple[Instance, int]]) -> None:
        """Have each of `started`, by handle, ended that was stopped; another thread may change it.

        The driver is told of their ends as of any others.
        """
        running = dict(started)
        self._told &= running.keys()
        if running.keys() <= self._told:
            return
        stopped = self._run.stopped
        for handle, (instance, _) in running.items():
            if instance.step in stopped and handle not in self._told:
                self._told.add(handle)
                # Each is given its time to save.
                args = ([handle],)
                threading.Thread(target=self._scheduler.cancel, args=args, daemon=True).start()
