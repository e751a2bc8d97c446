"""Stopping and resuming parts of a run: points of a sweep, single steps; on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import RunCli
from flows import until
from gated import Gated
from swept import SweptStep, sweep

from nexa_hpc.core import records
from nexa_hpc.core.parts import named, part_to_resume, with_all_above, with_all_below
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import Run, begin_round, find_run, mark_cancelled
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Reason, State
from nexa_hpc.core.stops import stop_instances
from nexa_hpc.errors import UnknownNameError

DONE, STOPPED = ("COMPLETED", "COMPLETED"), ("CANCELLED", "BLOCKED")


@pytest.fixture
def gated(project: Path, run_cli: RunCli) -> Gated:
    return Gated(project, run_cli)


# -------------------------------------------------------------------------------- in real processes


def test_one_point_of_a_sweep_is_stopped_and_the_others_go_on(gated: Gated) -> None:
    driver = gated.start([1, 2, 3], jobs=2)
    gated.wait_for(1, 2)
    told = gated.cli("cancel", "--point", "x=3").stdout
    assert "2 steps stopped; `nexa-hpc resume flow-1` brings them back" in told
    told = gated.cli("cancel", "flow-1", "--point", "x=1").stdout
    assert "2 steps stopped, 1 of them asked to end" in told
    until(lambda: gated.at(1) == STOPPED, "the training at x=1 to end")
    assert (gated.at(2), gated.at(3)) == (("RUNNING", "PENDING"), STOPPED)
    assert gated.steps()["train@x=1"]["message"].startswith("stopped by ")
    gated.let_go(2)
    assert driver.wait(120) == 1
    assert gated.at(2) == DONE
    assert gated.begun() == [1, 2]
    told = gated.cli("cancel", "--point=x=1").stdout
    assert "nothing is running or waiting of --point x=1" in told


def test_a_point_goes_on_alone_and_a_later_resume_brings_back_the_others(gated: Gated) -> None:
    driver = gated.start([1, 2, 3], jobs=2)
    gated.wait_for(1, 2)
    run = find_run(ProjectPaths.at(gated.project), "flow-1")
    stop_instances(run.place, ["train@x=1", "train@x=3"])
    gated.let_go(2)
    assert driver.wait(120) == 1
    gated.let_go(1, 3)
    gated.cli("resume", "--point", "x=3", "--jobs=2")
    assert gated.begun() == [1, 2, 3]
    assert (gated.at(1), gated.at(2), gated.at(3)) == (STOPPED, DONE, DONE)
    message = gated.steps()["train@x=1"]["message"]
    assert message == "left out by `resume --point x=3`"
    gated.cli("resume")
    assert set(gated.now().values()) == {"COMPLETED"}
    assert gated.begun() == [1, 1, 2, 3]


def test_a_failure_at_another_point_stands_when_one_is_resumed(gated: Gated) -> None:
    for x in (1, 2):
        gated.let_fail(x)
        gated.let_go(x)
    assert gated.start([1, 2], jobs=2).wait(120) == 1
    gated.let_fail(1, fails=False)
    done = gated.cli("resume", "--point", "x=1")
    assert "run flow-1: 3 COMPLETED" in done.stdout
    assert (gated.at(1), gated.at(2)) == (DONE, ("FAILED", "BLOCKED"))
    assert gated.begun() == [1, 1, 2]
    gated.cli("resume", "--step", "eval@x=2", expect=1)
    assert gated.begun() == [1, 1, 2, 2]


def test_a_step_in_its_drivers_process_is_named_and_goes_on(gated: Gated) -> None:
    driver = gated.start([1, 2])
    gated.wait_for(1)
    told = gated.cli("cancel", "--point", "x=1").stdout
    assert "'train@x=1' runs in the process of its driver, which cannot be stopped singly" in told
    assert "`nexa-hpc cancel flow-1` stops the whole run" in told
    gated.let_go(1, 2)
    assert driver.wait(120) == 1
    assert (gated.at(1), gated.at(2)) == (("COMPLETED", "CANCELLED"), DONE)


def test_a_step_with_an_environment_of_its_own_is_stopped_singly(
    project: Path, run_cli: RunCli
) -> None:
    gated = Gated(project, run_cli, env={"setup": "true"})
    driver = gated.start([1, 2])
    gated.wait_for(1)
    assert "1 of them asked to end" in gated.cli("cancel", "--point", "x=1").stdout
    gated.wait_for(1, 2)
    gated.let_go(2)
    assert driver.wait(120) == 1
    assert (gated.at(1), gated.at(2)) == (STOPPED, DONE)


def test_a_step_is_stopped_at_all_points_and_at_one(gated: Gated) -> None:
    driver = gated.start([1, 2], jobs=2)
    gated.wait_for(1, 2)
    assert "1 step stopped;" in gated.cli("cancel", "--step", "eval@x=2").stdout
    assert "1 step stopped;" in gated.cli("cancel", "--step", "eval", "--point", "x=1").stdout
    told = gated.cli("cancel", "--step", "train").stdout
    assert "2 steps stopped, 2 of them asked to end" in told
    assert driver.wait(120) == 1
    assert gated.now() == {
        "prep": "COMPLETED",
        **dict.fromkeys(("train@x=1", "train@x=2"), "CANCELLED"),
        **dict.fromkeys(("eval@x=1", "eval@x=2"), "BLOCKED"),
    }


def test_what_nobody_has_heard_of_is_refused_and_nothing_is_written(gated: Gated) -> None:
    gated.let_go(1, 2)
    assert gated.start([1, 2], jobs=2).wait(120) == 0
    folder = gated.project / ".nexa_state/flow/runs/flow-1"
    for command in ("cancel", "resume"):
        told = gated.cli(command, "--point", "x=7", expect=2).stderr
        assert "no point 'x=7'" in told and "did you mean 'x=" in told
        assert "no step 'tran'" in gated.cli(command, "--step", "tran", expect=2).stderr
    assert not (folder / "stopped").exists()
    assert os.listdir(folder / "rounds") == ["1.json"]


# ------------------------------------------------------------------------------------- what is true

PREP = SweptStep("prep")
TRAIN = SweptStep("train", of=("x",), after=("prep",), fate=lambda _: "waiting")
EVAL = SweptStep("eval", of=("x", "k"), after=("train",), fate=lambda _: "waiting")
GRID = [{"x": x, "k": k} for x in (1, 2) for k in (1, 2)]


@pytest.fixture
def run(project: Path) -> Run:
    return sweep(project, GRID, PREP, TRAIN, EVAL)


def states(run: Run) -> dict[str, State]:
    return {step: standing.state for step, standing in fold_all(run).items()}


def fail(run: Run, step: str, number: int, state: State = State.FAILED) -> None:
    folder = run.paths.records(run.instances[step].key)
    records.claim(folder, number, {"run": run.id})
    reason = Reason.EXCEPTION if state is State.FAILED else None
    records.end(folder, number, state, reason=reason, message="it broke")


def test_a_point_owns_what_no_other_one_needs(run: Run) -> None:
    found = named(run, ["x=1,k=1"], None)
    assert found.own == {"eval@x=1,k=1"}
    assert found.shared == {"prep", "train@x=1"}
    both = named(run, ["x=1,k=1", "x=1,k=2"], None)
    assert both.own == {"train@x=1", "eval@x=1,k=1", "eval@x=1,k=2"}
    assert both.shared == {"prep"}
    assert named(run, ["x=1,k=1"], "train").shared == {"train@x=1"}
    with pytest.raises(UnknownNameError, match="names 2 points"):
        named(run, ["x=1"], None)


def test_what_is_above_and_below_is_found_in_the_graph(run: Run) -> None:
    assert with_all_above(run.instances, ["eval@x=1,k=1"]) == {"prep", "train@x=1", "eval@x=1,k=1"}
    below = {"train@x=1", "eval@x=1,k=1", "eval@x=1,k=2"}
    assert with_all_below(run.instances, ["train@x=1"]) == below
    assert with_all_below(run.instances, []) == frozenset()


def test_a_stop_counts_for_its_round_alone(run: Run) -> None:
    assert run.stopped == {}
    stop_instances(run.place, ["train@x=1"], "too slow")
    stop_instances(run.place, ["train@x=1", "train@x=2"])
    assert run.stopped.keys() == {"train@x=1", "train@x=2"}
    found = fold_all(run)["train@x=1"]
    assert found.state is State.CANCELLED and found.message.startswith("stopped by ")
    assert states(run)["eval@x=1,k=1"] is State.BLOCKED
    begin_round(run)
    assert run.stopped == {}
    assert states(run)["train@x=1"] is State.PENDING


def test_a_result_and_a_failure_outrank_a_stop(run: Run) -> None:
    fail(run, "train@x=1", 1)
    stop_instances(run.place, run.instances)
    now = states(run)
    assert (now["prep"], now["train@x=1"]) == (State.COMPLETED, State.FAILED)
    assert now["train@x=2"] is State.CANCELLED


def test_a_round_of_a_part_leaves_all_else_as_it_was(run: Run) -> None:
    fail(run, "train@x=1", 1)
    fail(run, "train@x=2", 1)
    part = part_to_resume(run, fold_all(run), ["x=1,k=1"], None)
    assert part is not None and part.chosen == {"prep", "train@x=1", "eval@x=1,k=1"}
    begin_round(run, part)
    now = states(run)
    assert (now["train@x=1"], now["eval@x=1,k=1"]) == (State.PENDING, State.PENDING)
    assert now["eval@x=1,k=2"] is State.CANCELLED
    assert (now["train@x=2"], now["eval@x=2,k=1"]) == (State.FAILED, State.BLOCKED)
    fail(run, "train@x=1", 2)
    begin_round(run, part_to_resume(run, fold_all(run), ["x=2,k=1"], None))
    now = states(run)
    assert (now["train@x=1"], now["train@x=2"]) == (State.FAILED, State.PENDING)
    begin_round(run)
    assert {now for step, now in states(run).items() if step != "prep"} == {State.PENDING}


def test_what_a_cancelled_run_has_left_is_not_brought_back_by_a_part_of_it(run: Run) -> None:
    fail(run, "train@x=2", 1, State.CANCELLED)
    mark_cancelled(run)
    begin_round(run, part_to_resume(run, fold_all(run), ["x=1,k=1"], "train"))
    assert not run.cancelled
    now = states(run)
    assert (now["train@x=1"], now["train@x=2"]) == (State.PENDING, State.CANCELLED)
