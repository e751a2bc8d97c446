"""The fold: what is true of an instance, from the store, the records and the processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planned import instance

from nexa_hpc import create_artifact
from nexa_hpc.core import records
from nexa_hpc.core.drivers import Driver, Life
from nexa_hpc.core.instances import SKIP, Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import Run, begin_round, create_run, mark_cancelled
from nexa_hpc.core.standings import blocked, fold, fold_all
from nexa_hpc.core.states import Reason, Standing, State

KEY = "ab" * 32
DRIVER = Driver("node1", "machine", 7, "1", "x.json")
CLAIM = {"run": "demo-1", "driver": DRIVER.to_json(), "job": str(DRIVER), "log": "logs/s.1.log"}


class Lives:
    """A watch that says what it is told to."""

    def __init__(self, life: Life = Life.ENDED) -> None:
        self.said = life

    def life(self, driver: Driver) -> Life:
        assert driver == DRIVER
        return self.said


class Case:
    """One instance of a run, and what happened to it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.paths = ProjectPaths.at(root)
        self.instance = instance(KEY, **changes)
        self.watch = Lives()
        self.run: Run = create_run(self.paths, "demo", {}, [self.instance])
        self.records = self.paths.records(KEY)

    def publish(self) -> None:
        create_artifact(self.paths.artifact(KEY), lambda out: (out / "x").write_text("1"))

    def purge(self) -> None:
        (self.paths.artifact(KEY) / "x").unlink()

    def claim(self, number: int = 1) -> None:
        records.claim(self.records, number, CLAIM)

    def begin(self, number: int = 1) -> None:
        self.claim(number)
        records.start(self.records, number, {})

    def end(self, state: State, number: int = 1, **fields: Any) -> None:
        self.begin(number)
        records.end(self.records, number, state, **fields)

    def standing(self) -> Standing:
        return fold(self.run, self.instance, self.run.attempts_before(), self.watch).standing


@pytest.fixture
def case(project: Path) -> Case:
    return Case(project)


# ----------------------------------------------------------------------------------------- in Slurm

RETRY = {"exception": {"times": 1}, "timeout": {"times": 0}}
ON_SLURM = {"slurm": {"cluster": {}, "policy": {"retry": RETRY}}}


def slurm_case(project: Path, **changes: Any) -> Case:
    """Return a case whose run has its step in Slurm."""
    found = Case(project, scheduler="slurm", **changes)
    found.run = create_run(found.paths, "demo", ON_SLURM, [found.instance])
    return found


def test_a_failure_that_is_to_be_tried_again_is_pending_and_says_so(project: Path) -> None:
    case = slurm_case(project)
    case.end(State.FAILED, reason=Reason.EXCEPTION, message="it broke")
    shown = fold_all(case.run)["s"]
    assert (shown.state, shown.message) == (State.PENDING, "to be tried again: it broke")
    case.end(State.FAILED, 2, reason=Reason.EXCEPTION, message="it broke")
    assert fold_all(case.run)["s"].state is State.FAILED


def test_what_others_tried_at_a_purged_result_spends_none_of_a_runs_tries(project: Path) -> None:
    case = slurm_case(project, action=SKIP)
    for number in (1, 2):
        case.end(State.FAILED, number, reason=Reason.EXCEPTION)
    assert case.standing().state is State.PENDING
    records.claim(case.records, 3, {**CLAIM, "run": case.run.id})
    case.end(State.FAILED, 3, reason=Reason.EXCEPTION, message="it broke")
    assert case.standing().state is State.FAILED
    assert fold_all(case.run)["s"].message == "to be tried again: it broke"


@pytest.mark.parametrize(
    ("reason", "retry"),
    [(Reason.TIMEOUT, {}), (Reason.EXCEPTION, {"exception": {"times": 0}}), (None, {})],
)
def test_a_failure_is_final_where_its_reason_or_the_step_says_so(
    project: Path, reason: Reason | None, retry: dict[str, Any]
) -> None:
    case = slurm_case(project, retry=retry)
    case.end(State.FAILED, reason=reason)
    assert fold_all(case.run)["s"].state is State.FAILED


