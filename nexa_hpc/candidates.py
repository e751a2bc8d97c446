"""What may be submitted: the Slurm steps that wait for nothing but what Slurm runs, too.

Called by `handover` and `submitting`, and by `slurm_plans` for runs that are only planned. Standard
library alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from nexa_hpc.core.instances import Instance
from nexa_hpc.core.records import Attempt
from nexa_hpc.core.trying import Changes

REFUSED = "given back: there was no room for it in Slurm's queue"


@dataclass(frozen=True)
class Candidate:
    """An instance that another attempt may be made at."""

    instance: Instance
    number: int
    """The attempt to claim."""
    changes: Changes = field(default_factory=Changes)
    """What its failures so far ask to change."""
    was_refused: bool = False
    """Whether Slurm had no room for it when it was last submitted."""


def within_reach(instances: Iterable[Instance], settled: Container[str]) -> Iterator[Instance]:
    """Yield the Slurm steps, of `instances` in graph order, that may be in Slurm's hands.

    Neither those that have `settled`, nor those that wait for a local step: that comes first.
    """
    waiting: set[str] = set()
    for instance in instances:
        if instance.step in settled:
            continue
        if instance.scheduler == "slurm" and waiting.isdisjoint(instance.parents):
            yield instance
        else:
            waiting.add(instance.step)


def was_refused(attempt: Attempt | None) -> bool:
    """Return whether an attempt came to nothing for want of room in the queue."""
    end = attempt.end if attempt is not None else None
    return end is not None and end["message"] == REFUSED
