"""One element: makes the attempts that its batch lists, and exits by how they ended.

Each attempt starts only when the results that it needs are there: Slurm's dependencies are an
optimisation, this check is the truth. Exit code 0 when all have their results, 75 when some could
not start, 1 when one failed. Jobs call `run_element`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from nexa_hpc.core import batches, records
from nexa_hpc.core.atomic import sync_folder
from nexa_hpc.core.batches import Batch, Member
from nexa_hpc.core.endpoints import IDLE, is_kept
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.leftovers import attempt_tag, end_leftovers
from nexa_hpc.core.links import link_outputs
from nexa_hpc.core.ranks import RANKS_VARIABLE, Ranks
from nexa_hpc.core.records import Attempt, read_attempts
from nexa_hpc.core.runs import Run, is_asked, newest_run, open_run
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.standings import as_stopped, fold, is_unwanted
from nexa_hpc.core.states import Reason, State
from nexa_hpc.core.truths import Processes
from nexa_hpc.element import stopping
from nexa_hpc.element.child import TERMINATION, TIME_LIMIT, Signals, run_forked, run_started
from nexa_hpc.element.serving import held, stay
from nexa_hpc.element.stopping import Ending
from nexa_hpc.errors import ArtifactError
from nexa_hpc.schedulers import launching

BLOCKED = 75
"""EX_TEMPFAIL: something above has no result."""
GRACE_S = 30.0
"""How long a result that Slurm says is there may take to become visible on this node."""
_LOOK_EVERY_S = 1.0


def run_element(reference: str) -> None:
    """Make the attempts of this element of the batch `<run folder>#<token>`; exits."""
    folder, _, token = reference.rpartition("#")
    index = os.environ.get("SLURM_ARRAY_TASK_ID") or 0
    require_own(Path(folder), "the run in")
    run = open_run(Path(folder))
    element = Element(run, batches.read_batch(run.place, token), int(index))
    signals = Signals()
    with signals.installed():
        code = element.run_all(signals)
    sys.exit(code)


def job_id() -> str:
    """Return the id of the job or element that this process runs in, as people write it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return os.environ.get("SLURM_JOB_ID", "")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"


def last_line(log: Path) -> str:
    """Return the last line of a short log; empty when there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def restarts() -> int:
    """Return how often Slurm has started this job anew."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


