"""Batches: what one sbatch call hands over, recorded before the call and answered after it.

    batches/<token>.json          the intent: job name, cluster, and the attempts of each element
    batches/<token>.answer.json   the id of its job; or why there is none, and never will be
    batches/<token>.began.json    of an advance job: it has begun, and waits no more
    batches/advance.<n>.json      which batch is the run's n-th advance job

Each is a file created once: of a job that starts and a process that gives its batch up, one is
first, and the other heeds it. The token is in the job's name, so that a batch whose answer was lost
is found again by asking Slurm. The intent is recorded before anything is claimed for it; the claims
of its attempts name run and token: an attempt's job is found through its batch. Called by
`handover`, the element and `schedulers.slurm`. Standard library alone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core import atomic
from nexa_hpc.core.paths import ProjectPaths, RunPaths
from nexa_hpc.core.reading import list_names, read_json, read_json_or_none
from nexa_hpc.core.records import now

STEPS, ADVANCE = "steps", "advance"
_NAMES_PER_FILE = 10_000
"""Below the 65,000 names that ext4 and Lustre give one file."""
_INTENT = re.compile(r"([0-9a-f]{16})\.json")
_ADVANCE = re.compile(r"advance\.([1-9][0-9]*)\.json")


@dataclass(frozen=True)
class Member:
    """One attempt that an element makes."""

    step: str
    key: str
    attempt: int


@dataclass(frozen=True)
class Batch:
    """What one sbatch call was to hand over."""

    token: str
    name: str
    """The job's name; ends in the token."""
    cluster: str
    elements: tuple[tuple[Member, ...], ...]
    """For each element the attempts that it makes, one after the other; none for `advance`."""
    kind: str = STEPS
    at: str = ""
    """When it was recorded, for people to read."""
    driver: Mapping[str, Any] | None = None
    """The process that called sbatch, as `drivers.Driver.to_json` has it."""
    request: Mapping[str, Any] | None = None
    """What was asked of Slurm."""

    @property
    def width(self) -> int:
        """How many elements the job has; with one it is no array."""
        return max(1, len(self.elements))

    @cached_property
    def index_of(self) -> Mapping[tuple[str, int], int]:
        """Key and attempt -> the index of the element."""
        return {
            (member.key, member.attempt): index
            for index, element in enumerate(self.elements)
            for member in element
        }

    def job_text(self, job: str, index: int) -> str:
        """Return how Slurm names the element `index` of the batch's job: `123_4`, or `123`."""
        return f"{job}_{index}" if self.width > 1 else job


def new_token() -> str:
    """Return a token that no other batch has."""
    return os.urandom(8).hex()


def record_intent(place: RunPaths, batch: Batch) -> None:
    """Record `batch`, durably, before sbatch is called."""
    content = {
        "at": now(),
        "name": batch.name,
        "cluster": batch.cluster,
        "kind": batch.kind,
        "driver": batch.driver,
        "request": batch.request,
        "elements": [[[m.step, m.key, m.attempt] for m in element] for element in batch.elements],
    }
    atomic.create_once(place.batches / f"{batch.token}.json", content)


def record_job(place: RunPaths, token: str, job: str) -> bool:
    """Record the id that Slurm gave to a batch; False when an answer was recorded before."""
    content = {"at": now(), "job": job, "answered_at": time.time()}
    return atomic.create_once(_answer_file(place, token), content)


def record_void(place: RunPaths, token: str, why: str) -> bool:
    """Record that a batch never becomes a job; False when an answer was recorded before."""
    return atomic.create_once(_answer_file(place, token), {"at": now(), "void": why})


def is_answered_by(place: RunPaths, token: str, job: str) -> bool:
    """Return whether `job`, which has started, does the work of a batch.

    It does where no answer was recorded: its submission was interrupted. Another job of the same
    batch comes of a submission that timed out and took effect after it was looked for.
    """
    answer = read_json_or_none(_answer_file(place, token))
    if answer is None:
        if record_job(place, token, job):
            return True
        answer = read_json(_answer_file(place, token))
    return bool(answer.get("job") == job)


def record_beginning(place: RunPaths, token: str) -> bool:
    """Record that an advance job has begun; False when it was recorded before."""
    return atomic.create_once(_beginning_file(place, token), {"at": now()})


