"""Handing over to Slurm: what of a run can be submitted now is claimed, recorded and submitted.

Planning is on the graph of instances: all that waits only for what is submitted, too, goes in the
same call of `hand_over`, with dependencies among the jobs. Those are an optimisation; each element
looks for itself. Called by `advance`, which tells what is done, in flight or failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nexa_hpc.candidates import REFUSED, Candidate
from nexa_hpc.core import batches, records
from nexa_hpc.core.batches import Batch, Member, members_of
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.runs import Run
from nexa_hpc.core.snapshots import take_snapshot
from nexa_hpc.core.states import State
from nexa_hpc.core.trying import Changes
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm import requests, shapes, words
from nexa_hpc.schedulers.slurm.queue import Queue, live_count
from nexa_hpc.schedulers.slurm.shapes import Sheet
from nexa_hpc.schedulers.slurm.submission import QueueFullError, Submission
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.schedulers.slurm.waits import dependency, steps_of, waits_for

_ELEMENT = "nexa_hpc.element"
"""The module that a job runs in each element."""
_NAME_CHARACTERS = 100


@dataclass
class HandedOver:
    """What one call of `hand_over` did."""

    jobs: dict[str, str] = field(default_factory=dict)
    """Step -> its job or element, as Slurm names it."""
    sheets: list[tuple[str, Batch]] = field(default_factory=list)
    """Job id and batch of each sbatch call."""
    put_off: list[str] = field(default_factory=list)
    """Steps that there is no room for now."""
    trouble: list[str] = field(default_factory=list)
    """Why something could not be submitted, in words."""
    is_full: bool = False
    """Whether there is room for no more."""


@dataclass
class _Pass:
    """How far one call of `hand_over` is."""

    candidates: dict[str, Candidate]
    in_flight: Mapping[str, str | None]
    ready: list[tuple[str, Batch] | None] = field(default_factory=list)
    done: HandedOver = field(default_factory=HandedOver)
    room: int | None = None
    """For how many elements there is room, where a limit is known."""
    is_last: bool = False
    """Whether the present sheet is the last one."""

    def room_for(self, wanted: int) -> int:
        """Return for how many of the `wanted` elements there is room, as far as that is known."""
        return wanted if self.room is None else min(wanted, self.room)

    def take(self, width: int) -> None:
        """Note that `width` elements were submitted."""
        if self.room is not None:
            self.room -= width


class HandOver:
    """Hands over the candidates of one run."""

    def __init__(
        self,
        run: Run,
        terms: Terms,
        queue: Queue,
        driver: Driver,
        after_first: Callable[[str], None] = lambda job: None,
    ) -> None:
        """`after_first` is told of the first job of each hand-over before others follow: they may
        leave no room for what is to look after them.
        """
        self._run = run
        self._terms = terms
        self._queue = queue
        self._driver = driver
        self._after_first = after_first
        self._submission = Submission(run.place, queue, python=terms.cluster["python"])

    def hand_over(
        self,
        candidates: Mapping[str, Candidate],
        in_flight: Mapping[str, str | None],
    ) -> HandedOver:
        """Claim and submit `candidates`, by step in graph order, and return what was done.

        `in_flight` holds the steps whose jobs live, each with its job where that is known; parents
        that are in neither are done.
        """
        # Of all Slurm steps, also of those whose turn comes days later.
        take_snapshot(
            self._run, [i for i in self._run.instances.values() if i.scheduler == "slurm"]
        )
        state = _Pass(dict(candidates), in_flight, room=self._room_now())
        sheets = self.sheets(candidates, in_flight)
        for number, sheet in enumerate(sheets, 1):
            state.is_last = number == len(sheets)
            if self._may(sheet, state):
                state.ready.append(self._in_pieces(sheet, state))
            else:
                state.ready.append(None)
                state.done.put_off += steps_of(sheet)
        if self._queue.trouble is not None and not state.done.trouble:
            state.done.trouble.append(self._queue.trouble)
        return state.done

    def _may(self, sheet: Sheet, state: _Pass) -> bool:
        """Return whether there is room for more, and all jobs that `sheet` waits for are known.

        Slurm takes a dependency on a job that it does not know for one that is fulfilled.
        """
        is_known = all(state.ready[n] is not None for n in waits_for(sheet))
        is_known = is_known and all(state.in_flight[step] is not None for step in sheet.foreign)
        has_room = sheet.at_once != 0 and not state.done.is_full
        # While Slurm does not answer, each call would hang.
        answers = self._queue.trouble is None
        return is_known and has_room and answers and not self._run.cancelled

    def _in_pieces(self, sheet: Sheet, state: _Pass) -> tuple[str, Batch] | None:
        """Submit as much of `sheet` as there is room for; return its job where that is all of it.

        What was refused begins again with one element, and doubles: the limit is not known.
        """
        first, count, pieces = 0, len(sheet.units), 0
        submitted: tuple[str, Batch] | None = None
        width, is_growing = _width(sheet, state)
        while width and first < count:
            piece = replace(sheet, units=sheet.units[first : first + width])
            # Several pieces of a throttled sheet would each be allowed as many at a time.
            behind = submitted[0] if submitted is not None and sheet.at_once else None
            try:
                submitted = self._submit(piece, state, behind)
            except QueueFullError:
                state.done.is_full = is_growing or width == 1 or bool(sheet.one_to_one)
                if state.done.is_full:
                    break
                width, is_growing = 1, True
                continue
            if submitted is None:
                break
            first, pieces = first + width, pieces + 1
            state.take(width)
            if len(state.done.sheets) == 1 and not (state.is_last and first == count):
                self._after_first(submitted[0])
            width = min(2 * width, count - first, state.room_for(count))
        state.done.is_full = state.done.is_full or state.room == 0
        state.done.put_off += steps_of(replace(sheet, units=sheet.units[first:]))
        return submitted if pieces == 1 and first == count else None

    def sheets(
        self, candidates: Mapping[str, Candidate], in_flight: Mapping[str, str | None]
    ) -> list[Sheet]:
        """Return the sbatch calls that `candidates` come to."""
        jobs = [
            self._terms.job(
                candidate.instance,
                [p for p in candidate.instance.parents if p in candidates or p in in_flight],
                candidate.changes,
                self._run.shared_elements.get(candidate.instance.step),
            )
            for candidate in candidates.values()
        ]
        return shapes.shape(jobs, self._terms.limits(), self._busy(in_flight))

    def _busy(self, in_flight: Mapping[str, str | None]) -> Counter[Hashable]:
        """Return for each throttle how many elements of this run may be running under it."""
        jobs = {}
        for step, job in in_flight.items():
            instance = self._run.instances[step]
            jobs[job or step] = self._terms.job(instance, (), Changes()).throttle
        found = Counter(jobs.values())
        found[shapes.WHOLE_RUN] = len(jobs)
        return found

    def texts(self, candidates: Mapping[str, Candidate]) -> Iterator[str]:
        """Yield the sbatch scripts that `candidates` come to, with dependencies by name."""
        state = _Pass(dict(candidates), {})
        for number, sheet in enumerate(self.sheets(candidates, {}), 1):
            batch = self._batch("0" * 16, sheet, candidates)
            yield self._submission.text(batch, self._parameters(sheet, state), _ELEMENT)
            state.ready.append((f"<job {number}>", batch))

    def _room_now(self) -> int | None:
        """Return for how many elements there is room; None where no limit is known."""
        if self._terms.cluster["max_submit"] is None:
            return None
        snapshot = self._queue.look()
        live = live_count(snapshot, words.ENDS)
        place = self._run.place
        # What was submitted since Slurm was asked is not in its answer.
        for token in batches.tokens(place):
            answer = batches.answer_to(place, token)
            if answer is not None and answer.answered_at > snapshot.asked_at:
                live += batches.read_batch(place, token).width
        return self._terms.room(live)

    def _submit(self, sheet: Sheet, state: _Pass, behind: str | None) -> tuple[str, Batch] | None:
        """Claim and submit `sheet` and return its job; None where that did not come about.

        It waits for the end of the job `behind` as well. Raises QueueFullError where Slurm has no
        room.
        """
        token = batches.new_token()
        batch = self._batch(token, sheet, state.candidates)
        members = members_of(batch.elements)
        # Before the claims: whoever meets a claim finds what it was made for.
        batches.record_intent(self._run.place, batch)
        taken = batches.claim_all(self._run.paths, self._run.place, self._claim(token), members)
        if taken:
            # Elements would no longer match those that they follow: all of it is given back.
            batches.record_void(self._run.place, token, "another process was first")
            self._give_back(batch, taken, "another process was first")
            return None
        try:
            parameters = self._parameters(sheet, state, behind)
            job = self._submission.submit(batch, parameters, _ELEMENT)
        except QueueFullError:
            self._give_back(batch, set(), REFUSED)
            for member in members:
                number = member.attempt + 1
                candidate = state.candidates[member.step]
                state.candidates[member.step] = replace(candidate, number=number)
            raise
        except SchedulerError as error:
            self._give_back(batch, set(), "given back: it was not submitted")
            state.done.trouble.append(str(error))
            return None
        state.done.sheets.append((job, batch))
        for index, element in enumerate(batch.elements):
            state.done.jobs.update({m.step: batch.job_text(job, index) for m in element})
        return job, batch

    def _batch(self, token: str, sheet: Sheet, candidates: Mapping[str, Candidate]) -> Batch:
        elements = tuple(
            tuple(
                Member(job.step, candidates[job.step].instance.key, candidates[job.step].number)
                for unit in units
                for job in unit
            )
            for units in sheet.units
        )
        return Batch(
            token=token,
            name=job_name(self._run, sheet.first.step, len(elements), token),
            cluster=self._terms.name,
            elements=elements,
            driver=self._driver.to_json(),
            request={"time_min": sheet.time_min, "width": len(elements)},
        )

    def _claim(self, token: str) -> dict[str, Any]:
        return {
            "run": self._run.id,
            "pipeline": self._run.pipeline,
            "user": self._run.request["user"],
            "scheduler": "slurm",
            "cluster": self._terms.name,
            "driver": self._driver.to_json(),
            "batch": token,
        }

    def _give_back(self, batch: Batch, taken: set[Member], why: str) -> None:
        for member in members_of(batch.elements):
            if member not in taken:
                folder = self._run.paths.records(member.key)
                records.end(folder, member.attempt, State.PENDING, message=why)

    def _parameters(self, sheet: Sheet, state: _Pass, behind: str | None = None) -> dict[str, Any]:
        first = state.candidates[sheet.first.step]
        found = requests.parameters(
            self._terms.resources(first.instance.resources),
            time_min=sheet.time_min,
            requeue=self._terms.cluster["requeue"],
            changes=first.changes,
        )
        waits = [dependency(sheet, state.ready, state.in_flight)]
        if behind is not None:
            waits.append(f"afterany:{behind}")
        if any(waits):
            found["dependency"] = ",".join(filter(None, waits))
        found["array_parallelism"] = sheet.at_once or len(sheet.units)
        return found


def _width(sheet: Sheet, state: _Pass) -> tuple[int, bool]:
    """Return how many elements of `sheet` to try first, and whether to go on from there."""
    count = len(sheet.units)
    if state.room_for(count) < count:
        return 0 if sheet.one_to_one else state.room_for(count), False
    was_refused = any(state.candidates[step].was_refused for step in steps_of(sheet))
    return (1, True) if was_refused and not sheet.one_to_one else (count, False)


def job_name(run: Run, step: str, width: int, token: str) -> str:
    """Return the name of a job: for people what it is, and for us its token at the end."""
    what = step if width == 1 else f"{step}+{width - 1}"
    return f"{what[:_NAME_CHARACTERS]}.{run.id}.{token}"
