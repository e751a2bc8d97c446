"""The process that makes one attempt for an element, and what the element does while it runs.

A step that needs no environment of its own runs in a fork of the element, which has loaded all that
the way to a handler needs; others are started as their `env` says. What the child prints goes to
the attempt's log. The element owns the signals: USR2 (the time limit is near) and TERM (preemption,
scancel) reach the child as one SIGTERM, which handlers take as a request to save. Called by `main`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

from nexa_hpc import worker
from nexa_hpc.core.progress_file import progress_writer
from nexa_hpc.core.ranks import Ranks
from nexa_hpc.core.redaction import Redactor
from nexa_hpc.core.runs import Run
from nexa_hpc.errors import Interrupted
from nexa_hpc.schedulers.attempt_log import AttemptLog

TIME_LIMIT, TERMINATION = signal.SIGUSR2, signal.SIGTERM
_READ_BYTES = 1 << 16
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 10.0
"""How often an element asks whether the step that it runs was stopped: a listing each time."""
_DRAIN_S = 2.0


class Signals:
    """The signals that an element has got so far; the running child is told of them."""

    def __init__(self) -> None:
        self.got: set[int] = set()
        self.passes: Callable[[int], bool] = lambda _: True
        """Whether a signal is for the running step to see."""
        self.is_stopped: Callable[[], bool] = lambda: False
        """Whether a user has stopped the running step, and not the element."""
        self._asked_at = 0.0
        self._child: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals while the context is open."""
        previous = {
            number: signal.signal(number, self._note) for number in (TIME_LIMIT, TERMINATION)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def told_to(self, pid: int) -> Iterator[None]:
        """Pass the signals on to `pid` while the context is open, those got before as well."""
        self._child, self._asked_at = pid, time.monotonic()
        try:
            if any(self.passes(number) for number in self.got):
                self._tell()
            yield
        finally:
            self._child = None

    def ask(self) -> None:
        """Tell the child to stop where it alone was stopped; asks for that every few seconds."""
        if time.monotonic() - self._asked_at >= _ASK_EVERY_S:
            self._asked_at = time.monotonic()
            if self.is_stopped():
                self._tell()

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_new = number not in self.got
        self.got.add(number)
        if is_new and self.passes(number):
            self._tell()

    def _tell(self) -> None:
        if self._child is not None:
            try:
                os.kill(self._child, signal.SIGTERM)
            except ProcessLookupError:
                pass


def run_forked(run: Run, step: str, attempt: int, log: Path, signals: Signals, ranks: Ranks) -> int:
    """Make the attempt in a fork of this process and return its exit code, as a shell has it.

    As another rank than 0, do that rank's part of it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the child has a handler of its own, it would take ours for its own, and do nothing.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {TERMINATION})
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_the_worker(run, step, attempt, writer, ranks, unblocked)
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    os.close(writer)
    with signals.told_to(pid):
        _pump(reader, log, Redactor(run.secrets), lambda: _has_ended(pid), signals.ask)
    return _exit_code(pid)


def run_started(
    command: list[str], environment: Mapping[str, str], run: Run, log: Path, signals: Signals
) -> int:
    """Make the attempt in the process that `command` starts, and return its exit code."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment, worker.LEAVES_OPEN_VARIABLE: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_shield,
    )
    assert process.stdout is not None
    with signals.told_to(process.pid):
        reader = os.dup(process.stdout.fileno())
        process.stdout.close()
        _pump(reader, log, Redactor(run.secrets), lambda: process.poll() is not None, signals.ask)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _be_the_worker(
    run: Run, step: str, attempt: int, writer: int, ranks: Ranks, unblocked: Iterable[int]
) -> None:
    """Become the worker of one attempt; never returns."""
    code = 1
    try:
        os.setsid()
        _shield()
        for fd in (1, 2):
            os.dup2(writer, fd)
        os.close(writer)
        worker.stop_on_sigterm(once=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        if ranks.rank:
            state = worker.assist(run, step, attempt, ranks)
        else:
            tell = progress_writer(run.place.progress(step, attempt))
            state = worker.execute(
                run, step, attempt, tell, begins=False, leaves_open=True, ranks=ranks
            )
        code = 0 if state.succeeded else 1
    except (Interrupted, KeyboardInterrupt):
        # The latter when it was told before it had begun.
        code = Interrupted.exit_code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the element registered to be done at its own end is not ours to do.
        os._exit(code)


def _shield() -> None:
    """Have this process and all it starts pass over USR2, which Slurm sends to a whole step."""
    signal.signal(TIME_LIMIT, signal.SIG_IGN)


def _pump(
    reader: int,
    log: Path,
    redactor: Redactor,
    has_ended: Callable[[], bool],
    on_look: Callable[[], None],
) -> None:
    with closing(AttemptLog(log)) as kept:
        for chunk in redactor.chunks(_chunks(reader, has_ended, on_look)):
            kept.write(chunk)
    os.close(reader)


def _chunks(
    reader: int, has_ended: Callable[[], bool], on_look: Callable[[], None]
) -> Iterable[bytes]:
    """Yield what is printed until the pipe is closed, or the child has ended and others keep it.

    `on_look` is called every second at least.
    """
    give_up_at = None
    while True:
        on_look()
        ready, _, _ = select.select([reader], [], [], _LOOK_EVERY_S)
        if ready:
            chunk = os.read(reader, _READ_BYTES)
            if not chunk:
                return
            yield chunk
        elif has_ended():
            give_up_at = give_up_at or time.monotonic() + _DRAIN_S
            if time.monotonic() >= give_up_at:
                return


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _exit_code(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
