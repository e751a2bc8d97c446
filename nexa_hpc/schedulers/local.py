"""The local scheduler: elements run one after the other, in this process.

One whose step declares an environment of its own gets a worker process in it, and is waited for.
What the others print is captured: it goes to the log and, as it comes, to whoever watches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from nexa_hpc.core.redaction import Redactor
from nexa_hpc.schedulers.base import Element, JobReport, JobState
from nexa_hpc.schedulers.capture import OutputPump
from nexa_hpc.schedulers.launching import needs_process
from nexa_hpc.schedulers.pool import WorkerPool

_LOOK_EVERY_S = 1.0


class LocalScheduler:
    """Runs elements in this process by calling `execute`, which records how they end."""

    name = "local"

    def __init__(self, execute: Callable[[Element], object]) -> None:
        self._execute = execute
        self._pump = OutputPump()
        self._elsewhere = WorkerPool(1)

    def submit(self, elements: Sequence[Element]) -> list[str]:
        """Run the elements to their ends; raises Interrupted when one was stopped from outside."""
        return [self._run(element) for element in elements]

    def _run(self, element: Element) -> str:
        if needs_process(element.instance):
            return self._run_elsewhere(element)
        redactor = Redactor(element.run.secrets)
        with self._pump.captured(element.log, element.on_output, redactor):
            self._execute(element)
        return str(os.getpid())

    def _run_elsewhere(self, element: Element) -> str:
        (handle,) = self._elsewhere.submit([element])
        try:
            while self._elsewhere.room() < 1:
                self._elsewhere.wait(_LOOK_EVERY_S)
                if element.is_to_stop():
                    self._elsewhere.cancel([handle])
        except BaseException:
            self._elsewhere.cancel([handle])
            raise
        return handle

    def room(self) -> int:
        """One: an element has ended when `submit` returns."""
        return 1

    def poll(self, handles: Iterable[str]) -> Mapping[str, JobReport]:
        """Every handle that `submit` returned has ended; of a worker process it is told how."""
        ended = JobReport(JobState.ENDED)
        told = self._elsewhere.poll(handles)
        return {h: ended if r.state is JobState.UNKNOWN else r for h, r in told.items()}

    def wait(self, timeout_s: float) -> None:
        """Wait that long: nothing of ours runs meanwhile."""
        time.sleep(timeout_s)

    def cancel(self, handles: Iterable[str]) -> None:
        """Nothing is left to end: a running element is stopped by the run's cancel marker."""

    def render(self, elements: Sequence[Element]) -> str:
        """Name the steps, in the order in which they run."""
        return "\n".join(f"{e.instance.step}: in this process" for e in elements)
