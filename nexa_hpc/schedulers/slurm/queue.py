"""What Slurm says of a user's jobs: one squeue for all, one sacct for those it has forgotten.

`Queue.look` answers from a snapshot that all processes of the user share, so that together they ask
no more often than the site allows; squeue with `-t all` shows ended jobs for MinJobAge as well, so
that most is known without accounting. Called by `watching` and `submission`. Standard library
alone.
"""

from __future__ import annotations

import atexit
import json
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.paths import user_cache
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import SchedulerError, StateError
from nexa_hpc.schedulers.slurm.commands import run_slurm

_SQUEUE = ("squeue", "--me", "--states=all", "--noheader", "--format=%F|%K|%T|%N|%j|%e|%r")
_SACCT = ("sacct", "--allocations", "--noheader", "--parsable2")
_SACCT_FORMAT = "--format=JobID,State,NodeList,JobName,End,Reason,Start"
_TIME = "%Y-%m-%dT%H:%M:%S"
_IDS_PER_CALL = 500
_FORGOTTEN_S = 7 * 86_400
_QUIET_S = 15.0
"""After a question that was not answered, none is asked for so long: each may take ten seconds."""


@dataclass(frozen=True)
class Word:
    """What Slurm says of one job or element."""

    state: str
    """Slurm's own word, such as RUNNING; `CANCELLED by 1000` comes from accounting alone."""
    reason: str = ""
    """Why it waits, or ended."""
    nodes: str = ""
    name: str = ""
    ended: str = ""
    """When it ended, as Slurm writes it: the local time of the host that asked."""
    accounted: bool = False
    """Whether accounting alone says so: of what lives it may not have heard the end."""

    def ended_ago_s(self) -> float:
        """Return how long ago it ended, in seconds; 0 where that cannot be told."""
        try:
            return max(0.0, time.time() - time.mktime(time.strptime(self.ended, _TIME)))
        except ValueError:
            return 0.0


@dataclass
class _Job:
    """One job id: a plain job, or an array's elements and those not split off yet."""

    elements: dict[int, Word] = field(default_factory=dict)
    rest: tuple[frozenset[int] | None, Word] | None = None
    """The word for the elements in the set; for all that are not listed where the set is None."""

    def word(self, index: int | None) -> Word | None:
        if index is not None and index in self.elements:
            return self.elements[index]
        if self.rest is None:
            return None
        indices, word = self.rest
        return word if index is None or indices is None or index in indices else None


class Snapshot:
    """The answers of one moment."""

    def __init__(
        self,
        asked_at: float,
        queue: str,
        accounting: str = "",
        absent: Mapping[str, float] | None = None,
    ) -> None:
        self.asked_at = asked_at
        """Seconds since the epoch, on the host that asked, before it asked."""
        self.queue = queue
        self.accounting = accounting
        self.absent = dict(absent or {})
        """Elements that nothing is said of -> `asked_at` of the first answer without them."""
        self._jobs: dict[str, _Job] = defaultdict(_Job)
        self._by_name: dict[str, str] = {}
        for job, index, word in (*_accounted(accounting), *_queued(queue)):
            _enter(self._jobs[job], index, word)
            self._by_name.setdefault(word.name, job)

    def word(self, job: str, index: int | None, name: str) -> Word | None:
        """Return what is said of an element; None where nothing is, or an id was used again."""
        found = self._jobs[job].word(index) if job in self._jobs else None
        return found if found is not None and found.name == name else None

    def job_named(self, name: str) -> str | None:
        """Return the id of the job with that name, or None."""
        return self._by_name.get(name)

    def lists(self, element: str) -> bool:
        """Return whether something is said of an element, written as people do."""
        job, _, index = element.partition("_")
        return job in self._jobs and self._jobs[job].word(int(index) if index else None) is not None


