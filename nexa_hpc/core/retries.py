"""Which failures are tried again, how often, and with what changed; by the reason of the failure.

    retry:
      out_of_memory: {times: 2, mem_factor: 1.5}
      timeout: {times: 2, time_factor: 1.0}
      node_fail: {times: 3, exclude_node: true}
      exception: 0

A number alone is `{times: …}`. Preemptions and checkpointed time limits that made headway count for
nothing; what a person cancelled is never tried again. Declared per step and, for a project, in
`configs/scheduler/slurm.yaml`. Not in the step key. Frozen pydantic models. Called by `spec` and
`cluster`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nexa_hpc.core.spec_sections import Count, CountOrZero, Frozen

Factor = Annotated[float, Field(ge=1, le=10)]


def _times(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return {"times": value} if is_count else value


class Tries(Frozen):
    """How often one kind of failure is tried again."""

    times: CountOrZero


class MemoryTries(Tries):
    """The same, with more memory each time."""

    mem_factor: Factor = 1.5


class TimeTries(Tries):
    """The same, with more time each time; beyond the partition's limit it is that limit."""

    time_factor: Factor = 1.0


class NodeTries(Tries):
    """The same, away from the node that failed."""

    exclude_node: bool = True


class RetrySpec(Frozen):
    """What is tried again; None: as the scheduler's defaults have it."""

    out_of_memory: Annotated[MemoryTries | None, BeforeValidator(_times)] = None
    timeout: Annotated[TimeTries | None, BeforeValidator(_times)] = None
    node_fail: Annotated[NodeTries | None, BeforeValidator(_times)] = None
    exception: Annotated[Tries | None, BeforeValidator(_times)] = None
    total_time_min: Count | None = None
    """What all attempts of a round may take together."""


NO_RETRY: RetrySpec = RetrySpec()

SLURM_RETRY: RetrySpec = RetrySpec(
    out_of_memory=MemoryTries(times=2),
    timeout=TimeTries(times=1, time_factor=1.5),
    node_fail=NodeTries(times=3),
    exception=Tries(times=0),
)
"""What holds on Slurm where nothing else is said."""
