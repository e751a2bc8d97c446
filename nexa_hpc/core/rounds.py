"""Rounds of a run: the run's own beginning and each `resume`, one create-once file each.

    rounds/<n>.json   attempts_before   key -> the newest attempt that had ended before the round;
                                        not of what it takes for cached
                      left_out          which instances the round is not about, and why; where it is
                                        about a part of the run

What a round leaves out is in its own file, so that nobody can meet the round without it. Called by
`runs` and `stops`. Standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.paths import RunPaths
from nexa_hpc.core.reading import list_names, read_json
from nexa_hpc.core.records import now

_NUMBERED = re.compile(r"([1-9][0-9]*)\.json")


@dataclass(frozen=True)
class Part:
    """What a round is about that is not about the whole run."""

    chosen: frozenset[str]
    """The instances that may be tried again; of all others a failure stands as it was."""
    left_out: frozenset[str]
    """The instances that are not to be started in this round."""
    why: str
    """Why those are left out, in words."""


def numbered(folder: Path) -> list[int]:
    """Return the numbers of the files `<n>.json` in `folder`, in order; others are not ours."""
    matches = map(_NUMBERED.fullmatch, list_names(folder))
    return sorted(int(match[1]) for match in matches if match is not None)


def present_round(place: RunPaths) -> int:
    """Return the number of the newest round, or 0 where there is none."""
    return max(numbered(place.rounds), default=0)


def read_round(place: RunPaths, number: int) -> Mapping[str, Any]:
    """Return the content of round `number`; of round 0, as if nothing had gone before."""
    if not number:
        return {"attempts_before": {}}
    content: Mapping[str, Any] = read_json(_round_file(place, number))
    return content


def write_round(
    place: RunPaths, number: int, attempts_before: Mapping[str, int], part: Part | None = None
) -> bool:
    """Record round `number`; False when somebody else has begun it."""
    content: dict[str, Any] = {"begun_at": now(), "attempts_before": attempts_before}
    if part is not None:
        content["left_out"] = {"why": part.why, "instances": sorted(part.left_out)}
    return atomic.create_once(_round_file(place, number), content)


def left_out(place: RunPaths, number: int) -> dict[str, str]:
    """Return name -> why, for the instances that round `number` leaves out."""
    told = read_round(place, number).get("left_out")
    return dict.fromkeys(told["instances"], told["why"]) if told else {}


def _round_file(place: RunPaths, number: int) -> Path:
    return place.rounds / f"{number}.json"
