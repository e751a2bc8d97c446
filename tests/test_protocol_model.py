"""Drivers, observers, crashes and purges in any interleaving, down to single system calls.

The real code runs (`advance`, the worker, publishing, records, links) on a real folder; see
`simulation` for how it is made to take turns. Hypothesis searches and shrinks interleavings; the
seeded simulation adds a filesystem on which names become visible late.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from crash_scenarios import KEY, make_instance
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import Actor, Work, World, drive, published, truth_of

from nexa_hpc import worker
from nexa_hpc.core import records, runs
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.states import State

MOST_ACTORS = 4


class Case:
    """A world in which several runs want the same result, and what was seen of it."""

    def __init__(self, seed: int, outputs: int, *, lag: bool = False) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="model-"))
        names = ["out"] if outputs == 1 else ["a", "b"]
        self.instance: Instance = make_instance(outputs={name: f"out/{name}" for name in names})
        self.paths = ProjectPaths.at(self.home)
        self.places = list(self.instance.artifact_paths(self.paths).values())
        self.world = World(self.home, seed, lag=lag)
        self.work = Work(self.world)
        self.world._patch.setattr(worker, "find_handler", lambda uses, root: self.work)
        self.seen: dict[Path, str] = {}
        self.ends: dict[int, object] = {}
        self.purges = 0

    def close(self) -> None:
        self.world.close()
        shutil.rmtree(self.home)

    def run(self, pipeline: str) -> runs.Run:
        """Record a run, read once: Python 3.11 holds a lock while it fills a cached property."""
        run = runs.create_run(self.paths, pipeline, {"file": None}, [self.instance])
        assert run.request and run.instances and not run.secrets
        return run

    def start(self) -> Actor:
        """Start another pipeline's run in another process."""
        name = f"p{len(self.world.actors)}"
        run = self.run(name)
        return self.world.spawn(name, lambda actor: drive(self.world, actor, run))

    def observe(self) -> Actor:
        """Start a process that asks once where things stand."""
        run = self.run("seen")

        def ask(actor: Actor) -> None:
            truth = truth_of(self.world, run, self.instance)
            if not any(a.silent for a in self.world.actors):
                failed = truth.standing.state is State.FAILED
                assert not (failed and self.is_done()), f"{truth.standing} over a valid COMPLETE"

        return self.world.spawn("observer", ask)

    def moving(self) -> list[Actor]:
        return [actor for actor in self.world.actors if not actor.ended]

    def is_done(self) -> bool:
        return all(published(place) is not None for place in self.places)

    def purge(self) -> None:
        """Do what a scratch purge does: files of a result go."""
        for place in self.places:
            (place / "one").unlink(missing_ok=True)
            self.seen.pop(place, None)
        self.purges += 1

    def check(self) -> None:
        """Assert what must hold at every moment."""
        for place in self.places:
            found = published(place)
            if place in self.seen:
                assert found == self.seen[place], f"a result changed or went: {self.seen[place]}"
            if found is not None:
                self.seen[place] = found
        self.check_records()
        for name in self.instance.outputs:
            link = self.home / "out" / name
            if os.path.lexists(link) and not self.purges:
                assert published(link.resolve()) is not None, "a link leads to nothing"

    def check_records(self) -> None:
        attempts = records.read_attempts(self.paths.records(KEY))
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        assert all(a.end is not None for a in attempts[:-1]), "n+1 is claimed when n has ended"
        for attempt in attempts:
            if attempt.end is None:
                continue
            first = self.ends.setdefault(attempt.number, attempt.end)
            assert attempt.end == first, "an end changed"
            driver = self.world.actors[attempt.claim["driver"]["pid"]]
            if driver.fair:
                assert attempt.end["state"] == "COMPLETED", f"made to fail: {attempt.end}"
        if attempts and self.is_done():
            run = runs.find_run(self.paths, None)
            assert truth_of(self.world, run, self.instance).standing.state is State.COMPLETED

    def finish(self) -> None:
        """Let one more driver and all others come to their ends; all must be done then."""
        last = self.start()
        while self.moving():
            for actor in self.moving():
                self.world.step(actor, 25)
        self.check()
        assert last.fair and self.is_done()
        assert not [*self.home.glob("artifacts/.store/*/*.tmp.*")] or not self.all_fair()
        if self.all_fair() and not self.purges:
            assert len(self.work.executions) == 1, self.work.executions

    def all_fair(self) -> bool:
        return all(actor.fair for actor in self.world.actors)