def test_a_failure_in_a_cancelled_run_is_not_tried_again(project: Path) -> None:
    case = slurm_case(project)
    case.end(State.FAILED, reason=Reason.EXCEPTION)
    mark_cancelled(case.run)
    assert fold_all(case.run)["s"].state is State.FAILED


def test_an_attempt_that_its_own_job_goes_on_with_is_in_slurms_hands(project: Path) -> None:
    case = slurm_case(project)
    case.begin()
    records.end(case.records, 1, State.PENDING, reason=Reason.TIMEOUT, requeued=True)
    (attempt,) = records.read_attempts(case.records)
    assert attempt.is_open
    assert attempt.state is State.SUBMITTED


# --------------------------------------------------------------------------------------- precedence


def test_nothing_recorded_is_pending(case: Case) -> None:
    assert case.standing() == Standing(State.PENDING)


@pytest.mark.parametrize("life", Life)
def test_a_valid_result_outranks_a_process_that_lives_or_is_gone(case: Case, life: Life) -> None:
    case.begin()
    case.watch.said = life
    case.publish()
    found = case.standing()
    assert (found.state, found.reason, found.message) == (State.COMPLETED, None, "")
    assert (found.attempt, found.job) == (1, "node1:7")


def test_a_valid_result_outranks_the_record_of_a_failure(case: Case) -> None:
    case.end(State.FAILED, reason=Reason.EXCEPTION, message="after publishing")
    case.publish()
    assert case.standing().state is State.COMPLETED


@pytest.mark.parametrize("life", [Life.ALIVE, Life.UNKNOWN])
def test_a_process_that_may_live_is_never_taken_for_lost(case: Case, life: Life) -> None:
    case.watch.said = life
    case.claim()
    assert case.standing().state is State.SUBMITTED
    case.begin()
    found = case.standing()
    assert found.state is State.RUNNING
    assert found.message.startswith("in run demo-1 on node1:7")
    assert ("not heard of yet" in found.message) == (life is Life.UNKNOWN)
    assert found.log == "logs/s.1.log"
    assert found.started_at is not None


def test_a_newer_live_attempt_outranks_an_older_end(case: Case) -> None:
    case.end(State.FAILED, 1, reason=Reason.EXCEPTION)
    case.begin(2)
    case.watch.said = Life.ALIVE
    assert (case.standing().state, case.standing().attempt) == (State.RUNNING, 2)


@pytest.mark.parametrize("begin", [Case.claim, Case.begin])
def test_a_process_that_is_gone_without_an_end_record_is_lost(
    case: Case, begin: Callable[[Case], None]
) -> None:
    begin(case)
    found = case.standing()
    assert (found.state, found.reason) == (State.FAILED, "lost")
    assert found.message == "process node1:7 is gone and left no end record"


@pytest.mark.parametrize("how", ["published", "only its end recorded"])
def test_a_process_that_came_to_its_end_while_we_looked_is_not_lost(case: Case, how: str) -> None:
    case.begin()

    class Ending(Lives):
        def life(self, driver: Driver) -> Life:
            if how == "published":
                case.publish()
            records.end(case.records, 1, State.COMPLETED)
            return Life.ENDED

    case.watch = Ending()
    expected = State.COMPLETED if how == "published" else State.PENDING
    assert case.standing().state is expected


def test_an_end_record_tells_state_reason_message_and_times(case: Case) -> None:
    case.end(State.FAILED, reason=Reason.TIMEOUT, message="too slow")
    found = case.standing()
    assert (found.state, found.reason, found.message) == (State.FAILED, "timeout", "too slow")
    assert found.started_at is not None and found.ended_at is not None


def test_the_newest_end_is_the_answer(case: Case) -> None:
    case.end(State.FAILED, 1, reason=Reason.EXCEPTION)
    case.end(State.CANCELLED, 2, message="stopped")
    assert (case.standing().state, case.standing().attempt) == (State.CANCELLED, 2)


