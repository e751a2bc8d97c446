"""The local scheduler: elements run one after the other, in this process, with their output
captured.

The file descriptors 1 and 2 are redirected while an element runs, so that what its child processes
and C libraries print is caught too: it goes to the attempt's log and, as it comes, to whoever
watches.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.core.redaction import Redactor
from nexa_hpc.schedulers.attempt_log import attempt_log
from nexa_hpc.schedulers.base import Element, JobReport, JobState

_READ_BYTES = 1 << 16
_DRAIN_S = 2.0


class LocalScheduler:
    """Runs elements in this process by calling `execute`, which records how they end."""

    name = "local"

    def __init__(self, execute: Callable[[Element], object]) -> None:
        self._execute = execute

    def submit(self, elements: Sequence[Element]) -> list[str]:
        """Run the elements to their ends; raises Interrupted when one was stopped from outside."""
        for element in elements:
            redactor = Redactor(element.run.secrets)
            with captured_output(element.log, element.on_output, redactor):
                self._execute(element)
        return [str(os.getpid()) for _ in elements]

    def room(self) -> int:
        """One: an element has ended when `submit` returns."""
        return 1

    def poll(self, handles: Iterable[str]) -> Mapping[str, JobReport]:
        """Every handle that `submit` returned has ended."""
        return dict.fromkeys(handles, JobReport(JobState.ENDED))

    def wait(self, timeout_s: float) -> None:
        """Wait that long: nothing of ours runs meanwhile."""
        time.sleep(timeout_s)

    def cancel(self, handles: Iterable[str]) -> None:
        """Nothing is left to end: a running element is stopped by the run's cancel marker."""

    def render(self, elements: Sequence[Element]) -> str:
        """Name the steps, in the order in which they run."""
        return "\n".join(f"{e.instance.step}: in this process" for e in elements)


@contextmanager
def captured_output(
    log: Path, on_output: Callable[[bytes], None], redactor: Redactor
) -> Iterator[None]:
    """Send what this process and its children print, redacted, to `log` and to `on_output`."""
    reader, writer = os.pipe()
    pump = threading.Thread(target=_pump, args=(reader, log, on_output, redactor), daemon=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    pump.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in zip((1, 2), saved, strict=True):
            os.dup2(original, fd)
            os.close(original)
        # A child that was left behind may hold the pipe open; it is not waited for.
        pump.join(_DRAIN_S)


def _pump(reader: int, log: Path, on_output: Callable[[bytes], None], redactor: Redactor) -> None:
    with os.fdopen(reader, "rb", buffering=0) as source, attempt_log(log) as keep:
        for chunk in redactor.chunks(iter(lambda: source.read(_READ_BYTES), b"")):
            keep(chunk)
            on_output(chunk)
