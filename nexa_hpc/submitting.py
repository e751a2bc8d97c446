"""The Slurm side of advancing a run: what became of its jobs, what is tried again or submitted.

`SlurmSide.look` tells where one instance stands and closes attempts whose jobs have ended without a
record; `hand_over` submits, in one pass over the whole graph, what waits for nothing but what is
submitted. Called by `advance`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

from nexa_hpc.candidates import Candidate, was_refused, with_servers, within_reach
from nexa_hpc.caution import Caution
from nexa_hpc.core import batches, records
from nexa_hpc.core.drivers import Driver, Life
from nexa_hpc.core.endpoints import is_kept
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.parts import with_all_below
from nexa_hpc.core.paths import RunPaths
from nexa_hpc.core.runs import Run, mark_cancelled
from nexa_hpc.core.standings import as_stopped, awaiting_another_try, blocked, fold, fold_all
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.core.truths import Truth
from nexa_hpc.core.trying import attempts_in_round, changes_for
from nexa_hpc.errors import SchedulerError
from nexa_hpc.handover import HandedOver, HandOver
from nexa_hpc.rearming import AdvanceJob
from nexa_hpc.schedulers.slurm.cancelling import cancel_jobs, cancel_run, end_stopped
from nexa_hpc.schedulers.slurm.submission import Submission
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.schedulers.slurm.watching import Observer

_IN_SLURM = (State.SUBMITTED, State.RUNNING)


class SlurmSide:
    """What one driver knows of the Slurm steps of a run."""

    def __init__(
        self,
        run: Run,
        terms: Terms,
        driver: Driver,
        watch: Observer,
        before: Mapping[str, int],
    ) -> None:
        self._run = run
        self._terms = terms
        self._driver = driver
        self._watch = watch
        self._before = before
        self._hand_over = HandOver(run, terms, watch.queue, driver, self._arm_early)
        self._advance_job = AdvanceJob(run, terms, watch.queue, driver)
        self._caution = Caution(run, terms)
        self.is_due = False
        """Whether an instance was found that another attempt may be made at."""
        self.is_awaiting = False
        """Whether another process was seen to submit something of the run."""
        self.is_to_arm = False
        """Whether something was submitted that no advance job was told of."""
        self._stopped: Mapping[str, str] = {}
        """What was stopped singly, and why, when it was last looked."""
        self._told_to_end: set[str] = set()
        """Elements that Slurm was asked to end for that."""
        self._seen: dict[str, Truth] = {}
        """What this pass has found PENDING."""
        self._serving: set[str] = set()
        """Jobs of servers that go on, and must end before they are started for steps that wait."""
        self._is_full = False
        self._not_before = 0.0
        """When a full queue is tried again, by the monotonic clock."""

    def look(self, instance: Instance) -> Truth:
        """Return what is true of `instance`; PENDING means that it may be submitted."""
        truth = self._seen.pop(instance.step, None) or self._look(instance)
        if truth.standing.state is State.PENDING:
            self.is_due = True
            # `hand_over`, later in the same pass, need not look again: claims tell who was first.
            self._seen[instance.step] = truth
        return truth

    def _look(self, instance: Instance) -> Truth:
        truth = fold(self._run, instance, self._before, self._watch)
        if truth.life is Life.ENDED and truth.attempt is not None and truth.attempt.end is None:
            self._close(instance, truth)
            truth = fold(self._run, instance, self._before, self._watch)
        why = self._stopped.get(instance.step)
        if why is not None:
            return Truth(as_stopped(truth.standing, why), truth.attempt, truth.life)
        if truth.life is None:
            again = awaiting_another_try(self._run, instance, self._before, truth)
            truth = Truth(again, truth.attempt) if again is not None else truth
        return truth

    def hand_over(self, standings: Mapping[str, Standing]) -> HandedOver:
        """Submit what can be; `standings` holds what has settled."""
        self.is_due = False
        self._cancel_hopeless()
        if time.monotonic() < self._not_before:
            return HandedOver()
        self._note_stopped()
        candidates, in_flight = self._divided(standings)
        self._seen.clear()
        self.is_due = False
        done = self._hand_over.hand_over(candidates, in_flight) if candidates else HandedOver()
        self._is_full = done.is_full
        self.is_to_arm = bool(done.jobs)
        if done.put_off or self._serving:
            # What was put off would be looked at again in each pass.
            self._not_before = time.monotonic() + self._terms.cluster["poll_interval_s"]
        return done

    def _divided(
        self, standings: Mapping[str, Standing]
    ) -> tuple[dict[str, Candidate], dict[str, str | None]]:
        """Return what may be submitted, and what is in flight with its job where that is known."""
        candidates: dict[str, Candidate] = {}
        in_flight: dict[str, str | None] = {}
        known = dict(standings)
        settled = {step for step, standing in standings.items() if standing.state.settled}
        for instance in within_reach(self._run.instances.values(), settled):
            step = instance.step
            above = blocked(instance, known) if _all_known(instance, known) else None
            truth = Truth(above) if above is not None else self.look(instance)
            known[step] = as_stopped(truth.standing, self._stopped.get(step))
            if known[step].state is State.CANCELLED:
                continue
            if truth.standing.state is State.PENDING:
                candidates[step] = self._candidate(instance, truth)
            elif not truth.standing.state.settled:
                in_flight[step] = self._job(truth)
        held = [step for step in candidates if not self._caution.may_submit(step, known)]
        for step in held:
            del candidates[step]
        candidates, awaited = with_servers(self._run, candidates, known)
        jobs = (known[step].job for step in awaited if known[step].state.settled)
        self._serving = {job for job in jobs if job is not None}
        return candidates, in_flight

    def _job(self, truth: Truth) -> str | None:
        """Return the job that others may wait for: one in Slurm, here, and known to live."""
        attempt = truth.attempt
        has_job = truth.life is Life.ALIVE and attempt is not None and "batch" in attempt.claim
        return truth.standing.job if has_job else None

    def end_stopped(self, standings: Mapping[str, Standing]) -> None:
        """Have Slurm end the elements in which nothing is left but what was stopped singly.

        Whoever stopped it has asked for that, if it could: not for what was just being submitted.
        """
        found = (standings.get(step) for step in self._stopped)
        live = {s.job for s in found if s is not None and s.state in _IN_SLURM}
        if live <= self._told_to_end:
            return
        # Of an element's other steps, which may wait for others, nothing is known in this pass.
        try:
            self._told_to_end.update(end_stopped(self._run, fold_all(self._run, self._watch)))
        except SchedulerError:
            return  # The next pass asks again.

    def _note_stopped(self) -> None:
        self._stopped = self._run.stopped
        self._caution.spared = with_all_below(self._run.instances, self._stopped)

    def stop_if_hopeless(self, standings: Mapping[str, Standing]) -> None:
        """Cancel the run where its policy says that enough has failed."""
        why = self._caution.why_stop(standings)
        if why is not None:
            mark_cancelled(self._run, why)
            cancel_run(self._run)

    def mend(self) -> None:
        """Find the jobs of interrupted submissions, or give back what never became one.

        Of this run, and of other runs where one of our steps was met in it.
        """
        self._seen.clear()
        self._note_stopped()
        met, self._watch.unanswered = self._watch.unanswered, {}
        known = {token: (place, driver) for token, (place, driver, _) in met.items()}
        for batch in batches.unanswered(self._run.place):
            known[batch.token] = (self._run.place, Driver.from_json(batch.driver or {}))
        self.is_awaiting = False
        for token, (place, driver) in known.items():
            life = self._watch.life(driver)
            if life is Life.ENDED:
                self._mend(place, token)
            elif driver != self._driver:
                self.is_awaiting = True

    def _mend(self, place: RunPaths, token: str) -> None:
        if token not in batches.tokens(place):
            # It was not submitted, for that is recorded before.
            batches.record_void(place, token, "its submission was interrupted")
            return
        batch = batches.read_batch(place, token)
        if batch.cluster == self._watch.cluster:
            Submission(place, self._watch.queue).recover(batch)

    @property
    def is_unsure(self) -> bool:
        """Whether another process submits something of the run, or died over it."""
        is_told_of = bool(self._watch.unanswered) and self._watch.queue.trouble is None
        return self.is_awaiting or is_told_of

    def arm(self, standings: Mapping[str, Standing]) -> str | None:
        """See that an advance job waits for jobs of the run to end.

        Returns why that could not be done, in words, or None.
        """
        self.is_to_arm = False
        if not self._advance_job.is_wanted:
            return self._advance_job.instead() if self._is_alive(standings) else None
        if not self._is_alive(standings):
            return None
        try:
            self._advance_job.arm(self._awaited(standings), _fingerprint(standings))
        except SchedulerError as error:
            return f"the advance job was not submitted: {error}; {self._advance_job.instead()}"
        return None

    def disarm(self) -> None:
        """End the advance job that waits: there is nothing left for it to do."""
        self._advance_job.disarm()

    def _arm_early(self, job: str) -> None:
        if not self._advance_job.is_wanted:
            return
        try:
            # That job may be one that stays.
            self._advance_job.arm(
                [] if any(map(self._stays, self._run.shared_elements)) else [job], ""
            )
        except SchedulerError:
            return  # `arm` tells, when all has been submitted.

    def _awaited(self, standings: Mapping[str, Standing]) -> list[str]:
        """Return the jobs whose end is news."""
        live = ((step, s.job) for step, s in standings.items() if s.state in _IN_SLURM)
        elements = [job for step, job in live if job and not self._stays(step)]
        elements += sorted(self._serving)
        if self._caution.is_watchful:
            # Of a run that is to be stopped when it fails, the first end of any element is news.
            return list(dict.fromkeys(elements))
        return list(dict.fromkeys(job.partition("_")[0] for job in elements))

    def _stays(self, step: str) -> bool:
        """Return whether the job of `step` goes on for a server when all in it has ended."""
        server = self._run.shared_elements.get(step)
        return server is not None and is_kept(self._run.instances[server])

    def _is_alive(self, standings: Mapping[str, Standing]) -> bool:
        """Return whether something of the run is in Slurm's hands, or waits for room there."""
        in_hand = any(s.state in _IN_SLURM for s in standings.values())
        return in_hand or self._is_full or bool(self._serving)

    def _close(self, instance: Instance, truth: Truth) -> None:
        """Record for the job how its attempt ended; has no effect where it did itself."""
        assert truth.attempt is not None
        standing = truth.standing
        records.end(
            self._run.paths.records(instance.key),
            truth.attempt.number,
            standing.state,
            reason=Reason(standing.reason) if standing.reason else None,
            message=standing.message,
        )

    def _candidate(self, instance: Instance, truth: Truth) -> Candidate:
        number = truth.attempt.number + 1 if truth.attempt is not None else 1
        attempts = attempts_in_round(self._run, instance, self._before)
        changes = changes_for(attempts, self._terms.retry(instance))
        return Candidate(instance, number, changes, was_refused(truth.attempt))

    def _cancel_hopeless(self) -> None:
        """Cancel what waits for a job that did not succeed, where Slurm leaves it waiting."""
        jobs = sorted(self._watch.hopeless)
        self._watch.hopeless.clear()
        cancel_jobs(jobs)


def _fingerprint(standings: Mapping[str, Standing]) -> str:
    """Return a text that is another one when something has happened."""
    # Not the number of the attempt: one that a full queue refuses is counted as well.
    told = sorted((step, s.state.value, s.job) for step, s in standings.items())
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _all_known(instance: Instance, known: Mapping[str, Standing]) -> bool:
    return all(parent in known for parent in instance.parents)
