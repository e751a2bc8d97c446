"""The closed list of states and reasons, and what is known of one instance.

    PENDING ──▶ SUBMITTED ──▶ RUNNING ──▶ COMPLETED
       │                         ├──────▶ FAILED      (reason: see Reason)
       │                         └──────▶ CANCELLED   (Ctrl-C, SIGTERM, `cancel`)
       ├──▶ SKIPPED              a valid result was there already, or an effect already held
       └──▶ BLOCKED              an upstream step failed; derived, never stored

Standard library alone.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class State(str, enum.Enum):
    """The state of an instance."""

    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"
    CANCELLED = "CANCELLED"

    @property
    def succeeded(self) -> bool:
        """Whether downstream steps may start."""
        return self in (State.COMPLETED, State.SKIPPED)

    @property
    def settled(self) -> bool:
        """Whether nothing more happens to the instance in this round."""
        return self.succeeded or self in (State.FAILED, State.BLOCKED, State.CANCELLED)


class Reason(str, enum.Enum):
    """Why an instance FAILED."""

    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    NODE_FAIL = "node_fail"
    INPUT_CHANGED = "input_changed"
    LOST = "lost"


class Standing(NamedTuple):
    """What is known of one instance."""

    state: State
    attempt: int | None = None
    reason: str | None = None
    """A word of `Reason` for a FAILED instance."""
    message: str = ""
    """In words: why it failed, was skipped, is blocked, or waits."""
    job: str | None = None
    """Where it runs or ran: `<host>:<pid>` for a local step, Slurm's id for others."""
    started_at: str | None = None
    ended_at: str | None = None
    log: str | None = None
    """The attempt's log, relative to the state folder."""