class Protocol(RuleBasedStateMachine):
    """Any interleaving that Hypothesis thinks of."""

    case: Case | None = None

    @initialize(seed=st.integers(0, 9), outputs=st.sampled_from([1, 2]))
    def begin(self, seed: int, outputs: int) -> None:
        self.case = Case(seed, outputs)
        self.case.start()

    def moving(self) -> list[Actor]:
        return self.case.moving() if self.case else []

    @precondition(lambda self: self.case and len(self.case.world.actors) < MOST_ACTORS)
    @rule()
    def start(self) -> None:
        self.case.start()

    @precondition(lambda self: self.case and len(self.case.world.actors) < 2 * MOST_ACTORS)
    @rule()
    def observe(self) -> None:
        self.case.observe()

    @rule()
    def rest(self) -> None:
        """Nothing happens; there is always a rule to choose."""

    @precondition(lambda self: self.moving())
    @rule(data=st.data(), calls=st.integers(1, 60))
    def move(self, data: st.DataObject, calls: int) -> None:
        self.case.world.step(data.draw(st.sampled_from(self.moving()), label="actor"), calls)

    @precondition(lambda self: self.moving())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.case.world.kill(data.draw(st.sampled_from(self.moving()), label="actor"))

    @precondition(lambda self: self.moving())
    @rule(data=st.data())
    def silence(self, data: st.DataObject) -> None:
        """Others take it for dead; it works on."""
        data.draw(st.sampled_from(self.moving()), label="actor").silent = True

    @precondition(lambda self: self.case and self.case.seen)
    @rule()
    def purge(self) -> None:
        self.case.purge()

    @invariant()
    def holds(self) -> None:
        if self.case:
            self.case.check()

    def teardown(self) -> None:
        if self.case is None:
            return
        try:
            self.case.finish()
        finally:
            self.case.close()


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# ------------------------------------------------------------------- seeded, with a late filesystem


@contextmanager
def logged(seed: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.args = (f"seed {seed}: {error}",)
        raise


def simulate(seed: int, *, lag: bool, harm: float) -> None:
    """Play one history: drivers start, move, and with chance `harm` are killed or fall silent."""
    chance = Random(seed)
    case = Case(seed, outputs=chance.choice([1, 2]), lag=lag)
    try:
        for _ in range(chance.randint(2, 3)):
            case.start()
        for _ in range(chance.randint(5, 60)):
            if not case.moving():
                break
            if chance.random() < 0.1:
                case.observe()
            actor = chance.choice(case.moving())
            if chance.random() < harm:
                if chance.random() < 0.5:
                    case.world.kill(actor)
                else:
                    actor.silent = True
            case.world.step(actor, chance.randint(1, 40))
            case.check()
        case.finish()
    finally:
        case.close()


@pytest.mark.parametrize("harm", [0.0, 0.1], ids=["all live", "some die"])
@pytest.mark.parametrize("lag", [False, True], ids=["at once", "late"])
def test_whoever_moves_when_there_is_one_result(lag: bool, harm: float) -> None:
    for seed in range(25):
        with logged(seed):
            simulate(seed, lag=lag, harm=harm)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("lag", [False, True], ids=["at once", "late"])
def test_whoever_moves_when_there_is_one_result_in_many_histories(lag: bool, harm: float) -> None:
    for seed in range(1000, 1250):
        with logged(seed):
            simulate(seed, lag=lag, harm=harm)
