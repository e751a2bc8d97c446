"""The fold: what is true of each instance of a run, servers, stops and further tries considered.

What is found of one instance is told by `truths`, with its precedence. Called by `advance` before
every decision, and by `status`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nexa_hpc.core.drivers import Driver, Life
from nexa_hpc.core.endpoints import IDLE, is_for_others, is_idle, is_kept, server_name, servers_read
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.records import Attempt, now, read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.servers import Servers
from nexa_hpc.core.states import Standing, State
from nexa_hpc.core.truths import Observer, Processes, Truth, ended_standing, find_truth, standing_of
from nexa_hpc.core.trying import attempts_in_round, is_tried_again, rule_of

_BLOCKING = {
    State.FAILED: "failed",
    State.BLOCKED: "is blocked",
    State.CANCELLED: "was stopped",
}
_MAY_BE_TRIED_AGAIN = (State.FAILED, State.CANCELLED)


def fold(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    """Return what is true of `instance`; `before` is `run.attempts_before()`."""
    truth = find_truth(run, instance, before, watch)
    if truth.standing.state is State.FAILED:
        # Between our looks at the result, the records and the process it may have come to its end.
        truth = find_truth(run, instance, before, watch)
    return _of_server(run, instance, truth, before, watch) if instance.serves else truth


def fold_after(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> Truth:
    """Return what is true of `instance` where this process has just come to the end of an attempt.

    COMPLETED was recorded when the result had been published, so that is not looked at once more.
    """
    attempts = read_attempts(run.paths.records(instance.key))
    if attempts and attempts[-1].state is State.COMPLETED:
        return Truth(standing_of(State.COMPLETED, attempts[-1], ""), attempts[-1])
    return fold(run, instance, before, watch)


def _of_server(
    run: Run, instance: Instance, truth: Truth, before: Mapping[str, int], watch: Observer
) -> Truth:
    """Return what is true of an instance that serves, of which the records say `truth`.

    That its server came up in a job stands while the job lives; and when it has gone, unless
    something that reads it is still to be made. It is not begun where nothing is: that is asked
    now, and not of the plan, for a result may have come, or gone.
    """
    newest, state = truth.attempt, truth.standing.state
    began = _last_that_started_it(run, instance, newest)
    if instance.scheduler == "slurm" and began is not None and began.state.succeeded:
        there = _where_it_came_up(run, instance, began, watch)
        if there is not None and (state.succeeded or there.life is Life.ALIVE):
            is_of_use = there.standing.state.succeeded
            is_idle_here = not is_of_use and is_unwanted(run, instance, before, watch)
            return Truth(Standing(State.SKIPPED, message=IDLE), newest) if is_idle_here else there
        if state.succeeded and _is_read(run, instance, before, watch):
            message = "its server has gone with its job"
            return Truth(Standing(State.PENDING, message=message), newest)
    # Where its job has ended without a record, that is recorded first.
    is_closed = truth.life is not Life.ENDED
    if state is State.PENDING and is_closed and is_unwanted(run, instance, before, watch):
        return Truth(Standing(State.SKIPPED, message=IDLE), newest)
    return truth


def _last_that_started_it(run: Run, instance: Instance, newest: Attempt | None) -> Attempt | None:
    """Return the attempt that started the server, where others found that one answering."""
    if newest is None or newest.state is not State.SKIPPED:
        return newest
    attempts = read_attempts(run.paths.records(instance.key))
    return next((a for a in reversed(attempts) if a.state is State.COMPLETED), newest)


def is_unwanted(run: Run, server: Instance, before: Mapping[str, int], watch: Observer) -> bool:
    """Return whether nothing is left to do for the server of an instance."""
    if server.scheduler != "slurm" or is_kept(server):
        return is_idle(server, run.readers[server.step], run.paths, run.stopped)
    return not _is_read(run, server, before, watch)


def _is_read(run: Run, server: Instance, before: Mapping[str, int], watch: Observer) -> bool:
    readers = run.readers[server.step]
    return any(_is_to_come(run, reader, before, watch) for reader in readers)


def _is_to_come(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> bool:
    """Return whether a Slurm step may still be made in this round, all above it considered."""
    if instance.step in run.stopped:
        return False
    standing = _with_another_try(run, instance, before, watch)
    return not standing.state.settled and not _is_blocked(run, instance, before, watch)


def _is_blocked(run: Run, instance: Instance, before: Mapping[str, int], watch: Observer) -> bool:
    """Return whether something above has failed for good; what has its result hides what is above.

    The server that it reads is passed over, as it is for that one that this is asked; of others
    the records alone are believed.
    """
    stopped, waiting = run.stopped, [*instance.parents]
    seen = {instance.step, *servers_read(instance)}
    while waiting:
        step = waiting.pop()
        above = run.instances[step]
        if step in seen:
            continue
        seen.add(step)
        look = find_truth if above.serves else fold
        truth = look(run, above, before, watch)
        standing = awaiting_another_try(run, above, before, truth) or truth.standing
        if standing.state.succeeded:
            continue
        if step in stopped or standing.state in _MAY_BE_TRIED_AGAIN:
            return True
        waiting += above.parents
    return False


def _with_another_try(
    run: Run, instance: Instance, before: Mapping[str, int], watch: Observer
) -> Standing:
    truth = fold(run, instance, before, watch)
    return awaiting_another_try(run, instance, before, truth) or truth.standing


def _where_it_came_up(
    run: Run, instance: Instance, attempt: Attempt, watch: Observer
) -> Truth | None:
    """Return what is true of a Slurm step whose server came up in `attempt`, while it may be
    there.
    """
    handle = Servers(run.paths.servers).find(server_name(instance))
    is_listed = handle is not None and not handle.ended
    stays = handle is not None and not handle.leased
    came_up = ended_standing(attempt, instance, "")
    if "batch" in attempt.claim:
        life, standing = watch.job(run.paths, instance.key, attempt)
        if standing.state is State.SUBMITTED and life is Life.ALIVE:
            return Truth(standing, attempt, life)  # Requeued: it is to come up once more.
        if life is Life.UNKNOWN and (stays or is_kept(instance)):
            # Where Slurm is not asked; who reads it asks the server itself.
            life = Life.ALIVE if is_listed else Life.ENDED
        return None if life is Life.ENDED else Truth(came_up, attempt, life)
    if is_for_others(instance, run.paths):
        return Truth(came_up, attempt, Life.ALIVE)
    is_driven = watch.life(Driver.from_json(attempt.claim["driver"])) is not Life.ENDED
    if not is_listed or not is_driven:
        return None
    message = f"its server is another run's, on {attempt.claim.get('job')}"
    return Truth(Standing(State.RUNNING, message=message), attempt, Life.ALIVE)


def fold_all(run: Run, watch: Observer | None = None) -> dict[str, Standing]:
    """Return step id -> standing for the whole run, BLOCKED ones derived."""
    observer = watch or Processes(run.paths.state)
    before = run.attempts_before()
    stopped = run.stopped
    found: dict[str, Standing] = {}
    for step, instance in run.instances.items():
        why = stopped.get(step)
        if why is None:
            standing = _with_another_try(run, instance, before, observer)
        else:
            standing = fold(run, instance, before, observer).standing
        if standing.state is State.PENDING:
            awaiting = None if standing.message else _awaiting(run, instance, found)
            standing = blocked(instance, found) or awaiting or standing
        found[step] = as_stopped(standing, why)
    return found


def _awaiting(run: Run, instance: Instance, above: Mapping[str, Standing]) -> Standing | None:
    """Return a PENDING standing that says so where what reads a server in Slurm waits for the end
    of a job that holds it for other steps.
    """
    for server in servers_read(instance):
        holds = above[server].job if above[server].state.succeeded else None
        if holds is not None and not is_for_others(run.instances[server], run.paths):
            message = f"waits for the end of job {holds}, which holds the server of '{server}'"
            return Standing(State.PENDING, message=message)
    return None


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
