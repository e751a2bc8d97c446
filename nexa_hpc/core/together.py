"""Running a handler as one of several ranks, so that none of them waits for another for ever.

A rank that waits in a collective operation for one that has failed would wait until the job's time
limit: a thread looks how the others are, and interrupts the handler. Called by the worker. Standard
library alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from nexa_hpc.core.environments import variables_set
from nexa_hpc.core.handlers import Handler, Task
from nexa_hpc.core.meeting import DONE, FAILED, STOPPED, IsOver, Meeting, looks, trouble
from nexa_hpc.errors import Interrupted, StepError

_REACT_S = {DONE: 20.0, FAILED: 10.0, STOPPED: 300.0}
"""How long a handler may take to end by itself after another rank has ended so."""
_AFTER_INTERRUPT_S = 30.0
_TELL_S = 2.0
"""How long a rank that failed before us may take to say so."""
_LOOK_S = (0.2, 2.0)


def run_leading(handler: Handler, task: Task, give_up: Callable[[BaseException], None]) -> None:
    """Run `handler` as rank 0, and return when all ranks are done.

    Raises what the first rank to fail told. `give_up` records why this process is ended, where the
    handler heeds no interrupt.
    """
    meeting = Meeting(task.work_dir, task.ranks)
    task = replace(task, ranks=meeting.begin(task.outputs, task.resume))

    def worst_end() -> str | None:
        ends = {note["end"] for note in meeting.others()}
        return next((end for end in (FAILED, STOPPED) if end in ends), None)

    def record_end() -> None:
        give_up(trouble(meeting.others()) or StepError("another rank has ended"))

    try:
        with variables_set(task.ranks.variables()), _interrupted_after(worst_end, record_end):
            handler.run(task)
    except (Exception, KeyboardInterrupt) as error:
        first = _first_error(error, meeting)
        if first is error:
            raise
        raise first from error
    meeting.wait_for_others()


def run_following(handler: Handler, task: Task, is_over: IsOver) -> None:
    """Run `handler` as another rank than 0; it is interrupted when the attempt is over before."""

    def end() -> str | None:
        return DONE if is_over() else None

    with variables_set(task.ranks.variables()), _interrupted_after(end, lambda: None):
        handler.run(task)


def _first_error(error: BaseException, meeting: Meeting) -> BaseException:
    """Return `error` of rank 0, or what another rank told that failed before it.

    A rank that fails may close its connections, and thereby fail the others, before it says why.
    """
    if isinstance(error, KeyboardInterrupt):
        return trouble(meeting.others()) or error
    if isinstance(error, Interrupted):
        return error
    at = time.time()
    for _ in looks(_TELL_S):
        failed = [note for note in meeting.others() if note["end"] == FAILED]
        if failed:
            told = trouble(failed)
            assert told is not None
            return told if failed[0]["at"] <= at + _TELL_S else error
    return error


@contextmanager
def _interrupted_after(
    ended: Callable[[], str | None], give_up: Callable[[], None]
) -> Iterator[None]:
    """Interrupt the main thread, as Ctrl-C does, some time after `ended` has told an end.

    What does not heed that, in a library that waits for a peer, is ended with the whole process,
    after `give_up`.
    """
    over = threading.Event()
    asking = threading.Lock()

    def watch() -> None:
        end = _wait_for(ended, over)
        if end is None or over.wait(_REACT_S[end]):
            return
        with asking:
            if over.is_set():
                return
            os.kill(os.getpid(), signal.SIGINT)
        if not over.wait(_AFTER_INTERRUPT_S):
            give_up()
            os._exit(1)

    with _heeding_interrupts():
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()
            # An interrupt that is under way arrives here and not in what comes after.
            with asking:
                pass


def _wait_for(ended: Callable[[], str | None], over: threading.Event) -> str | None:
    pause, longest = _LOOK_S
    while not over.wait(pause):
        try:
            end = ended()
        except OSError:
            continue  # The disk does not answer now; it will, or the handler fails by itself.
        if end is not None:
            return end
        pause = min(pause * 1.5, longest)
    return None


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also in what was started with it ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