class Element:
    """What one element is to do, and how far it is."""

    def __init__(self, run: Run, batch: Batch, index: int) -> None:
        self._run = run
        self._batch = batch
        self._index = index
        self._members = batch.elements[index]
        self._watch = Processes(run.paths.state)
        self._before = run.attempts_before()
        self._ranks = Ranks.from_environment()

    def run_all(self, signals: Signals) -> int:
        """Make the attempts, and return the exit code."""
        job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")
        if not batches.is_answered_by(self._run.place, self._batch.token, job):
            print("another job does the work of this one, or it was given up before it started")
            return 0
        server = self._server()
        with held(self._run, server) if server is not None else nullcontext():
            codes = self._codes(signals)
            if server is not None and self._is_to_stay(server):
                codes.add(stay(self._run, server, signals))
        return next((code for code in (1, BLOCKED, *codes) if code in codes), 0)

    def _codes(self, signals: Signals) -> set[int]:
        """Make the attempts, and return the exit code of each."""
        codes = set()
        for member in self._members:
            code = self._run_member(member, signals)
            codes.add(code)
            if signals.got and code != 0:
                break
        return codes

    def _server(self) -> Instance | None:
        """Return the member that serves, if one does; all others are there to read it."""
        instances = (self._run.instances[member.step] for member in self._members)
        return next((i for i in instances if i.serves), None) if not self._ranks.rank else None

    def _is_to_stay(self, server: Instance) -> bool:
        """Return whether the element stays for a server that it has started, now that all that
        reads it here has ended; what is tried again reads it from another job.
        """
        return is_kept(server) and any(
            attempt.state is State.COMPLETED and attempt.claim.get("batch") == self._batch.token
            for attempt in read_attempts(self._run.paths.records(server.key))
        )

    def _run_member(self, member: Member, signals: Signals) -> int:
        instance = self._run.instances[member.step]
        if TERMINATION in signals.got or (TIME_LIMIT in signals.got and instance.resumable):
            # It would be stopped before it could save anything.
            return BLOCKED
        if self._ranks.rank:
            return self._assist(instance, member, signals)
        number = self._own_attempt(member)
        if number is None:
            return self._answer(instance)
        if self._run.cancelled:
            self._end(instance, number, Ending(State.CANCELLED, None, "the run was cancelled"))
            return 1
        why = self._run.stopped.get(member.step)
        if why is not None:
            self._end(instance, number, Ending(State.CANCELLED, None, why))
            print(f"step '{member.step}' is not started: {why}")
            return 1
        if instance.serves and is_unwanted(self._run, instance, self._before, self._watch):
            self._end(instance, number, Ending(State.PENDING, None, f"given back: {IDLE}"))
            return 0
        missing = self._missing(instance)
        if missing is not None:
            self._end(instance, number, Ending(State.PENDING, None, f"given back: {missing}"))
            print(f"step '{member.step}' cannot start: {missing}")
            return BLOCKED
        return self._make(instance, number, signals)

    def _own_attempt(self, member: Member) -> int | None:
        """Return the attempt to make, started by this incarnation; None when it is not ours."""
        folder = self._run.paths.records(member.key)
        attempts = read_attempts(folder)
        number = member.attempt
        newest = attempts[-1] if attempts else None
        if newest is not None:
            if newest.claim and newest.claim.get("batch") != self._batch.token:
                return None
            number = max(number, newest.number)
        if newest is not None and newest.number == number and newest.start is not None:
            return self._successor(member, newest)
        if newest is not None and newest.end is not None:
            return None
        return number if self._begin(member, number) else None

    def _successor(self, member: Member, earlier: Attempt) -> int | None:
        """Close what an earlier incarnation of this job began, and return our own attempt."""
        folder = self._run.paths.records(member.key)
        if not earlier.is_open and not self._is_to_serve_again(member, earlier):
            return None
        message = f"requeued by Slurm, as attempt {earlier.number + 1}"
        records.end(
            folder,
            earlier.number,
            State.PENDING,
            reason=Reason.NODE_FAIL,
            message=message,
            requeued=True,
        )
        # After that: where an earlier incarnation lives on, it would tell of its child as killed.
        end_leftovers(attempt_tag(folder, earlier.number))
        number = earlier.number + 1
        claim = {**earlier.claim, "element": self._index}
        if not records.claim(folder, number, claim):
            return None
        return number if self._begin(member, number) else None

    def _is_to_serve_again(self, member: Member, earlier: Attempt) -> bool:
        """Return whether a server that had come up in a job, which was requeued, is to again."""
        instance = self._run.instances[member.step]
        began = (earlier.start or {}).get("restarts")
        if not instance.serves or not earlier.state.succeeded or began == restarts():
            return False
        newest = (read_attempts(self._run.paths.records(m.key))[-1:] for m in self._members)
        return is_kept(instance) or any(a.is_open for attempts in newest for a in attempts)

    def _begin(self, member: Member, number: int) -> bool:
        log = self._run.place.log(member.step, number)
        content = {
            "host": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
            "pid": os.getpid(),
            "job": job_id(),
            "restarts": restarts(),
            "log": os.path.relpath(log, self._run.paths.state),
        }
        return records.start(self._run.paths.records(member.key), number, content)

    def _answer(self, instance: Instance) -> int:
        """Return the exit code for a member that is not for this element to make."""
        truth = fold(self._run, instance, self._before, self._watch)
        return 0 if truth.standing.state.succeeded else BLOCKED

    def _missing(self, instance: Instance) -> str | None:
        """Return which step above has not succeeded, in words; None when all have."""
        waited_since = time.monotonic()
        while True:
            missing = self._first_missing(instance)
            if missing is None:
                return None
            words, is_final = missing
            if is_final or time.monotonic() - waited_since >= GRACE_S:
                return words
            time.sleep(_LOOK_EVERY_S)

    def _first_missing(self, instance: Instance) -> tuple[str, bool] | None:
        stopped = self._run.stopped
        for parent in instance.parents:
            above = self._run.instances[parent]
            standing = fold(self._run, above, self._before, self._watch).standing
            standing = as_stopped(standing, stopped.get(parent))
            if standing.state in (State.FAILED, State.CANCELLED):
                return f"step '{parent}' {standing.state.value.lower()}", True
            if not standing.state.succeeded:
                return f"step '{parent}' has no result yet", False
        return None

    def _assist(self, instance: Instance, member: Member, signals: Signals) -> int:
        """Do the part of another rank than 0 in what rank 0 has begun, if it has."""
        number = self._begun_by_rank_0(member)
        if number is None:
            return BLOCKED
        signals.passes = lambda got: instance.resumable or got != TIME_LIMIT
        return min(1, self._start(instance, number, signals))

    def _begun_by_rank_0(self, member: Member) -> int | None:
        """Return the attempt that rank 0 of this incarnation has begun; None when it begins none.

        Rank 0 may wait for the results above, and this node may see its records late.
        """
        deadline = time.monotonic() + 2 * GRACE_S
        mine = (job_id(), restarts())
        while time.monotonic() < deadline:
            attempts = read_attempts(self._run.paths.records(member.key))
            start = (attempts[-1].start or {}) if attempts else {}
            if (start.get("job"), start.get("restarts")) == mine:
                return attempts[-1].number
            time.sleep(_LOOK_EVERY_S)
        return None

    def _make(self, instance: Instance, number: int, signals: Signals) -> int:
        # What cannot save loses less by running on to its limit than by being stopped before it.
        signals.passes = lambda got: instance.resumable or got != TIME_LIMIT
        signals.is_stopped = self._stop_of(instance)
        code = self._start(instance, number, signals)
        if code == 0:
            self._link(instance)
        if code == 0 or records.has_ended(self._run.paths.records(instance.key), number):
            return min(code, 1)
        said = ""
        if code == launching.ENVIRONMENT_EXIT:
            log = self._run.place.log(instance.step, number)
            said = launching.describe_exit(code, last_line(log))
        ending = stopping.decide(self._run, instance, number, signals.got, code, said)
        self._end(instance, number, ending)
        return 1

    def _stop_of(self, instance: Instance) -> Callable[[], bool]:
        """Return what tells whether `instance` was stopped, where Slurm is not asked to end it.

        Slurm can only end the element, and does so when nothing else is left in it.
        """
        server = self._server()
        if instance.step == self._members[-1].step and (server is None or not is_kept(server)):
            return lambda: False
        return lambda: instance.step in self._run.stopped

    def _link(self, instance: Instance) -> None:
        """Link `out` while the newest plan asks for this result; `advance` repairs what is not."""
        if not any(instance.outputs.values()):
            return
        newest = newest_run(self._run.paths, self._run.pipeline)
        if not is_asked(newest if newest and newest.id != self._run.id else None, instance):
            return
        try:
            views = self._run.views(instance)
            for folder in link_outputs(instance, self._run.paths, views):
                sync_folder(folder)
        except ArtifactError as error:
            print(f"step '{instance.step}': {error}", file=sys.stderr)

    def _start(self, instance: Instance, number: int, signals: Signals) -> int:
        """Make the attempt in a process of its own, and return its exit code."""
        log = self._run.place.log(instance.step, number)
        # Where a server is held, a thread beats, and no process is to be forked.
        is_alone = instance.step not in self._run.shared_elements
        if is_alone and not launching.needs_process(instance):
            return run_forked(self._run, instance.step, number, log, signals, self._ranks)
        reference = f"{self._run.place.folder}#{instance.step}#{number}"
        command = launching.worker_command(reference, instance, self._run.paths)
        environment = {
            **launching.worker_environment(instance, self._run.paths),
            **({RANKS_VARIABLE: self._ranks.encode()} if self._ranks.size > 1 else {}),
        }
        return run_started(command, environment, self._run, log, signals)

    def _end(self, instance: Instance, number: int, ending: Ending | None) -> None:
        stopping.carry_out(self._run, instance, number, ending, job_id())
