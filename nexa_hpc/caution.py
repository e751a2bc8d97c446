"""Holding back: a run whose first instances go before the rest, and one that fails all alike.

    canary: N                      N instances of each kind run first; if one fails, the run stops
    stop_after: {failures: N}      the run is stopped when N of its steps have failed
    stop_after: {same_error: N}    the same, for N failures with one message

Called by `submitting`, before anything more is submitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from nexa_hpc.core.parts import with_all_above
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.core.trying import Changes
from nexa_hpc.schedulers.slurm import units
from nexa_hpc.schedulers.slurm.terms import Terms

_UNLUCKY = (State.FAILED, State.CANCELLED, State.BLOCKED)
_WORDS_SHOWN = 120


class Caution:
    """What of a run may be submitted now, by its policy."""

    def __init__(self, run: Run, terms: Terms) -> None:
        self._policy = terms.policy
        self._canaries = _canaries(run, terms) if self._policy["canary"] else frozenset()
        self.spared: frozenset[str] = frozenset()
        """What was stopped singly, with all below: nothing follows from it for other steps."""

    @property
    def is_watchful(self) -> bool:
        """Whether a failure of one step may concern all others."""
        return bool(self._canaries) or any(self._policy["stop_after"].values())

    def may_submit(self, step: str, standings: Mapping[str, Standing]) -> bool:
        """Return whether `step` is among the canaries, or all of those have come home."""
        if step in self._canaries:
            return True
        pending = Standing(State.PENDING)
        canaries = self._canaries - self.spared
        return all(standings.get(s, pending).state.succeeded for s in canaries)

    def why_stop(self, standings: Mapping[str, Standing]) -> str | None:
        """Return why the run is to be stopped, in words, or None."""
        for step in sorted(self._canaries - self.spared):
            standing = standings.get(step)
            if standing is not None and standing.state in _UNLUCKY:
                return f"canary '{step}' {standing.state.value.lower()}"
        failed = [
            standing
            for step, standing in standings.items()
            if standing.state is State.FAILED and step not in self.spared
        ]
        limit = self._policy["stop_after"]["failures"]
        if limit is not None and len(failed) >= limit:
            return f"{len(failed)} steps failed (stop_after.failures is {limit})"
        return self._same_error(failed)

    def _same_error(self, failed: list[Standing]) -> str | None:
        limit = self._policy["stop_after"]["same_error"]
        if limit is None or not failed:
            return None
        (message, count), *_ = Counter(s.message for s in failed).most_common(1)
        if count < limit:
            return None
        return f"{count} steps failed alike: {message[:_WORDS_SHOWN]}"


def _canaries(run: Run, terms: Terms) -> frozenset[str]:
    jobs = [
        terms.job(instance, instance.parents, Changes(), run.shared_elements.get(instance.step))
        for instance in run.instances.values()
        if instance.scheduler == "slurm"
    ]
    return _with_elements(run, units.first_of_each(jobs, terms.policy["canary"]))


def _with_elements(run: Run, chosen: Collection[str]) -> frozenset[str]:
    """Return `chosen`, Slurm steps, with all that shares an element with one, or is above that."""
    found, before = frozenset(chosen), frozenset[str]()
    while run.shared_elements and found != before:
        before = found
        servers = {run.shared_elements.get(step) for step in found}
        inside = {s for s, server in run.shared_elements.items() if server in servers}
        above = with_all_above(run.instances, found | inside)
        found |= {step for step in above if run.instances[step].scheduler == "slurm"}
    return found
