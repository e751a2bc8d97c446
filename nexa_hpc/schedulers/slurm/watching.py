"""Whether the jobs of attempts live, by what Slurm says and by what was recorded when submitting.

`Observer` is what `standings.fold` asks; it reads one snapshot of the queue for a whole run. Called
by `advance` and `status`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.core import batches, truths
from nexa_hpc.core.batches import Answer, Batch
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.paths import ProjectPaths, RunPaths
from nexa_hpc.core.records import Attempt
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.errors import StateError
from nexa_hpc.schedulers.slurm import words
from nexa_hpc.schedulers.slurm.here import this_cluster
from nexa_hpc.schedulers.slurm.queue import Queue, Snapshot, Word
from nexa_hpc.schedulers.slurm.terms import Terms

GRACE_S = 30.0
"""How long a record may take to become visible here (NFS keeps old listings for 30 s)."""
LAG_S = 300.0
"""How long accounting may know less than slurmctld, which sends it what happens when it can."""


class Observer(Watch):
    """Observes processes and the jobs of one cluster."""

    def __init__(self, paths: ProjectPaths, queue: Queue, cluster: str) -> None:
        super().__init__(paths.state)
        self.queue = queue
        self.cluster = cluster
        self.hopeless: set[str] = set()
        """Jobs that wait for what can never come."""
        self.unanswered: dict[str, tuple[RunPaths, Driver, Life]] = {}
        """Batches met that are claimed for and have no answer: token -> run, who submits, its life.

        Of any run: who runs a pipeline anew meets what a killed process left half-done."""
        self._places: dict[str, _Batches] = {}

    def job(self, paths: ProjectPaths, key: str, attempt: Attempt) -> tuple[Life, Standing]:
        """See `truths.Observer`."""
        claim = attempt.claim
        if claim["cluster"] != self.cluster:
            message = f"on cluster {claim['cluster']}; ask there"
            return Life.UNKNOWN, Standing(attempt.state, message=message)
        known = self._batches(paths, claim)
        batch, answer = known.batch(claim["batch"]), known.answer(claim["batch"])
        if answer is None or batch is None:
            return self._without_job(known.place, claim, attempt)
        index = claim.get("element", batch.index_of.get((key, attempt.number)))
        if index is None:
            return _ended(State.PENDING, "given back: another was first")
        is_first = batch.elements[index][0].key == key
        index = index if batch.width > 1 else None
        life, standing = self._with_job(known, batch, answer, index, attempt)
        has_failed = life is Life.ENDED and standing.state is State.FAILED
        if has_failed and attempt.start is None and not is_first:
            return _ended(State.PENDING, "given back: its job ended before its turn")
        return life, standing

    def _batches(self, paths: ProjectPaths, claim: Mapping[str, Any]) -> _Batches:
        place = batches.place_of(paths, claim)
        return self._places.setdefault(str(place.folder), _Batches(place))

    def _without_job(
        self, place: RunPaths, claim: Mapping[str, Any], attempt: Attempt
    ) -> tuple[Life, Standing]:
        if attempt.start is not None and not attempt.is_open:
            # An element records its answer first: the folder of its run is gone.
            return _ended(State.PENDING, "nothing is known of its job any more")
        if attempt.start is not None:
            # An element runs before the answer to its submission was recorded.
            return Life.ALIVE, Standing(State.RUNNING, job=attempt.start.get("job"))
        if batches.is_void(place, claim["batch"]):
            return _ended(State.PENDING, "given back: it was not submitted")
        driver = Driver.from_json(claim["driver"])
        life = self.life(driver)
        self.unanswered[claim["batch"]] = (place, driver, life)
        if life is Life.ENDED:
            message = f"its submission by {driver} was interrupted; `resume` mends it"
            return Life.UNKNOWN, Standing(State.SUBMITTED, message=message)
        return Life.ALIVE, Standing(State.SUBMITTED, message=f"being submitted by {driver}")

    def _with_job(
        self, known: _Batches, batch: Batch, answer: Answer, index: int | None, attempt: Attempt
    ) -> tuple[Life, Standing]:
        job = answer.job
        text = job if index is None else f"{job}_{index}"
        snapshot = self.queue.look()
        word = snapshot.word(job, index, batch.name)
        if word is None and not _is_new(snapshot, answer):
            word = self.queue.recall(known.jobs()).word(job, index, batch.name)
        if word is None or (word.accounted and words.lives(word.state)):
            life, standing = self._absent(snapshot, answer, attempt, text)
        else:
            life, standing = self._said(word, text, attempt)
        if self.queue.trouble is not None and life is not Life.ENDED:
            told = "Slurm does not answer"
            message = f"{told}; last heard: {standing.message}" if standing.message else told
            standing = standing._replace(message=message)
        return life, standing

    def _said(self, word: Word, text: str, attempt: Attempt) -> tuple[Life, Standing]:
        state = words.plain(word.state)
        if state in words.WAITING:
            if words.cannot_start(word.reason):
                self.hopeless.add(text)
            again = "requeued; " if attempt.start is not None else ""
            message = again + words.waits(word.reason)
            return Life.ALIVE, Standing(State.SUBMITTED, message=message, job=text)
        if state in words.RUNNING:
            running = f"on {word.nodes}" if attempt.start is not None else "starting"
            return Life.ALIVE, Standing(State.RUNNING, message=running, job=text)
        if state not in words.ENDS:
            message = f"Slurm says {word.state}"
            return Life.UNKNOWN, Standing(attempt.state, message=message, job=text)
        end, reason, message = words.ended(
            state, has_started=attempt.start is not None, reason=word.reason
        )
        if reason is Reason.LOST and word.ended_ago_s() < GRACE_S:
            message = "its job has ended; its records are waited for"
            return Life.UNKNOWN, Standing(attempt.state, message=message, job=text)
        if end is State.FAILED and word.nodes:
            message += f" (job {text} on {word.nodes})"
        return _ended(end, message, reason, text)

    def _absent(
        self, snapshot: Snapshot, answer: Answer, attempt: Attempt, text: str
    ) -> tuple[Life, Standing]:
        """Say what it means that Slurm says nothing of a job: by itself, nothing.

        It is lost when nothing was said of it for a while, in answers that did come.
        """
        standing = Standing(attempt.state, job=text)
        if self.queue.trouble is not None:
            return Life.UNKNOWN, standing
        if _is_new(snapshot, answer):
            return Life.ALIVE, standing
        if self.queue.accounting_trouble is not None:
            message = "its job has left the queue, and Slurm's accounting does not answer"
            return Life.UNKNOWN, standing._replace(message=message)
        since = self.queue.absent_since(text)
        if snapshot.asked_at - since < (LAG_S if self.queue.has_accounting else GRACE_S):
            message = "Slurm says nothing of its job; its records are waited for"
            return Life.UNKNOWN, standing._replace(message=message)
        message = f"Slurm knows job {text} no more, and it left no end record"
        return _ended(State.FAILED, message, Reason.LOST, text)


def observer_of(run: Run) -> truths.Observer:
    """Return what observes `run` from this host: its jobs, too, where it has some."""
    terms = Terms.of(run.request)
    cluster = this_cluster() if terms is not None else None
    if terms is None or cluster is None:
        return truths.Processes(run.paths.state)
    return Observer(run.paths, terms.queue(), cluster)


def _is_new(snapshot: Snapshot, answer: Answer) -> bool:
    """Return whether a job is so new that a question may have missed it."""
    return snapshot.asked_at - answer.answered_at < GRACE_S


class _Batches:
    """The batches of one run, each read once; answers, until there is one."""

    def __init__(self, place: RunPaths) -> None:
        self.place = place
        self._read: dict[str, Batch | None] = {}
        self._answers: dict[str, Answer | None] = {}

    def batch(self, token: str) -> Batch | None:
        if token not in self._read or self._read[token] is None:
            try:
                self._read[token] = batches.read_batch(self.place, token)
            except (StateError, OSError):
                self._read[token] = None  # Claimed, and not recorded yet.
        return self._read[token]

    def answer(self, token: str) -> Answer | None:
        if self._answers.get(token) is None:
            self._answers[token] = batches.answer_to(self.place, token)
        return self._answers[token]

    def jobs(self) -> Iterator[str]:
        """Yield all jobs of the run: what accounting is asked for, it is asked for at once."""
        for token in batches.tokens(self.place):
            answer = self.answer(token)
            if answer is not None:
                yield answer.job


def _ended(
    state: State, message: str, reason: Reason | None = None, job: str | None = None
) -> tuple[Life, Standing]:
    word = reason.value if reason is not None else None
    return Life.ENDED, Standing(state, reason=word, message=message, job=job)