def test_a_failure_from_before_the_round_is_tried_again(case: Case) -> None:
    case.end(State.FAILED, reason=Reason.EXCEPTION)
    begin_round(case.run)
    truth = fold(case.run, case.instance, case.run.attempts_before(), case.watch)
    assert truth.standing == Standing(State.PENDING)
    assert truth.attempt is not None and truth.attempt.number == 1
    case.end(State.FAILED, 2, reason=Reason.EXCEPTION)
    assert case.standing().state is State.FAILED


def test_a_record_of_completion_without_the_result_is_pending(case: Case) -> None:
    case.end(State.COMPLETED)
    case.publish()
    assert case.standing().state is State.COMPLETED
    case.purge()
    found = case.standing()
    assert (found.state, found.message) == (State.PENDING, "its result was purged: x is gone")
    shutil.rmtree(case.paths.artifact(KEY))
    found = case.standing()
    assert (found.state, found.message) == (State.PENDING, "its result is not in the store")


def test_a_result_that_was_there_at_planning_is_skipped_with_the_reason(project: Path) -> None:
    case = Case(project, action=SKIP, reason="cached")
    case.publish()
    found = case.standing()
    assert found == Standing(State.SKIPPED, message="cached: made elsewhere")
    case.purge()
    assert case.standing().state is State.PENDING
    assert "purged" in case.standing().message


def test_half_of_the_outputs_is_no_result(project: Path) -> None:
    case = Case(project, outputs={"a": "artifacts/a", "b": "artifacts/b"})
    create_artifact(case.paths.artifact(KEY, "a"), lambda out: None)
    assert case.standing().state is State.PENDING
    create_artifact(case.paths.artifact(KEY, "b"), lambda out: None)
    assert case.standing().state is State.COMPLETED


# ------------------------------------------------------------------------------------------ effects


def test_an_effect_that_held_at_planning_is_skipped(project: Path) -> None:
    case = Case(project, effect=True, outputs={}, action=SKIP, reason="holds: m@1")
    assert case.standing() == Standing(State.SKIPPED, message="holds: m@1")


def test_an_effect_is_done_when_its_record_says_so_in_this_round(project: Path) -> None:
    case = Case(project, effect=True, outputs={})
    case.end(State.COMPLETED)
    found = case.standing()
    assert (found.state, found.attempt, found.message) == (State.COMPLETED, 1, "")
    begin_round(case.run)
    assert case.standing().state is State.PENDING
    case.end(State.SKIPPED, 2)
    assert case.standing().state is State.SKIPPED


# ------------------------------------------------------------------------------------------ the run


def chain(project: Path, *steps: Instance) -> Run:
    return create_run(ProjectPaths.at(project), "demo", {}, steps)


def test_below_a_failure_everything_is_blocked_and_beside_it_nothing_is(project: Path) -> None:
    run = chain(
        project,
        instance("01" * 32, step="a"),
        instance("02" * 32, step="b", parents=("a",)),
        instance("03" * 32, step="c", parents=("b",)),
        instance("04" * 32, step="d"),
    )
    folder = run.paths.records("01" * 32)
    records.claim(folder, 1, CLAIM)
    records.end(folder, 1, State.FAILED, reason=Reason.EXCEPTION)
    found = fold_all(run, Lives())
    assert {step: standing.state.value for step, standing in found.items()} == {
        "a": "FAILED",
        "b": "BLOCKED",
        "c": "BLOCKED",
        "d": "PENDING",
    }
    assert found["b"].message == "step 'a' failed"
    assert found["c"].message == "step 'b' is blocked"


