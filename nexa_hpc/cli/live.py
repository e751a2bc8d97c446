"""The live table on a terminal: every step, its state, time and progress, with output above it.

The only module that needs rich while a run is driven; imported on a terminal alone.
"""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nexa_hpc.cli.progress import StepText, submission_lines
from nexa_hpc.cli.tables import STYLES, duration, progress_text
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.handover import HandedOver
from nexa_hpc.observing import Observer

_ROWS_SHOWN = 25
_REFRESH_PER_S = 4


class LiveTable(Observer):
    """An `observing.Observer` that redraws a table; a context manager."""

    def __init__(self, run: Run, out: TextIO) -> None:
        self._run = run
        self._console = Console(file=out)
        self._standings = {step: Standing(State.PENDING) for step in run.instances}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._line: dict[str, str] = {}
        self._text = StepText()
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for step in list(self._line):
            self._print_line(step, self._line.pop(step))
        self._live.__exit__(None, None, None)

    def started(self, instance: Instance, attempt: int) -> None:
        """See `observing.Observer`."""
        self._began[instance.step] = time.monotonic()
        self._standings[instance.step] = Standing(State.RUNNING, attempt=attempt)
        self._notes[instance.step] = printable(instance.reason)

    def output(self, instance: Instance, text: bytes) -> None:
        """See `observing.Observer`; whole lines, above the table."""
        shown = self._text.decode(instance.step, text)
        lines = (self._line.pop(instance.step, "") + shown).split("\n")
        for line in lines[:-1]:
            self._print_line(instance.step, line)
        if lines[-1]:
            self._line[instance.step] = _last_state(lines[-1])

    def progressed(self, instance: Instance, progress: Progress) -> None:
        """See `observing.Observer`."""
        self._notes[instance.step] = progress_text(progress)

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        step = instance.step
        self._standings[step] = standing
        self._notes[step] = printable(standing.message.split("\n")[0])
        if step in self._began:
            self._took[step] = time.monotonic() - self._began[step]

    def waits(self, instance: Instance, standing: Standing) -> None:
        """See `observing.Observer`."""
        self._standings[instance.step] = standing
        self._notes[instance.step] = printable(standing.message)

    def handed_over(self, done: HandedOver) -> None:
        """See `observing.Observer`."""
        for step, job in done.jobs.items():
            self._standings[step] = Standing(State.SUBMITTED, job=job)
        for line in submission_lines(done):
            self._console.print(Text(line))

    def _print_line(self, step: str, line: str) -> None:
        shown = _last_state(line).rstrip("\r")
        self._console.print(Text(f"{step} │ ", style="dim") + Text.from_ansi(shown))

    def _note(self, step: str) -> str:
        """Return what a step is at: its progress bar, where it draws one, or else its note."""
        bar = Text.from_ansi(self._line.get(step, "").rstrip("\r")).plain.strip()
        return bar or self._notes.get(step, "")

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        table.add_column("STEP", no_wrap=True)
        table.add_column("STATE", no_wrap=True)
        table.add_column("TIME", no_wrap=True, justify="right")
        table.add_column("NOTE", no_wrap=True, overflow="ellipsis")
        for step in self._shown():
            state = self._standings[step].state.value
            table.add_row(
                step, Text(state, style=STYLES[state]), self._time(step), Text(self._note(step))
            )
        done = sum(standing.state.settled for standing in self._standings.values())
        head = Text(
            f"run {self._run.id}: {done} of {len(self._standings)} steps done", style="bold"
        )
        return Group(Text(""), head, table)

    def _shown(self) -> list[str]:
        """Return the steps to show: all, or a window around the one that runs."""
        steps = list(self._standings)
        if len(steps) <= _ROWS_SHOWN:
            return steps
        current = [i for i, s in enumerate(steps) if self._standings[s].state is State.RUNNING]
        first = max(0, (current[0] if current else 0) - _ROWS_SHOWN // 2)
        return steps[first : first + _ROWS_SHOWN]

    def _time(self, step: str) -> str:
        if step in self._took:
            return duration(self._took[step])
        if step in self._began:
            return duration(time.monotonic() - self._began[step])
        return ""


def _last_state(line: str) -> str:
    """Return what a carriage return has left to see of `line`; a progress bar draws many."""
    shown = line.rstrip("\r").rpartition("\r")[2]
    return f"{shown}\r" if line.endswith("\r") else shown
