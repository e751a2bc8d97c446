"""Stopping and resuming single points of a sweep on the real cluster: waiting, running, packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gated import Gated
from slurm_fixtures import wait_until
from slurm_flows import POLICY, SlurmFlow

from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import find_run
from nexa_hpc.core.stops import stop_instances

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

DONE = ("COMPLETED", "COMPLETED")
STOPPED = (("CANCELLED", "BLOCKED"), ("CANCELLED", "CANCELLED"))
"""The latter where the second was claimed with the first, for one element."""


@pytest.fixture
def gated(slurm_flow: SlurmFlow) -> Iterator[Gated]:
    found = Gated(slurm_flow.project, slurm_flow.cli)
    yield found
    slurm_flow.cli("cancel", expect=None)  # Nothing of it may go on after a failure.


def submit(gated: Gated, *points: int, **policy: Any) -> None:
    driver = gated.start(points, scheduler="slurm", wait=False, policy=policy)
    assert driver.wait(180) == 1  # Nothing has succeeded yet.


def test_of_a_sweep_in_slurm_a_running_and_a_waiting_point_are_stopped(
    gated: Gated, slurm_flow: SlurmFlow
) -> None:
    submit(gated, 1, 2, 3, max_running=2)  # One of which is kept for `prep`.
    gated.wait_for(1)
    jobs = slurm_flow.jobs()
    for x in (3, 1):
        told = gated.cli("cancel", "--point", f"x={x}").stdout
        assert "2 steps stopped" in told and "Slurm asked to end 1 job" in told
        wait_until(lambda x=x: gated.at(x) in STOPPED, 30, f"x={x} to end")
    slurm_flow.cluster.wait(jobs["train@x=3"])
    gated.let_go(2)
    assert slurm_flow.settle()["eval@x=2"] == "COMPLETED"
    assert gated.begun() == [1, 2]
    assert gated.steps()["train@x=1"]["message"].startswith("stopped by ")
    assert "nothing is running or waiting" in gated.cli("cancel", "--point", "x=1").stdout
    slurm_flow.cli("advance", "flow-1")
    gated.let_go(1, 3)
    gated.cli("resume", "--point", "x=3", "--wait")
    assert gated.at(1) in STOPPED and (gated.at(2), gated.at(3)) == (DONE, DONE)
    slurm_flow.cli("advance", "flow-1")
    assert gated.begun() == [1, 2, 3]
    gated.cli("resume", "--wait")
    assert gated.begun() == [1, 1, 2, 3]
    assert set(gated.now().values()) == {"COMPLETED"}


def test_an_element_that_others_need_goes_on_without_the_stopped_point(
    gated: Gated, slurm_flow: SlurmFlow
) -> None:
    gated.let_go(0)
    submit(gated, 1, 2, 3, points_per_element=3)
    gated.wait_for(1)
    jobs = slurm_flow.jobs()
    assert len({jobs[f"train@x={x}"] for x in (1, 2, 3)}) == 1
    told = gated.cli("cancel", "--point", "x=1").stdout + gated.cli("cancel", "--point=x=3").stdout
    assert "Slurm" not in told
    gated.wait_for(1, 2)
    gated.let_go(2)
    now = slurm_flow.settle()
    assert (now["train@x=1"], now["train@x=2"], now["train@x=3"]) == (
        "CANCELLED",
        "COMPLETED",
        "CANCELLED",
    )
    assert gated.at(2) == DONE
    assert gated.begun() == [1, 2]


def test_an_element_ends_when_the_last_of_its_points_is_stopped(
    gated: Gated, slurm_flow: SlurmFlow
) -> None:
    submit(gated, 1, 2, points_per_element=2)
    gated.wait_for(1)
    job = slurm_flow.jobs()["train@x=1"]
    assert "Slurm" not in gated.cli("cancel", "--point", "x=2").stdout
    assert "Slurm asked to end 1 job" in gated.cli("cancel", "--point", "x=1").stdout
    slurm_flow.cluster.wait(job)
    slurm_flow.settle()
    assert gated.at(1) in STOPPED and gated.at(2) in STOPPED
    assert gated.begun() == [1]


def test_who_was_killed_before_asking_slurm_is_helped_by_the_next_look(
    gated: Gated, slurm_flow: SlurmFlow
) -> None:
    submit(gated, 1, 2)
    gated.wait_for(1, 2)
    run = find_run(ProjectPaths.at(slurm_flow.project), "flow-1")
    stop_instances(run.place, ["train@x=1", "eval@x=1"])
    slurm_flow.cli("advance", "flow-1")
    wait_until(lambda: gated.at(1) in STOPPED, 30, "the training at x=1 to end")
    gated.let_go(2)
    slurm_flow.settle()
    assert gated.at(2) == DONE


def test_a_point_goes_on_alone_where_others_failed_and_held_the_run_up(
    gated: Gated, slurm_flow: SlurmFlow
) -> None:
    slurm_flow.configure(policy=POLICY + "retry: {exception: {times: 1}}\n")
    for x in (1, 2):
        gated.let_fail(x)
        gated.let_go(x)
    submit(gated, 1, 2, 3, canary=1, stop_after={"failures": 1})
    wait_until(lambda: gated.at(1)[0] == "FAILED", 60, "the canary to fail")
    wait_until(lambda: "cancelled by" in gated.cli("status").stdout, 60, "the run to stop")
    begun = gated.begun()
    gated.let_go(3)
    gated.cli("resume", "--point", "x=3", "--wait")
    assert gated.at(3) == DONE
    assert gated.at(1) == ("FAILED", "BLOCKED")
    assert gated.begun() == sorted([*begun, 3])
