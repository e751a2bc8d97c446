"""The servers that a driver holds while steps of its run read them, or are to.

A step that serves has done its work when its server answers; that is true only as long as it does,
so it is looked at anew by each driver. Called by `advance`, and in Slurm by the element. Standard
library alone.
"""

from __future__ import annotations

import time

from nexa_hpc.core.drivers import BEAT_INTERVAL_S, SILENCE_S, Driver, Life
from nexa_hpc.core.endpoints import IDLE, is_kept, server_name, servers_read
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.leases import Leases
from nexa_hpc.core.leftovers import end_leftovers
from nexa_hpc.core.records import Attempt
from nexa_hpc.core.runs import Run
from nexa_hpc.core.servers import STOP_GRACE_S, TAG_VARIABLE, Condition, Servers, is_here
from nexa_hpc.core.states import Standing, State
from nexa_hpc.core.truths import Truth

_POLL_S = 0.1
_BEATS_S = 2 * BEAT_INTERVAL_S


class HeldServers:
    """What one driver holds for one run; closed when it drives no more."""

    def __init__(self, run: Run, driver: Driver, *, silence_s: float = SILENCE_S) -> None:
        self._run = run
        self._driver = driver
        self._servers = Servers(run.paths.servers, silence_s=silence_s)
        self._leases = Leases(self._servers)
        self._open: dict[str, set[str]] = {}
        """Step whose server is held -> those that read it and have not ended."""
        self._let_go: list[str] = []

    def look(self, instance: Instance, truth: Truth) -> Truth:
        """Hold the server of `instance`, of which `truth` was found, and return what is true then.

        A success stands for nothing once its server has gone, and is PENDING: but that of an
        attempt of this driver's own stands, lest one that dies young be started for ever.
        """
        if truth.standing.message == IDLE:
            return truth
        newest, state = truth.attempt, truth.standing.state
        is_open = state.succeeded or state is State.PENDING
        if is_open and newest is not None and self._is_anothers(instance, newest):
            # It is not held: it ends with its job, whoever holds it.
            message = f"its server is in job {newest.job}, for the steps there"
            return Truth(Standing(State.RUNNING, message=message), newest, Life.ALIVE)
        self.hold(instance)
        if not state.succeeded or self._is_own(truth) or self._stands(instance):
            return truth
        self._end_stray(server_name(instance), is_kept_ours=False)
        return Truth(Standing(State.PENDING, message="its server has gone"), truth.attempt)

    def hold(self, instance: Instance, *, is_kept_ours: bool = False) -> None:
        """Hold the server of `instance`, which need not be there yet, and end a stray one.

        One that is kept is stray where nobody else may have started it (`is_kept_ours`).
        """
        if instance.step in self._open:
            return
        self._open[instance.step] = {reader.step for reader in self._run.readers[instance.step]}
        # Before we look whether it is there: who ends it looks after it has said so.
        self._leases.take(server_name(instance), self._driver)
        self._end_stray(server_name(instance), is_kept_ours=is_kept_ours)

    def _end_stray(self, name: str, *, is_kept_ours: bool) -> None:
        """End a server that a driver on another machine left when it was killed, or requeued here.

        Whether it was takes as long to know as a driver may be silent.
        """
        deadline = time.monotonic() + self._servers.silence_s + _BEATS_S
        while (handle := self._servers.find(name)) and not is_here(handle):
            if handle.ended or not (handle.leased or is_kept_ours):
                return
            if self._leases.healthy(name) or time.monotonic() > deadline:
                return
            condition, _ = self._servers.condition(handle)  # Has its silence observed from now on.
            lives = self._leases.lives(name, besides=self._driver)
            if Life.ALIVE in lives:
                return
            if not condition.lives or (handle.leased and not lives):
                self._servers.stop(handle)
                return
            time.sleep(_POLL_S)

    def _is_anothers(self, instance: Instance, attempt: Attempt) -> bool:
        """Return whether the server came up in a job that holds it for its own steps alone."""
        if "batch" not in attempt.claim or not attempt.state.succeeded:
            return False
        name = server_name(instance)
        handle = self._servers.find(name)
        if handle is None or not handle.leased or not self._servers.condition(handle)[0].lives:
            return False
        return bool(self._leases.lives(name, besides=self._driver))

    def _is_own(self, truth: Truth) -> bool:
        claim = truth.attempt.claim if truth.attempt is not None else {}
        return claim.get("driver") == self._driver.to_json()

    def _stands(self, instance: Instance) -> bool:
        handle = self._leases.healthy(server_name(instance))
        return handle is not None and (not is_kept(instance) or self._leases.is_kept(handle))

    def settled(self, instance: Instance) -> None:
        """Note that nothing more happens to `instance`: what it was the last to read is let go."""
        for step in servers_read(instance) & self._open.keys():
            self._open[step].discard(instance.step)
            if not self._open[step]:
                self._drop(step)

    def close(self) -> None:
        """Let go of everything, and return when what nobody holds any more has ended."""
        for step in list(self._open):
            self._drop(step)
        while self._let_go:
            self._see_end(self._let_go.pop())

    def stop(self, instance: Instance) -> None:
        """End the server of `instance` here, whoever else holds it, unless it is to stay."""
        handle = self._servers.find(server_name(instance))
        if handle is not None and is_here(handle) and not self._leases.is_kept(handle):
            self._servers.stop(handle)

    def _drop(self, step: str) -> None:
        del self._open[step]
        name = server_name(self._run.instances[step])
        self._leases.drop(name, self._driver)
        self._let_go.append(name)

    def _see_end(self, name: str) -> None:
        deadline = time.monotonic() + STOP_GRACE_S
        while (handle := self._servers.find(name)) and not self._leases.is_wanted(handle):
            condition, _ = self._servers.condition(handle)
            if condition is Condition.CRASHED:
                # It stays on the list, which says why.
                end_leftovers(handle.tag, TAG_VARIABLE)
                return
            if condition is Condition.STOPPED or time.monotonic() > deadline:
                self._servers.stop(handle)
                return
            time.sleep(_POLL_S)
