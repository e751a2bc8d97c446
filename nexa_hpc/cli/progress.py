"""What a person or a script sees while a run is driven: a live table, plain lines, or JSON lines.

The observers write to a copy of standard output, because the local scheduler redirects the real one
while a step runs. Whoever reads it may go away (`| head`, a closed terminal); the run goes on.
Called by `cli/run.py`.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from nexa_hpc.cli.tables import duration, progress_text
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.quoting import printable, printable_lines
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.handover import HandedOver
from nexa_hpc.observing import Observer

_PROGRESS_EVERY_S = 20.0
_STEPS_NAMED = 4


@contextmanager
def observer_for(run: Run, as_json: bool, *, side_by_side: bool = False) -> Iterator[Observer]:
    """Yield the observer that fits where standard output goes, and whether steps run together."""
    sys.stdout.flush()
    copy = io.BufferedWriter(_Unread(os.dup(sys.stdout.fileno()), "w"))
    with io.TextIOWrapper(copy, encoding="utf-8", errors="replace") as out:
        if as_json:
            yield JsonLines(run, out)
        elif out.isatty():
            from nexa_hpc.cli.live import LiveTable

            with LiveTable(run, out) as table:
                yield table
        else:
            yield PrefixedLines(run, out) if side_by_side else PlainLines(run, out)


class _Unread(io.FileIO):
    """A file that takes what it is given even when nobody reads it any more."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            return len(content)


class StepText:
    """A step's output, which arrives in pieces that may end within a character, as text."""

    def __init__(self) -> None:
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def decode(self, step: str, piece: bytes) -> str:
        """Return the whole characters that `piece` completes."""
        if step not in self._decoders:
            self._decoders[step] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return self._decoders[step].decode(piece)


class PlainLines(Observer):
    """One line for each thing that happens, and the running step's output as it comes."""

    def __init__(self, run: Run, out: TextIO) -> None:
        self._out = out
        # Steps that run side by side print from a thread each.
        self._lock = threading.Lock()
        self._text = StepText()
        self._within_line = False
        self._started: dict[str, float] = {}
        self._told = 0.0
        count = len(run.instances)
        self._print(f"run {run.id}: {count} step{'' if count == 1 else 's'}")

    def started(self, instance: Instance, attempt: int) -> None:
        """See `observing.Observer`."""
        self._started[instance.step] = time.monotonic()
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self._print(f"{instance.step}: RUNNING{again}: {printable(instance.reason)}")

    def output(self, instance: Instance, text: bytes) -> None:
        """See `observing.Observer`."""
        shown = self._text.decode(instance.step, text)
        if shown:
            self._within_line = not shown.endswith("\n")
            self._out.write(shown)
            self._out.flush()

    def progressed(self, instance: Instance, progress: Progress) -> None:
        """See `observing.Observer`; at most a line every few seconds."""
        if time.monotonic() - self._told >= _PROGRESS_EVERY_S:
            self._told = time.monotonic()
            self._print(f"{instance.step}: {progress_text(progress)}")

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        line = f"{instance.step}: {standing.state.value}"
        if instance.step in self._started:
            line += f" in {duration(time.monotonic() - self._started[instance.step])}"
        if standing.message:
            line += f": {printable_lines(standing.message)}"
        # Thousands of cached steps pass in a second: the line after them brings them along.
        self._print(line, flush=standing.state is not State.SKIPPED)

    def waits(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        if standing.message:
            self._print(f"{instance.step}: waiting: {printable_lines(standing.message)}")

    def handed_over(self, done: HandedOver) -> None:
        """See `observing.Observer`."""
        for line in submission_lines(done):
            self._print(line)

    def _print(self, line: str, *, flush: bool = True) -> None:
        with self._lock:
            begin = "\n" if self._within_line else ""
            self._within_line = False
            self._out.write(f"{begin}{line}\n")
            if flush:
                self._out.flush()


class PrefixedLines(PlainLines):
    """The same for steps that run side by side: whole lines, each behind its step's id."""

    def __init__(self, run: Run, out: TextIO) -> None:
        self._rest: dict[str, str] = {}
        super().__init__(run, out)

    def output(self, instance: Instance, text: bytes) -> None:
        """See `observing.Observer`."""
        step = instance.step
        lines = (self._rest.pop(step, "") + self._text.decode(step, text)).split("\n")
        for line in lines[:-1]:
            self._print(f"{step} | {line}")
        self._rest[step] = lines[-1]

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        rest = self._rest.pop(instance.step, "")
        if rest:
            self._print(f"{instance.step} | {rest}")
        super().settled(instance, standing)


class JsonLines(Observer):
    """One JSON object a line: `event` and what belongs to it."""

    def __init__(self, run: Run, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._text = StepText()
        self._print("run", run=run.id, pipeline=run.pipeline, steps=list(run.instances))

    def started(self, instance: Instance, attempt: int) -> None:
        """See `observing.Observer`."""
        self._print("started", step=instance.step, key=instance.key, attempt=attempt)

    def output(self, instance: Instance, text: bytes) -> None:
        """See `observing.Observer`."""
        self._print("output", step=instance.step, text=self._text.decode(instance.step, text))

    def progressed(self, instance: Instance, progress: Progress) -> None:
        """See `observing.Observer`."""
        self._print(
            "progress",
            step=instance.step,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            metrics=dict(progress.metrics),
        )

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        self._print(
            "settled",
            step=instance.step,
            key=instance.key,
            state=standing.state.value,
            reason=standing.reason,
            message=standing.message,
        )

    def waits(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        if standing.state is not State.PENDING:
            self._print("waits", step=instance.step, message=standing.message)

    def handed_over(self, done: HandedOver) -> None:
        """See `observing.Observer`."""
        self._print("submitted", jobs=done.jobs)

    def _print(self, event: str, **content: object) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **content}) + "\n")
            self._out.flush()


def submission_lines(done: HandedOver) -> list[str]:
    """Return a line for each job that was submitted, and for what is put off."""
    lines = []
    for job, batch in done.sheets:
        first = ", ".join(member.step for member in batch.elements[0][:_STEPS_NAMED])
        more = "" if len(batch.elements[0]) <= _STEPS_NAMED else " …"
        shape = "" if batch.width == 1 else f" of {batch.width} elements, the first"
        lines.append(f"submitted job {job}{shape}: {first}{more}")
    if done.put_off:
        lines.append(f"{len(done.put_off)} steps wait for room in the queue, or for other jobs")
    return lines
