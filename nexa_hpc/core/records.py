"""The records of the attempts at one step key: claim, start and end, each a file created once.

    records/<hh>/<key>/<n>.claim.json   who may make attempt n: run, step, scheduler, driver, log
    records/<hh>/<key>/<n>.start.json   where and when it started; in the claim, where a driver that
                                        runs the step itself does both at once
    records/<hh>/<key>/<n>.end.json     how it ended; whoever creates it first has the last word

Attempt n is claimed before it is started or submitted; a claim that exists is somebody else's, and
is adopted. Attempt n+1 is claimed only when n has an end record, which whoever proves that n's
process is gone may write for it (`lost`): a late writer then finds its place taken. Called by
`advance` and by the worker. Standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.reading import list_names, read_bytes, read_json_or_none
from nexa_hpc.core.states import Reason, State
from nexa_hpc.errors import StateError

_PARTS = ("claim", "start", "end")
_NAME = re.compile(r"([1-9][0-9]*)\.(claim|start|end)\.json")


@dataclass(frozen=True)
class Attempt:
    """One try at an instance, as recorded so far."""

    number: int
    claim: Mapping[str, Any]
    start: Mapping[str, Any] | None
    end: Mapping[str, Any] | None

    @property
    def is_open(self) -> bool:
        """Whether it has no end, or one after which its own job goes on."""
        return self.end is None or bool(self.end.get("requeued"))

    @property
    def log(self) -> str | None:
        """Its log, relative to the state folder; None before a job says which."""
        # Claims that many attempts share name neither log nor job; the element that starts does.
        return (self.start or {}).get("log") or self.claim.get("log")

    @property
    def job(self) -> str | None:
        """Where it runs or ran, as far as the records say."""
        return (self.start or {}).get("job") or self.claim.get("job")

    @property
    def state(self) -> State:
        """What the records alone say; a live process or Slurm may know better."""
        if self.end is not None:
            # After a requeue its job waits, and makes the next attempt.
            return State.SUBMITTED if self.is_open else State(self.end["state"])
        return State.RUNNING if self.start is not None else State.SUBMITTED


def now() -> str:
    """Return the time for people to read; nothing is ever ordered by it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def here() -> dict[str, Any]:
    """Return where an attempt starts that the calling process makes."""
    return {"host": os.uname().nodename, "pid": os.getpid()}


def read_attempts(folder: Path) -> list[Attempt]:
    """Return the attempts recorded in `folder`, oldest first, from one listing."""
    found: dict[int, set[str]] = {}
    for name in list_names(folder):
        if (match := _NAME.fullmatch(name)) is not None:
            found.setdefault(int(match[1]), set()).add(match[2])
    return [_read_attempt(folder, number, found[number]) for number in sorted(found)]


def unended_attempts(folder: Path) -> list[Attempt]:
    """Return the attempts in `folder` that have no end record, oldest first; reads only theirs."""
    names = set(list_names(folder))
    claims = (match for match in map(_NAME.fullmatch, names) if match and match[2] == "claim")
    open_ = sorted(int(match[1]) for match in claims if f"{match[1]}.end.json" not in names)
    return [_read_attempt(folder, number, {"claim", "start"}) for number in open_]


def newest_number(folder: Path) -> int:
    """Return the number of the newest attempt that has ended, or 0."""
    ended = [attempt.number for attempt in read_attempts(folder) if attempt.end is not None]
    return max(ended, default=0)


def newest_claimed(folder: Path) -> int:
    """Return the number of the newest attempt, ended or not, or 0."""
    return max((attempt.number for attempt in read_attempts(folder)), default=0)


def has_ended(folder: Path, number: int) -> bool:
    """Return whether attempt `number` has an end record; until then no later one is claimed."""
    return _path(folder, number, "end").name in list_names(folder)


def ended_state(folder: Path, number: int) -> State | None:
    """Return how attempt `number` ended, or None while it has no end record."""
    if not has_ended(folder, number):
        return None
    content = _read_part(_path(folder, number, "end"))
    return None if content is None else State(content["state"])


def claim(
    folder: Path,
    number: int,
    content: Mapping[str, Any],
    *,
    start: Mapping[str, Any] | None = None,
) -> bool:
    """Claim attempt `number`, or return False when somebody else has.

    `start`: the caller makes the attempt itself, at once, and says here what `start` would record.
    """
    # Its name settles with the end record's: a claim that a power cut takes away had a process that
    # the same cut ended. So had one of the caller's own, and may lose its content as well.
    entry = {"claimed_at": now(), **content}
    if start is not None:
        entry["start"] = {"started_at": entry["claimed_at"], **start}
    path = _path(folder, number, "claim")
    return atomic.create_once(path, entry, settle=False, durable=start is None)


def start(folder: Path, number: int, content: Mapping[str, Any]) -> bool:
    """Record that attempt `number` runs; False when it was recorded before (a requeue)."""
    entry = {"started_at": now(), **content}
    return atomic.create_once(_path(folder, number, "start"), entry, settle=False)


def end(
    folder: Path,
    number: int,
    state: State,
    *,
    reason: Reason | None = None,
    message: str = "",
    requeued: bool = False,
    durable: bool = True,
) -> bool:
    """Record how attempt `number` ended; False when its end was recorded before, and stands.

    PENDING means that it was given back: nothing came of it, and another may be made. `requeued`
    says that its own job makes that one, as long as it lives. It need not be `durable` where a
    durable result says the same.
    """
    content: dict[str, Any] = {
        "ended_at": now(),
        "state": state.value,
        "reason": reason.value if reason else None,
        "message": message,
    }
    if requeued:
        content["requeued"] = True
    return atomic.create_once(_path(folder, number, "end"), content, durable=durable)


def _read_attempt(folder: Path, number: int, parts: set[str]) -> Attempt:
    contents = {
        part: _read_part(_path(folder, number, part)) if part in parts else None for part in _PARTS
    }
    claim = contents["claim"] or {}
    return Attempt(number, claim, contents["start"] or claim.get("start"), contents["end"])


def _read_part(path: Path) -> Any:
    try:
        return read_json_or_none(path)
    except StateError:
        if read_bytes(path).strip(b"\0"):
            raise
        # It was not durable, and a power cut has taken its content: with its process, or beside a
        # result that says the same.
        return None


def _path(folder: Path, number: int, part: str) -> Path:
    return folder / f"{number}.{part}.json"
