"""Whether a failed instance is tried again in this round, and with what changed.

The rule is `core.retries`, as it was recorded with the run. Called by `advance`. Standard library
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.records import Attempt, now, read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, State

_BUDGET_OF = {Reason.LOST.value: Reason.NODE_FAIL.value}
"""What is lost was most likely lost with its node."""


@dataclass(frozen=True)
class Changes:
    """How the next attempt differs from what the step declares."""

    mem_factor: float = 1.0
    time_factor: float = 1.0
    exclude: tuple[str, ...] = ()
    """Nodes to stay away from."""


def together(changes: Sequence[Changes]) -> Changes:
    """Return what steps in one element need that ask for `changes`; each has its time by itself."""
    return Changes(
        max(change.mem_factor for change in changes),
        changes[0].time_factor,
        tuple(sorted({node for change in changes for node in change.exclude})),
    )


def in_round(attempts: Iterable[Attempt], before: int) -> list[Attempt]:
    """Return the attempts of the present round."""
    return [attempt for attempt in attempts if attempt.number > before]


def of_round(
    run: Run, instance: Instance, attempts: Sequence[Attempt], before: Mapping[str, int]
) -> list[Attempt]:
    """Return which of all `attempts` at `instance` belong to the present round of `run`; `before`
    is `Run.attempts_before()`.

    A round notes no attempts at what it takes for cached. Where that was purged meanwhile, they
    begin with the first of the run's own: how others failed at it is no answer.
    """
    if instance.action == SKIP and instance.key not in before:
        own = (number for number, a in enumerate(attempts) if a.claim.get("run") == run.id)
        return list(attempts[next(own, len(attempts)) :])
    return in_round(attempts, before.get(instance.key, 0))


def attempts_in_round(run: Run, instance: Instance, before: Mapping[str, int]) -> list[Attempt]:
    """Read the attempts at `instance` and return those of the present round, as `of_round` does."""
    return of_round(run, instance, read_attempts(run.paths.records(instance.key)), before)


def rule_of(instance: Instance, policy: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what of `instance` is tried again: what it says itself over the recorded policy."""
    return {**policy["retry"], **instance.retry}


def is_tried_again(attempts: Sequence[Attempt], retry: Mapping[str, Any]) -> bool:
    """Return whether the newest of a round's attempts, which FAILED, is to be tried again."""
    reason = _reason(attempts[-1])
    rule = retry.get(_BUDGET_OF.get(reason, reason)) or {}
    budget = _BUDGET_OF.get(reason, reason)
    spent = sum(1 for a in attempts if _BUDGET_OF.get(_reason(a), _reason(a)) == budget)
    if spent > rule.get("times", 0):
        return False
    return not is_out_of_time(attempts, retry)


def is_out_of_time(attempts: Sequence[Attempt], retry: Mapping[str, Any]) -> bool:
    """Return whether a round's attempts have taken together what they may; an open one till now."""
    total_min = retry.get("total_time_min")
    return total_min is not None and _minutes(attempts) >= total_min


def changes_for(attempts: Sequence[Attempt], retry: Mapping[str, Any]) -> Changes:
    """Return what the failures of a round so far ask to change."""
    failures = Counter(_reason(attempt) for attempt in attempts)

    def factor(reason: Reason, name: str) -> float:
        rule = retry.get(reason.value) or {}
        return float(rule.get(name, 1.0) ** failures[reason.value])

    rule = retry.get(Reason.NODE_FAIL.value) or {}
    bad = [
        str(attempt.start["host"])
        for attempt in attempts
        if attempt.start is not None and _reason(attempt) == Reason.NODE_FAIL.value
    ]
    return Changes(
        factor(Reason.OUT_OF_MEMORY, "mem_factor"),
        factor(Reason.TIMEOUT, "time_factor"),
        tuple(sorted(set(bad))) if rule.get("exclude_node") else (),
    )


def _reason(attempt: Attempt) -> str:
    """Return why an attempt failed; empty for one that did not, or was given back."""
    if attempt.end is None or attempt.end["state"] != State.FAILED.value:
        return ""
    return attempt.end["reason"] or ""


def _minutes(attempts: Sequence[Attempt]) -> float:
    """Return how long the attempts ran, all together."""
    total = 0.0
    for attempt in attempts:
        if attempt.start is not None:
            end = attempt.end or {"ended_at": now()}
            began, ended = (
                datetime.fromisoformat(text)
                for text in (attempt.start["started_at"], end["ended_at"])
            )
            total += max(0.0, (ended - began).total_seconds())
    return total / 60
