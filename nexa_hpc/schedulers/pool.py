"""The local scheduler with several jobs: each element in a worker process of its own.

A worker that crashes costs its one step. What it prints comes through a pipe to its log and to
whoever watches; how far it is comes through another, as JSON lines (`worker.py` writes them). The
threads that read them call the element's `on_output` and `on_progress`.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.leftovers import TAG_VARIABLE, attempt_tag, end_leftovers
from nexa_hpc.core.redaction import Redactor
from nexa_hpc.schedulers.attempt_log import AttemptLog
from nexa_hpc.schedulers.base import (
    PARENT_VARIABLE,
    PROGRESS_VARIABLE,
    Element,
    JobReport,
    JobState,
    reference,
)
from nexa_hpc.schedulers.launching import (
    describe_exit,
    needs_process,
    worker_command,
    worker_environment,
)

_READ_BYTES = 1 << 16
_STOP_GRACE_S = 45.0
"""Longer than `runners.command` gives its own command to save."""
_LAST_LINE_BYTES = 400


class WorkerPool:
    """Runs up to `jobs` elements side by side, each in a process of `nexa_hpc.worker`."""

    name = "local"

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: dict[str, _Worker] = {}
        self._ended: dict[str, JobReport] = {}
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()

    def room(self) -> int:
        """Return how many more elements may be submitted now."""
        return self._jobs - len(self._running)

    def submit(self, elements: Sequence[Element]) -> list[str]:
        """Start a worker for each element and return at once; a handle is its pid."""
        handles = []
        for element in elements:
            worker = _Worker(element, _threads_each(self._jobs), self._news)
            self._running[worker.handle] = worker
            handles.append(worker.handle)
        return handles

    def wait(self, timeout_s: float) -> None:
        """Return when a worker has ended, or after `timeout_s`."""
        try:
            self._note_end(self._news.get(timeout=timeout_s))
        except queue.Empty:
            return

    def poll(self, handles: Iterable[str]) -> Mapping[str, JobReport]:
        """Tell of each worker whether it has ended, and how."""
        while not self._news.empty():
            self._note_end(self._news.get())
        running = JobReport(JobState.RUNNING)
        unknown = JobReport(JobState.UNKNOWN)
        return {
            handle: running if handle in self._running else self._ended.get(handle, unknown)
            for handle in handles
        }

    def cancel(self, handles: Iterable[str]) -> None:
        """Ask the workers to stop, wait until they have, and end those that do not."""
        # Another thread may cancel as this one notes an end.
        found = [self._running.get(handle) for handle in handles]
        workers = [worker for worker in found if worker is not None]
        for worker in workers:
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_GRACE_S
        for worker in workers:
            worker.end_by(deadline)

    def render(self, elements: Sequence[Element]) -> str:
        """Name the commands of the workers."""
        return "\n".join(shlex.join(_command(element)) for element in elements)

    def _note_end(self, handle: str) -> None:
        worker = self._running.pop(handle)
        self._ended[handle] = JobReport(JobState.ENDED, worker.ending())


class _Worker:
    """One worker process and the threads that read from it."""

    def __init__(self, element: Element, threads: int, news: queue.SimpleQueue[str]) -> None:
        self._element = element
        self._news = news
        self._last = b""
        self._tag = attempt_tag(element.run.paths.records(element.instance.key), element.attempt)
        reader, writer = os.pipe()
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **worker_environment(element.instance, element.run.paths),
            TAG_VARIABLE: self._tag,
            PROGRESS_VARIABLE: str(writer),
            PARENT_VARIABLE: str(os.getpid()),
        }
        self._process = subprocess.Popen(
            _command(element),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            # Ctrl-C in the terminal reaches the driver alone, which then asks each worker to stop.
            start_new_session=True,
        )
        os.close(writer)
        self.handle = str(self._process.pid)
        threading.Thread(target=self._read_progress, args=(reader,), daemon=True).start()
        self._thread = threading.Thread(target=self._read_output, daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        """Send a signal to the worker alone; it looks after what it has started."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end_by(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic) for the worker's end, then end it and its children."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            end_leftovers(self._tag)
        if needs_process(self._element.instance):
            # Asked while it was loading modules, the shell ended and left what it was waiting for.
            end_leftovers(self._tag)
        self._thread.join()

    def ending(self) -> str:
        """Return how the process ended, in words."""
        lines = self._last.decode(errors="replace").strip().splitlines()
        return describe_exit(self._process.wait(), lines[-1] if lines else "")

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        redactor = Redactor(self._element.run.secrets)
        with closing(AttemptLog(self._element.log)) as log:
            for chunk in redactor.chunks(iter(lambda: os.read(fd, _READ_BYTES), b"")):
                log.write(chunk)
                self._last = (self._last + chunk)[-_LAST_LINE_BYTES:]
                self._element.on_output(chunk)
        self._process.stdout.close()
        self._process.wait()
        self._news.put(self.handle)

    def _read_progress(self, reader: int) -> None:
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                self._element.on_progress(Progress(**json.loads(line)))


def _command(element: Element) -> list[str]:
    return worker_command(reference(element), element.instance, element.run.paths)


def _threads_each(jobs: int) -> int:
    """Return a fair share of this machine's cores, so that N trainings do not fight for all."""
    return max(1, (os.cpu_count() or 1) // jobs)
