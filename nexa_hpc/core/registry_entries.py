"""The two kinds of entries of the model registry. Pure; standard library alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMOTE = "promote"
ROLLBACK = "rollback"
REMOVE = "remove"


@dataclass(frozen=True)
class Version:
    """One registered artifact; `path` is its folder, which may have been purged since."""

    model: str
    number: int
    path: Path
    artifact_hash: str
    step_key: str | None
    """The key of the step that made the artifact, or None for a free-standing one."""
    meta: Mapping[str, Any]
    registered_at: str
    """For people to read: nothing is ordered by a clock."""
    registered_by: str
    source: Mapping[str, Any]
    """Who asked: the registering step and its labels, or the command."""

    def __str__(self) -> str:
        return f"{self.model} version {self.number}"


@dataclass(frozen=True)
class Tag:
    """One entry in a tag's history; the one with the highest `sequence` is the tag's present."""

    model: str
    name: str
    sequence: int
    version: int | None
    """The version it points to from here on; None when the tag was removed."""
    previous: int | None
    action: str
    """`promote`, `rollback` or `remove`."""
    set_at: str
    set_by: str

    def __str__(self) -> str:
        now = "removed" if self.version is None else f"→ version {self.version}"
        was = "" if self.previous is None else f" (was version {self.previous})"
        return f"{self.name} {now}{was}"


def standing(history: Iterable[Tag]) -> list[int | None]:
    """Return what a tag pointed to, oldest first, without what rollbacks have taken back.

    The last is the present. Rolling back twice therefore goes back two versions, instead of
    forward again to the one that was rolled back first.
    """
    stack: list[int | None] = []
    for entry in history:
        if entry.action == ROLLBACK:
            while stack and stack[-1] != entry.version:
                stack.pop()
        if not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    return stack
