"""The fold: what is true of each instance of a run, from the store, the records and the processes.

Precedence: valid COMPLETE > live process or job > newest attempt's end record > the scheduler's
word > lost. Called by `advance` before every decision, and by `status`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from nexa_hpc.core.artifacts import Finding
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.endpoints import IDLE, is_idle
from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.records import Attempt, now, read_attempts
from nexa_hpc.core.results import cached_words, find_result, lost_words
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.core.trying import attempts_in_round, is_tried_again, of_round, rule_of

_BLOCKING = {
    State.FAILED: "failed",
    State.BLOCKED: "is blocked",
    State.CANCELLED: "was stopped",
}
_MAY_BE_TRIED_AGAIN = (State.FAILED, State.CANCELLED)


class Truth(NamedTuple):
    """An instance's standing, and the attempt that it rests on."""

    standing: Standing
    attempt: Attempt | None = None
    life: Life | None = None
    """Of the attempt's driver or job, where the attempt has no end record."""


class Observer(Protocol):
    """Knows whether those who make attempts live: processes, and the jobs of a scheduler."""

    def life(self, driver: Driver) -> Life:
        """Say whether a process lives."""
        ...

    def job(self, paths: ProjectPaths, key: str, attempt: Attempt) -> tuple[Life, Standing]:
        """Say whether the job of an attempt that has no end record lives, and where it stands.

        When it has ended, the standing says how; PENDING means that the attempt is given back.
        """
        ...


class Processes(Watch):
    """Observes processes alone, where no scheduler is to be asked."""

    def job(self, paths: ProjectPaths, key: str, attempt: Attempt) -> tuple[Life, Standing]:
        """Know of a job only what the records say."""
        where = f"handed over to Slurm on {attempt.claim.get('cluster')}"
        return Life.UNKNOWN, Standing(attempt.state, message=where)


