"""What the store, the records and the processes say of one instance, its server left aside.

Precedence: valid COMPLETE > live process or job > newest attempt's end record > the scheduler's
word > lost. Called by `standings`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from nexa_hpc.core.artifacts import Finding
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.records import Attempt, read_attempts
from nexa_hpc.core.results import cached_words, find_result, lost_words
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.core.trying import of_round


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


def find_truth(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    """Return what is true of `instance`; `before` is `run.attempts_before()`."""
    if instance.effect and instance.action == SKIP and not instance.serves:
        return Truth(Standing(State.SKIPPED, message=instance.reason))
    finding = find_result(instance, run.paths)
    if instance.action == SKIP and finding.artifact and not _made_in(run, instance, finding):
        return Truth(Standing(State.SKIPPED, message=cached_words(finding.artifact)))
    attempts = read_attempts(run.paths.records(instance.key))
    newest = attempts[-1] if attempts else None
    if finding.artifact is not None:
        return Truth(standing_of(State.COMPLETED, newest, ""), newest)
    if newest is None:
        return Truth(_pending(finding))
    if newest.is_open:
        truth = _unended(run.paths, instance.key, newest, watch)
        if newest.end is None or truth.life is not Life.ENDED:
            return truth
    if not of_round(run, instance, attempts, before):
        return Truth(_pending(finding), newest)
    return Truth(ended_standing(newest, instance, lost_words(finding)), newest)


def _pending(finding: Finding) -> Standing:
    return Standing(State.PENDING, message=lost_words(finding))


def _made_in(run: Run, instance: Instance, finding: Finding) -> bool:
    """Return whether `run` made what was found: in another user's state are runs of the same id."""
    artifact = finding.artifact
    if artifact is None or artifact.meta.get("made_by", {}).get("run") != run.id:
        return False
    return bool(read_attempts(run.paths.records(instance.key)))


def _unended(paths: ProjectPaths, key: str, attempt: Attempt, watch: Observer) -> Truth:
    if "batch" in attempt.claim:
        life, said = watch.job(paths, key, attempt)
        standing = standing_of(said.state, attempt, said.message, said.reason)
        return Truth(standing._replace(job=said.job or standing.job), attempt, life)
    if "driver" not in attempt.claim:
        # A power cut may take a claim's name and leave the start's; its process is gone as well.
        message = "its claim is gone"
        standing = standing_of(State.FAILED, attempt, message, Reason.LOST.value)
        return Truth(standing, attempt, Life.ENDED)
    driver = Driver.from_json(attempt.claim["driver"])
    life = watch.life(driver)
    if life is Life.ENDED:
        message = f"process {driver} is gone and left no end record"
        standing = standing_of(State.FAILED, attempt, message, Reason.LOST.value)
        return Truth(standing, attempt, life)
    message = f"in run {attempt.claim.get('run')} on {driver}"
    if life is Life.UNKNOWN:
        message += ", not heard of yet"
    return Truth(standing_of(attempt.state, attempt, message), attempt, life)


def ended_standing(attempt: Attempt, instance: Instance, lost: str) -> Standing:
    """Return the standing by the end record of `attempt`; `lost` says why its result is not there
    any more, where that is known.
    """
    assert attempt.end is not None
    state = State(attempt.end["state"])
    if state is State.COMPLETED and not instance.effect:
        # It was published, and is no longer there: purged, or not visible on this node yet.
        return Standing(State.PENDING, message=lost or "its result is not in the store")
    return standing_of(state, attempt, attempt.end["message"], attempt.end["reason"])


def standing_of(
    state: State, attempt: Attempt | None, message: str, reason: str | None = None
) -> Standing:
    """Return the standing `state`, with what the records say of `attempt`."""
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
