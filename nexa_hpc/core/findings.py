"""What `doctor` finds: one thing each, how bad it is, and what to do about it. Standard library
alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """Works, or may not matter here."""
    PROBLEM = "problem"
    """Something that was asked for will not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at, in a word or two."""
    level: Level
    message: str
    remedy: str | None = None
    """What to do about it; None where nothing is to be done."""

    def to_json(self) -> dict[str, str | None]:
        """Return the finding as `doctor --json` prints it."""
        return {**vars(self), "level": self.level.value}


def ok(name: str, message: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(name, Level.OK, message)


def warning(name: str, message: str, remedy: str) -> Finding:
    """Return a finding that may matter."""
    return Finding(name, Level.WARNING, message, remedy)


def problem(name: str, message: str, remedy: str) -> Finding:
    """Return a finding that will get in the way."""
    return Finding(name, Level.PROBLEM, message, remedy)