def fold(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    """Return what is true of `instance`; `before` is `run.attempts_before()`."""
    truth = _fold(run, instance, before, watch)
    if truth.standing.state is State.FAILED:
        # Between our looks at the result, the records and the process it may have come to its end.
        truth = _fold(run, instance, before, watch)
    return truth


def fold_after(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    """Return what is true of `instance` where this process has just come to the end of an attempt.

    COMPLETED was recorded when the result had been published, so that is not looked at once more.
    """
    attempts = read_attempts(run.paths.records(instance.key))
    if attempts and attempts[-1].state is State.COMPLETED:
        return Truth(_standing(State.COMPLETED, attempts[-1], ""), attempts[-1])
    return fold(run, instance, before, watch)


def _fold(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    if instance.effect and instance.action == SKIP and not instance.serves:
        return Truth(Standing(State.SKIPPED, message=instance.reason))
    finding = find_result(instance, run.paths)
    if instance.action == SKIP and finding.artifact and not _made_in(run, instance, finding):
        return Truth(Standing(State.SKIPPED, message=cached_words(finding.artifact)))
    attempts = read_attempts(run.paths.records(instance.key))
    newest = attempts[-1] if attempts else None
    if finding.artifact is not None:
        return Truth(_standing(State.COMPLETED, newest, ""), newest)
    if newest is None:
        return _not_begun(run, instance) or Truth(_pending(finding))
    if instance.serves and newest.state.succeeded and "batch" in newest.claim:
        return _of_server_in_job(run, instance, attempts, before, watch)
    if newest.is_open:
        truth = _unended(run.paths, instance.key, newest, watch)
        if newest.end is None or truth.life is not Life.ENDED:
            return truth
    if not of_round(run, instance, attempts, before):
        return _not_begun(run, instance) or Truth(_pending(finding), newest)
    ended = _ended(newest, instance, lost_words(finding))
    is_pending = ended.state is State.PENDING
    return (_not_begun(run, instance) if is_pending else None) or Truth(ended, newest)


def _pending(finding: Finding) -> Standing:
    return Standing(State.PENDING, message=lost_words(finding))


def _not_begun(run: Run, instance: Instance) -> Truth | None:
    """Return what is true of an instance that serves, if nothing that reads it has to run.

    Whether something has is asked now, and not of the plan: a result may have come, or gone.
    """
    if not instance.serves or not _is_idle(run, instance):
        return None
    return Truth(Standing(State.SKIPPED, message=IDLE))


def _is_idle(run: Run, instance: Instance) -> bool:
    return is_idle(instance, run.readers[instance.step], run.paths, run.stopped)


def _of_server_in_job(
    run: Run,
    instance: Instance,
    attempts: list[Attempt],
    before: Mapping[str, int],
    watch: Observer,
) -> Truth:
    """Return what is true of an instance whose server came up in a job: that it did, while the job
    lives; and then, unless something that reads it is still to be made.
    """
    newest = attempts[-1]
    done = Truth(_ended(newest, instance, ""), newest)
    is_of_round = bool(of_round(run, instance, attempts, before))
    if _is_idle(run, instance):
        return done if is_of_round else Truth(Standing(State.SKIPPED, message=IDLE), newest)
    life, _ = watch.job(run.paths, instance.key, newest)
    if life is not Life.ENDED:
        return done
    readers = run.readers[instance.step]
    if is_of_round and not any(is_to_be_made(run, r, before, watch) for r in readers):
        return done
    return Truth(Standing(State.PENDING, message="its server has gone with its job"), newest)


def is_to_be_made(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> bool:
    """Return whether another attempt at `instance`, a Slurm step, is to be made in this round."""
    if instance.step in run.stopped:
        return False
    truth = fold(run, instance, before, watch)
    again = awaiting_another_try(run, instance, before, truth)
    return (again or truth.standing).state is State.PENDING


def fold_all(run: Run, watch: Observer | None = None) -> dict[str, Standing]:
    """Return step id -> standing for the whole run, BLOCKED ones derived."""
    observer = watch or Processes(run.paths.state)
    before = run.attempts_before()
    stopped = run.stopped
    found: dict[str, Standing] = {}
    for step, instance in run.instances.items():
        truth = fold(run, instance, before, observer)
        why = stopped.get(step)
        standing = truth.standing
        if why is None:
            standing = awaiting_another_try(run, instance, before, truth) or standing
        if standing.state is State.PENDING:
            standing = blocked(instance, found) or standing
        found[step] = as_stopped(standing, why)
    return found


def as_stopped(standing: Standing, why: str | None) -> Standing:
    """Return `standing` as that of an instance that was stopped singly; `why` is None if not.

    A result, a live process or job, and a failure of this round stay what they are; but nothing is
    begun or tried again.
    """
    if why is None or standing.state not in (State.PENDING, State.CANCELLED):
        return standing
    return standing._replace(state=State.CANCELLED, reason=None, message=why)


def awaiting_another_try(
    run: Run, instance: Instance, before: Mapping[str, int], truth: Truth
) -> Standing | None:
    """Return a PENDING standing where whoever advances the run tries a Slurm step again.

    The caller knows that the instance was not stopped singly.
    """
    slurm = run.request.get("slurm") if truth.standing.state in _MAY_BE_TRIED_AGAIN else None
    if slurm is None or truth.attempt is None or instance.scheduler != "slurm" or run.cancelled:
        return None
    if truth.standing.state is State.CANCELLED:
        again = truth.attempt.claim.get("run") != run.id
    else:
        attempts = attempts_in_round(run, instance, before)
        again = is_tried_again(_as_ended(attempts, truth), rule_of(instance, slurm["policy"]))
    if not again:
        return None
    return truth.standing._replace(
        state=State.PENDING,
        message=f"to be tried again: {truth.standing.message}",
    )


def _as_ended(attempts: list[Attempt], truth: Truth) -> list[Attempt]:
    """Return `attempts` with the end of the newest as it is about to be recorded."""
    assert truth.attempt is not None
    if truth.attempt.end is not None:
        return attempts
    end = {
        "state": truth.standing.state.value,
        "reason": truth.standing.reason,
        "ended_at": now(),
    }
    return [*attempts[:-1], replace(truth.attempt, end=end)]


def blocked(instance: Instance, above: Mapping[str, Standing]) -> Standing | None:
    """Return a BLOCKED standing when a step above `instance` has failed, else None."""
    for parent in instance.parents:
        words = _BLOCKING.get(above[parent].state)
        if words is not None:
            return Standing(State.BLOCKED, message=f"step '{parent}' {words}")
    return None


def _made_in(run: Run, instance: Instance, finding: Finding) -> bool:
    """Return whether `run` made what was found: in another user's state are runs of the same id."""
    artifact = finding.artifact
    if artifact is None or artifact.meta.get("made_by", {}).get("run") != run.id:
        return False
    return bool(read_attempts(run.paths.records(instance.key)))


def _unended(paths: ProjectPaths, key: str, attempt: Attempt, watch: Observer) -> Truth:
    if "batch" in attempt.claim:
        life, said = watch.job(paths, key, attempt)
        standing = _standing(said.state, attempt, said.message, said.reason)
        return Truth(standing._replace(job=said.job or standing.job), attempt, life)
    if "driver" not in attempt.claim:
        # A power cut may take a claim's name and leave the start's; its process is gone as well.
        message = "its claim is gone"
        standing = _standing(State.FAILED, attempt, message, Reason.LOST.value)
        return Truth(standing, attempt, Life.ENDED)
    driver = Driver.from_json(attempt.claim["driver"])
    life = watch.life(driver)
    if life is Life.ENDED:
        message = f"process {driver} is gone and left no end record"
        standing = _standing(State.FAILED, attempt, message, Reason.LOST.value)
        return Truth(standing, attempt, life)
    message = f"in run {attempt.claim.get('run')} on {driver}"
    if life is Life.UNKNOWN:
        message += ", not heard of yet"
    return Truth(_standing(attempt.state, attempt, message), attempt, life)


def _ended(attempt: Attempt, instance: Instance, lost: str) -> Standing:
    assert attempt.end is not None
    state = State(attempt.end["state"])
    if state is State.COMPLETED and not instance.effect:
        # It was published, and is no longer there: purged, or not visible on this node yet.
        return Standing(State.PENDING, message=lost or "its result is not in the store")
    return _standing(state, attempt, attempt.end["message"], attempt.end["reason"])


def _standing(
    state: State, attempt: Attempt | None, message: str, reason: str | None = None
) -> Standing:
    if attempt is None:
        return Standing(state, message=message)
    return Standing(
        state,
        attempt=attempt.number,
        reason=reason,
        message=message,
        job=attempt.job,
        started_at=(attempt.start or {}).get("started_at"),
        ended_at=(attempt.end or {}).get("ended_at"),
        log=attempt.log,
    )
