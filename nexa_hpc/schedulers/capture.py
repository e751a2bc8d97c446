"""What this process and its children print while a step runs: caught, redacted, kept and shown.

The file descriptors 1 and 2 lead into a pipe meanwhile, so that what children and C libraries print
is caught, too. One thread reads the pipes of all steps of a driver, and sleeps while nothing is
printed: a thread for each step took a third of the time of one that does nothing. Used by `local`.
Standard library alone.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexa_hpc.core.redaction import Redactor
from nexa_hpc.schedulers.attempt_log import AttemptLog

_READ_BYTES = 1 << 16
_DRAIN_S = 2.0
_IDLE_S = 1.0


class OutputPump:
    """Reads the pipes of captured steps; its thread ends once it has had none for a while."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._is_running = False

    @contextmanager
    def captured(
        self, log: Path, on_output: Callable[[bytes], None], redactor: Redactor
    ) -> Iterator[None]:
        """Send what is printed meanwhile, redacted, to `log` and to `on_output`."""
        reader, writer = os.pipe()
        pipe = _Pipe(reader, log, on_output, redactor)
        self._watch(pipe)
        try:
            with _redirected(writer, before_end=lambda: self._forget(pipe)):
                yield
        finally:
            if pipe.drain():
                pipe.close()
            else:
                # A child that was left behind holds it open; it is not waited for.
                self._watch(pipe)
                pipe.ended.wait(_DRAIN_S)

    def _watch(self, pipe: _Pipe) -> None:
        with self._lock:
            self._selector.register(pipe.reader, selectors.EVENT_READ, pipe)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._pump, name="output", daemon=True).start()

    def _forget(self, pipe: _Pipe) -> None:
        """Watch `pipe` no more; by now its number may be another one's."""
        with self._lock:
            key = self._selector.get_map().get(pipe.reader)
            if key is not None and key.data is pipe:
                self._selector.unregister(pipe.reader)

    def _pump(self) -> None:
        while True:
            ready = self._selector.select(_IDLE_S)
            for key, _ in ready:
                if key.data.drain():
                    self._forget(key.data)
                    key.data.close()
            with self._lock:
                if not ready and not self._selector.get_map():
                    self._is_running = False
                    return


class _Pipe:
    """The end from which one step's output is read, and where it goes from there."""

    def __init__(
        self, reader: int, log: Path, on_output: Callable[[bytes], None], redactor: Redactor
    ) -> None:
        os.set_blocking(reader, False)
        self.reader = reader
        self.ended = threading.Event()
        """Set when nobody holds the other end any more, and all has been passed on."""
        self._log = AttemptLog(log)
        self._on_output = on_output
        self._stream = redactor.stream()
        self._lock = threading.Lock()
        self._is_closed = False

    def drain(self) -> bool:
        """Pass on what is there now; return whether no more will ever come."""
        with self._lock:
            while not self.ended.is_set():
                try:
                    chunk = os.read(self.reader, _READ_BYTES)
                except BlockingIOError:
                    return False
                if text := self._stream.feed(chunk) if chunk else self._stream.rest():
                    self._log.write(text)
                    self._on_output(text)
                if not chunk:
                    self.ended.set()
            return True

    def close(self) -> None:
        """Close the pipe and the log, once it has ended."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self.reader)
                self._log.close()


@contextmanager
def _redirected(writer: int, before_end: Callable[[], None]) -> Iterator[None]:
    """Lead the file descriptors 1 and 2 into `writer`, which is closed, and back again.

    `before_end` is called when all has been written, and before that can be seen at the other end.
    """
    _flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        _flush()
        before_end()
        for fd, original in zip((1, 2), saved, strict=True):
            os.dup2(original, fd)
            os.close(original)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