def has_begun(place: RunPaths, token: str) -> bool:
    """Return whether it was recorded that an advance job has begun."""
    return read_json_or_none(_beginning_file(place, token)) is not None


def read_batch(place: RunPaths, token: str) -> Batch:
    """Return a recorded batch; raises StateError or OSError when it cannot be read."""
    content = read_json(place.batches / f"{token}.json")
    elements = tuple(tuple(Member(*m) for m in element) for element in content["elements"])
    names = ("name", "cluster", "kind", "at", "driver", "request")
    return Batch(token, elements=elements, **{name: content[name] for name in names})


class Answer(NamedTuple):
    """What Slurm made of a batch."""

    job: str
    answered_at: float
    """Seconds since the epoch, on the host that submitted."""


def answer_to(place: RunPaths, token: str) -> Answer | None:
    """Return the job that Slurm made of a batch, or None where no answer was recorded."""
    answer = read_json_or_none(_answer_file(place, token))
    if answer is None or "job" not in answer:
        return None
    return Answer(answer["job"], answer["answered_at"])


def is_void(place: RunPaths, token: str) -> bool:
    """Return whether it was recorded that a batch never becomes a job."""
    answer = read_json_or_none(_answer_file(place, token))
    return answer is not None and "void" in answer


def tokens(place: RunPaths) -> list[str]:
    """Return the tokens of all batches of a run."""
    matches = map(_INTENT.fullmatch, list_names(place.batches))
    return [match[1] for match in matches if match is not None]


def unanswered(place: RunPaths) -> list[Batch]:
    """Return the batches of a run of which neither a job nor its lack was recorded."""
    names = set(list_names(place.batches))
    return [
        read_batch(place, token)
        for token in tokens(place)
        if _answer_file(place, token).name not in names
    ]


def newest_advance(place: RunPaths) -> tuple[int, str | None]:
    """Return number and token of a run's newest advance job; 0 and None where there is none."""
    numbers = [int(m[1]) for m in map(_ADVANCE.fullmatch, list_names(place.batches)) if m]
    if not numbers:
        return 0, None
    newest = max(numbers)
    return newest, read_json(_advance_file(place, newest))["token"]


def claim_advance(place: RunPaths, number: int, token: str) -> bool:
    """Make a batch the run's advance job `number`; False when another one is."""
    return atomic.create_once(_advance_file(place, number), {"at": now(), "token": token})


def place_of(paths: ProjectPaths, claim: Mapping[str, Any]) -> RunPaths:
    """Return the folder of the run that a claim names."""
    return paths.pipeline(claim["pipeline"]).run(claim["run"])


def claim_all(
    paths: ProjectPaths, place: RunPaths, claim: Mapping[str, Any], members: Sequence[Member]
) -> set[Member]:
    """Claim the attempts `members`, all in one text, and return those that somebody else has.

    The claims are names of one file: a thousand of them cost a thousand links and one fsync.
    """
    content = atomic.encode_json({"claimed_at": now(), **claim})
    atomic.make_folder(place.batches)
    taken: set[Member] = set()
    for first in range(0, len(members), _NAMES_PER_FILE):
        original = atomic.temporary_beside(place.batches / "claim.json")
        atomic.write_new_file(original, content)
        try:
            some = members[first : first + _NAMES_PER_FILE]
            taken |= {m for m in some if not _claim(paths.records(m.key), m.attempt, original)}
        finally:
            original.unlink(missing_ok=True)
    return taken


def _claim(folder: Path, attempt: int, original: Path) -> bool:
    link = folder / f"{attempt}.claim.json"
    try:
        atomic.link_file(original, link)
    except FileExistsError:
        # A link whose reply was lost reports EEXIST after it succeeded (link(2), NFS).
        return os.path.samefile(original, link)
    return True


def members_of(elements: Sequence[Sequence[Member]]) -> list[Member]:
    """Return all attempts of `elements`."""
    return [member for element in elements for member in element]


def _answer_file(place: RunPaths, token: str) -> Path:
    return place.batches / f"{token}.answer.json"


def _beginning_file(place: RunPaths, token: str) -> Path:
    return place.batches / f"{token}.began.json"


def _advance_file(place: RunPaths, number: int) -> Path:
    return place.batches / f"advance.{number}.json"