class Queue:
    """Asks Slurm for one user, and shares the answers through a file in the user's cache."""

    def __init__(self, cluster: str, *, least_interval_s: float, accounting: bool = True) -> None:
        self._file = user_cache() / f"queue-{cluster}.json"
        self._least_interval_s = least_interval_s
        self.has_accounting = accounting
        """Whether the site keeps accounts, so that a job that squeue forgets is remembered."""
        self.trouble: str | None = None
        """Why slurmctld did not answer when it was last asked."""
        self.accounting_trouble: str | None = None
        """Why accounting did not, since slurmctld last did."""
        self._failed_at = 0.0
        self._recalled: set[str] = set()
        self._has_shared_absence = False
        """Whether what is absent was shared once, and will be once more at the end."""
        self._known = Snapshot(0.0, "")

    def look(self, *, newer_than: float = 0.0) -> Snapshot:
        """Return what Slurm says; asks when the shared answer is older than the site's interval.

        `newer_than`: the answer must be to a question asked after that time, whatever the interval.
        Where Slurm does not answer, what is known stays, and `trouble` tells why.
        """
        if self._serves(newer_than):
            return self._known
        shared = self._read()
        if shared is not None and shared.asked_at > self._known.asked_at:
            self._known = shared
            self._recalled.clear()
        if self._serves(newer_than):
            return self._known
        is_quiet = 0 <= time.time() - self._failed_at < _QUIET_S
        if not is_quiet or self._failed_at <= newer_than:
            self._ask()
        return self._known

    def _serves(self, newer_than: float) -> bool:
        """Return whether what is known is recent enough."""
        age_s = time.time() - self._known.asked_at
        return 0 <= age_s < self._least_interval_s and self._known.asked_at > newer_than

    def recall(self, jobs: Iterable[str]) -> Snapshot:
        """Return what accounting says of jobs that squeue has forgotten, with all the rest.

        Asks for each job once a snapshot.
        """
        wanted = sorted(set(jobs) - self._recalled)
        if not wanted or not self.has_accounting:
            return self._known
        self._recalled.update(wanted)
        known = self._known
        try:
            told = "".join(map(self._recall, _slices(wanted)))
        except SchedulerError as error:
            self.accounting_trouble = str(error)
            return known
        self._known = Snapshot(known.asked_at, known.queue, known.accounting + told, known.absent)
        self._write()
        return self._known

    def absent_since(self, element: str) -> float:
        """Note that nothing is said of an element; return `asked_at` of the first such answer."""
        known = self._known
        if element not in known.absent:
            known.absent[element] = known.asked_at
            if not self._has_shared_absence:
                # Now for the first, and when this process ends for the thousand that may follow.
                self._has_shared_absence = True
                self._write()
                atexit.register(self._write)
        return known.absent[element]

    def _recall(self, jobs: list[str]) -> str:
        return run_slurm([*_SACCT, _SACCT_FORMAT, f"--jobs={','.join(jobs)}"], tries=1)

    def _ask(self) -> None:
        asked_at = time.time()
        self._recalled.clear()
        try:
            answer = run_slurm(_SQUEUE, tries=1)
        except SchedulerError as error:
            self.trouble = str(error)
            self._failed_at = time.time()
            return
        self.trouble = self.accounting_trouble = None
        known = Snapshot(asked_at, answer)
        known.absent = {
            element: since
            for element, since in self._known.absent.items()
            if not known.lists(element) and asked_at - since < _FORGOTTEN_S
        }
        self._known = known
        self._write()

    def _read(self) -> Snapshot | None:
        try:
            found = read_json_or_none(self._file)
            return None if found is None else Snapshot(**found)
        except (StateError, OSError, TypeError):
            return None  # It only saves calls.

    def _write(self) -> None:
        known = self._known
        content = {
            "asked_at": known.asked_at,
            "queue": known.queue,
            "accounting": known.accounting,
            "absent": known.absent,
        }
        try:
            atomic.make_folder(self._file.parent, PRIVATE)
            atomic.write_file(self._file, json.dumps(content))
        except OSError:
            return  # A full home: the next process asks for itself.


def _enter(job: _Job, indices: frozenset[int] | int | None, word: Word) -> None:
    if isinstance(indices, int):
        job.elements[indices] = word
    else:
        job.rest = (indices, word)


def _queued(text: str) -> Iterator[tuple[str, frozenset[int] | int | None, Word]]:
    for line in text.splitlines():
        # Names of ours hold no bar; a reason may.
        job, index, state, nodes, name, ended, reason = (line.split("|", 6) + [""] * 6)[:7]
        yield job, _indices(index), Word(state, reason, nodes, name, ended)


def _accounted(text: str) -> Iterator[tuple[str, frozenset[int] | int | None, Word]]:
    for line in text.splitlines():
        names, state, nodes, name, ended, reason, start = (line.split("|") + [""] * 6)[:7]
        job, _, index = names.partition("_")
        # Of a job that never began, it has no start, or its end for one.
        began = start not in ("None", "Unknown", "", ended)
        # What it shows is the last reason to wait: of a job that began, or that a person cancelled
        # ("CANCELLED by 1000"), it says nothing. squeue has a word of its own for the rest.
        by_slurm = state == "CANCELLED" and not began and reason == "Dependency"
        reason = "DependencyNeverSatisfied" if by_slurm else ""
        word = Word(state, reason, nodes, name, ended, accounted=True)
        yield job, _indices(index.strip("[]") or "N/A"), word


def _indices(text: str) -> frozenset[int] | int | None:
    """Return what squeue's %K says: an index, a set of them (`3-9,12%2`), or None for no array."""
    if text.isdigit():
        return int(text)
    if text in ("N/A", ""):
        return None
    found: set[int] = set()
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last, _, step = last.partition(":")
        if not first.isdigit():
            return None
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(found)


def _slices(jobs: list[str]) -> list[list[str]]:
    return [jobs[n : n + _IDS_PER_CALL] for n in range(0, len(jobs), _IDS_PER_CALL)]


def live_count(snapshot: Snapshot, ended: Container[str]) -> int:
    """Return how many elements of the user wait or run, by Slurm's words."""
    return sum(
        1
        for line in snapshot.queue.splitlines()
        for _ in range(_width(line))
        if line.split("|")[2] not in ended
    )


def _width(line: str) -> int:
    indices = _indices(line.split("|")[1])
    return len(indices) if isinstance(indices, frozenset) else 1
