"""Two processes that want the same work: each step is executed once, and both are served."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flows import Flow, Process, alive, pids_in, until

Start = Callable[..., Process]


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start `nexa-hpc ARGS` in the background; what still runs at the end is killed."""
    started: list[Process] = []

    def start(*args: str | os.PathLike[str]) -> Process:
        started.append(Process(project, *args))
        return started[-1]

    yield start
    for process in started:
        if process.running():
            process.kill()
    for pid in alive(pids_in(project.parent / "pids")):
        os.kill(pid, signal.SIGKILL)


def test_two_runs_of_one_file_share_the_work(flow: Flow, start: Start) -> None:
    slow = "sleep 0.2; echo x > $OUT/x"
    file = flow.write(
        flow.step("a", slow, out="out/a"),
        flow.step("b", slow, out="out/b", **{"in": "out/a"}),
        flow.step("c", slow, out="out/c", after=[]),
    )
    processes = [start("run", file) for _ in range(3)]
    told = [process.wait() for process in processes]
    assert sorted(flow.executed()) == ["a", "b", "c"]
    assert all("3 COMPLETED" in text or "SKIPPED" in text for text in told)
    assert [(flow.project / f"out/{step}/x").read_text() for step in "abc"] == ["x\n"] * 3


def test_two_pipelines_share_a_step(flow: Flow, start: Start) -> None:
    other = Flow(flow.project, "other")
    shared = flow.step("shared", "sleep 0.5; echo x > $OUT/x", params={"n": 1})
    files = [
        pipeline.write(shared, pipeline.step(name, "cp $IN_input/x $OUT", **{"in": "shared"}))
        for pipeline, name in ((flow, "mine"), (other, "theirs"))
    ]
    for process in [start("run", file) for file in files]:
        process.wait()
    assert sorted(flow.executed()) == ["mine", "shared", "theirs"]
    assert flow.steps()["shared"]["cache_key"] == other.steps()["shared"]["cache_key"]


def waiting(flow: Flow) -> Path:
    """Write a pipeline whose step notes its pid and waits for `../go`."""
    wait = "echo $$ >> ../pids; until [ -e ../go ]; do sleep 0.05; done; echo x > $OUT/x"
    return flow.write(flow.step("a", wait, out="out/a"))


def waits(process: Process) -> bool:
    return "a: waiting: in run flow-1 on " in process.text()


def test_when_a_driver_is_killed_the_one_that_waits_takes_over(flow: Flow, start: Start) -> None:
    file, pids = waiting(flow), flow.project.parent / "pids"
    first = start("run", file)
    until(lambda: pids_in(pids), "the step")
    second = start("run", file)
    until(lambda: waits(second), "that the second waits")
    first.kill()
    until(lambda: len(pids_in(pids)) == 2, "that the second takes over")
    assert alive(pids_in(pids)[:1]) == [], "the orphan is ended first"
    (flow.project.parent / "go").touch()
    assert "1 COMPLETED" in second.wait()
    assert flow.executed() == ["a", "a"]


def test_when_a_run_is_stopped_the_one_that_waits_takes_over(flow: Flow, start: Start) -> None:
    file, pids = waiting(flow), flow.project.parent / "pids"
    first = start("run", file)
    until(lambda: pids_in(pids), "the step")
    second = start("run", file)
    until(lambda: waits(second), "that the second waits")
    start("cancel", "flow-1").wait()
    first.wait(expect=130)
    (flow.project.parent / "go").touch()
    assert "1 COMPLETED" in second.wait()
    assert flow.executed() == ["a", "a"]


def test_cancel_of_a_run_that_waits_leaves_the_one_that_works(flow: Flow, start: Start) -> None:
    file, pids = waiting(flow), flow.project.parent / "pids"
    first = start("run", file)
    until(lambda: pids_in(pids), "the step")
    second = start("run", file)
    until(lambda: waits(second), "that the second waits")
    start("cancel", "flow-2").wait()
    second.wait(expect=130)
    (flow.project.parent / "go").touch()
    assert "1 COMPLETED" in first.wait()
    assert flow.executed() == ["a"]


def test_a_failure_seen_by_one_is_the_answer_to_the_one_that_waits(
    flow: Flow, start: Start
) -> None:
    file = flow.write(flow.step("a", "until [ -e ../go ]; do sleep 0.05; done; exit 3"))
    processes = [start("run", file) for _ in range(2)]
    until(lambda: any(waits(p) or "a: waiting" in p.text() for p in processes), "that one waits")
    (flow.project.parent / "go").touch()
    for process in processes:
        assert "the command exited with 3" in process.wait(expect=1)
    assert flow.executed() == ["a"]


def test_a_changed_file_run_beside_keeps_the_newest_link(flow: Flow, start: Start) -> None:
    wait = "until [ -e ../go ]; do sleep 0.05; done; echo $PARAM_x > $OUT/x"
    first = start("run", flow.write(flow.step("a", wait, out="out/a", params={"x": 1})))
    until(lambda: flow.count("a"), "the first run's step")
    quick = start(
        "run",
        flow.write(flow.step("a", "echo $PARAM_x > $OUT/x", out="out/a", params={"x": 2})),
    )
    quick.wait()
    (flow.project.parent / "go").touch()
    first.wait()
    assert (flow.project / "out/a/x").read_text() == "2\n"
