"""The seam to whatever runs elements: one protocol, implemented by `local` and, later, by `slurm`.

Called by `advance` alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run

PROGRESS_VARIABLE = "NEXA_HPC_PROGRESS_FD"
"""Names the file descriptor on which a worker process tells its progress, a JSON line each time."""
PARENT_VARIABLE = "NEXA_HPC_PARENT"
"""Holds the process id of the driver that a worker process is not to outlive."""


class JobState(enum.Enum):
    """What a scheduler says of a job; a word that we do not know is UNKNOWN, never an end."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobReport:
    """What a scheduler says of a job, and the words in which it ended."""

    state: JobState
    message: str = ""


@dataclass(frozen=True)
class Element:
    """One claimed attempt at an instance, to be run somewhere."""

    run: Run
    instance: Instance
    attempt: int
    log: Path
    on_output: Callable[[bytes], None] = lambda _: None
    """Gets what the element prints, as it comes, where the scheduler can tell."""
    on_progress: Callable[[Progress], None] = lambda _: None
    is_to_stop: Callable[[], bool] = lambda: False
    """Whether it was stopped singly: asked by a scheduler whose `submit` waits for its end."""
    is_started: bool = False
    """Whether the claim says that it has started, so that whoever runs it need not record it."""


def reference(element: Element) -> str:
    """Return the text by which a worker process finds its element in the run's records."""
    return f"{element.run.place.folder}#{element.instance.step}#{element.attempt}"


class Scheduler(Protocol):
    """Runs elements. A handle is the text by which the scheduler knows a job."""

    name: str

    def room(self) -> int:
        """Return how many more elements may be submitted now."""
        ...

    def submit(self, elements: Sequence[Element]) -> list[str]:
        """Hand over claimed elements and return a handle for each; may block until they have ended.

        Raises SchedulerError when nothing was handed over.
        """
        ...

    def poll(self, handles: Iterable[str]) -> Mapping[str, JobReport]:
        """Ask once for the whole set."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when a job may have ended, and after `timeout_s` at the latest."""
        ...

    def cancel(self, handles: Iterable[str]) -> None:
        """End the jobs and return when they have ended; unknown and ended ones are passed over."""
        ...

    def render(self, elements: Sequence[Element]) -> str:
        """Return what `submit` would hand over, as text, by the same code."""
        ...
