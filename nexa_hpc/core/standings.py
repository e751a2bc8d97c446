"""The fold: what is true of each instance of a run, from the store, the records and the processes.

Precedence: valid COMPLETE > live process > newest attempt's end record > lost. Called by `advance`
before every decision, and by `status`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nexa_hpc.core.artifacts import Finding
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.records import Attempt, read_attempts
from nexa_hpc.core.results import cached_words, find_result, lost_words
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, Standing, State

_BLOCKING = {
    State.FAILED: "failed",
    State.BLOCKED: "is blocked",
    State.CANCELLED: "was stopped",
}


@dataclass(frozen=True)
class Truth:
    """An instance's standing, and the attempt that it rests on."""

    standing: Standing
    attempt: Attempt | None = None
    life: Life | None = None
    """Of the attempt's driver, where the attempt has no end record."""


def fold(run: Run, instance: Instance, before: Mapping[str, int], watch: Watch) -> Truth:
    """Return what is true of `instance`; `before` is `run.attempts_before()`."""
    truth = _fold(run, instance, before, watch)
    if truth.standing.state is State.FAILED:
        # Between our looks at the result, the records and the process it may have come to its end.
        truth = _fold(run, instance, before, watch)
    return truth


def _fold(run: Run, instance: Instance, before: Mapping[str, int], watch: Watch) -> Truth:
    if instance.effect and instance.action == SKIP:
        return Truth(Standing(State.SKIPPED, message=instance.reason))
    finding = find_result(instance, run.paths)
    if instance.action == SKIP and finding.artifact and not _made_in(run, instance, finding):
        return Truth(Standing(State.SKIPPED, message=cached_words(finding.artifact)))
    attempts = read_attempts(run.paths.records(instance.key))
    newest = attempts[-1] if attempts else None
    if finding.artifact is not None:
        return Truth(_standing(State.COMPLETED, newest, ""), newest)
    if newest is None:
        return Truth(Standing(State.PENDING, message=lost_words(finding)))
    if newest.end is None:
        return _unended(newest, watch)
    if newest.number <= before.get(instance.key, 0):
        return Truth(Standing(State.PENDING, message=lost_words(finding)), newest)
    return Truth(_ended(newest, instance, lost_words(finding)), newest)


def fold_all(run: Run, watch: Watch | None = None) -> dict[str, Standing]:
    """Return step id -> standing for the whole run, BLOCKED ones derived."""
    observer = watch or Watch(run.paths.state)
    before = run.attempts_before()
    found: dict[str, Standing] = {}
    for step, instance in run.instances.items():
        standing = fold(run, instance, before, observer).standing
        if standing.state is State.PENDING:
            standing = blocked(instance, found) or standing
        found[step] = standing
    return found


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


def _unended(attempt: Attempt, watch: Watch) -> Truth:
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
        job=attempt.claim.get("job"),
        started_at=(attempt.start or {}).get("started_at"),
        ended_at=(attempt.end or {}).get("ended_at"),
        log=attempt.claim.get("log"),
    )