def test_what_is_done_stays_done_below_a_failure(project: Path) -> None:
    run = chain(
        project, instance("01" * 32, step="a"), instance("02" * 32, step="b", parents=("a",))
    )
    create_artifact(run.paths.artifact("02" * 32), lambda out: None)
    records.end(run.paths.records("01" * 32), 1, State.FAILED)
    assert fold_all(run, Lives())["b"].state is State.COMPLETED


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.FAILED, "step 'p' failed"),
        (State.BLOCKED, "step 'p' is blocked"),
        (State.CANCELLED, "step 'p' was stopped"),
        (State.PENDING, None),
        (State.SUBMITTED, None),
        (State.RUNNING, None),
        (State.COMPLETED, None),
        (State.SKIPPED, None),
    ],
)
def test_a_step_is_blocked_by_what_will_not_succeed(state: State, words: str | None) -> None:
    found = blocked(
        instance(parents=("ok", "p")), {"ok": Standing(State.SKIPPED), "p": Standing(state)}
    )
    assert (found.message if found else None) == words


def test_without_a_watch_the_processes_of_this_machine_are_asked(project: Path) -> None:
    run = chain(project, instance(KEY))
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    records.claim(run.paths.records(KEY), 1, {**CLAIM, "driver": driver.to_json()})
    assert fold_all(run)["s"].state is State.SUBMITTED


# -------------------------------------------------------------------------------------- every story

ENDS = st.sampled_from([State.COMPLETED, State.FAILED, State.CANCELLED])
EVENTS = st.one_of(
    st.sampled_from(["claim", "start", "publish", "purge", "round"]), ENDS, st.sampled_from(Life)
)


class Model:
    """What the fold should say, from plain variables."""

    def __init__(self, effect: bool, action: str) -> None:
        self.effect, self.action = effect, action
        self.attempts: list[dict[str, Any]] = []
        self.before, self.published, self.life = 0, False, Life.ENDED

    @property
    def open(self) -> dict[str, Any] | None:
        return self.attempts[-1] if self.attempts and self.attempts[-1]["end"] is None else None

    def state(self) -> State:
        done = self.action == SKIP if self.effect else self.published
        if done:
            return State.SKIPPED if self.action == SKIP else State.COMPLETED
        if self.open is not None:
            if self.life is Life.ENDED:
                return State.FAILED
            return State.RUNNING if self.open["started"] else State.SUBMITTED
        if len(self.attempts) <= self.before:
            return State.PENDING
        end: State = self.attempts[-1]["end"]
        return State.PENDING if end is State.COMPLETED and not self.effect else end


def happen(event: Any, case: Case, model: Model) -> None:
    """Let `event` happen to both, where it can."""
    number = len(model.attempts)
    if isinstance(event, Life):
        case.watch.said = model.life = event
    elif event == "claim" and model.open is None:
        case.claim(number + 1)
        model.attempts.append({"started": False, "end": None})
    elif event == "start" and model.open is not None:
        case.begin(number)
        model.open["started"] = True
    elif isinstance(event, State) and model.open is not None:
        records.end(case.records, number, event)
        model.open["end"] = event
    elif event == "publish" and not model.effect and not model.published:
        shutil.rmtree(case.paths.artifact(KEY), ignore_errors=True)
        case.publish()
        model.published = True
    elif event == "purge" and model.published:
        case.purge()
        model.published = False
    elif event == "round":
        begin_round(case.run)
        # What is skipped is not tried, so its attempts are not of an earlier round; but where its
        # result has gone, it was.
        is_skipped = model.action == SKIP and model.published
        model.before = 0 if is_skipped else number - (model.open is not None)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.sampled_from(["RUN", SKIP]), st.lists(EVENTS, max_size=14))
@example(effect=False, action=SKIP, events=["claim", State.FAILED, "round"])
def test_whatever_happens_the_fold_says_what_a_simple_model_says(
    effect: bool, action: str, events: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outputs: dict[str, Any] = {} if effect else {"out": None}
        case = Case(Path(folder), effect=effect, action=action, outputs=outputs)
        model = Model(effect, action)
        for event in events:
            happen(event, case, model)
            assert case.standing().state is model.state(), (event, model.attempts)
