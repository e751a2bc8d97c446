"""What a handler is given, results as a whole, and the projection for people and other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from planned import command, instance, pipeline

from nexa_hpc import create_artifact
from nexa_hpc.core import records
from nexa_hpc.core.artifacts import Presence
from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.projection import write_projection
from nexa_hpc.core.results import find_result
from nexa_hpc.core.runs import create_run
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Reason, Standing, State
from nexa_hpc.core.tasks import input_paths, make_task


@pytest.fixture
def paths(project: Path) -> ProjectPaths:
    return ProjectPaths.at(project)


@pytest.fixture
def instances() -> dict[str, Instance]:
    """a → b → s and a → c → s, and one beside that is not above s."""
    parts = [
        instance("0a" * 32, step="a", uses="u:a", outputs={"x": "artifacts/x", "y": "artifacts/y"}),
        instance(
            "0b" * 32,
            step="b",
            parents=("a",),
            params={"p": 1},
            inputs={"data": {"step": "a", "output": "y", "below": "deep/file"}},
        ),
        instance("0e" * 32, step="c", parents=("a",)),
        instance("0c" * 32, step="beside"),
        instance(
            "0d" * 32,
            step="s",
            parents=("b", "c"),
            inputs={
                "file": {"path": "/data/file", "signature": "x"},
                "whole": {"step": "b", "output": "out", "below": ""},
                "model": {"revision": "abc"},
            },
        ),
    ]
    return {part.step: part for part in parts}


def test_inputs_are_paths_in_the_store_never_through_links(
    instances: Mapping[str, Instance], paths: ProjectPaths
) -> None:
    store = paths.store
    assert input_paths(instances["b"], instances, paths) == {
        "data": store / "0a" / f"{'0a' * 32}.y" / "deep/file"
    }
    assert input_paths(instances["s"], instances, paths) == {
        "file": Path("/data/file"),
        "whole": store / "0b" / ("0b" * 32),
    }


def test_a_task_tells_all_that_is_above_it_and_nothing_beside(
    instances: Mapping[str, Instance], paths: ProjectPaths
) -> None:
    task = make_task(instances["s"], instances, paths, attempt=3)
    assert task.upstream.keys() == {"a", "b", "c"}
    assert task.upstream["b"]["params"] == {"p": 1}
    assert task.upstream["b"]["inputs"]["data"].name == "file"
    named = {"uses": "u:a", "params": {}, "inputs": {}, "key": "0a" * 32, "step": "a"}
    named["distance"] = 2
    assert task.upstream["a"] == {**named, "results": instances["a"].artifact_paths(paths)}
    assert task.revisions == {"model": "abc"}
    assert (task.attempt, task.step_id, task.key) == (3, "s", "0d" * 32)
    assert (task.project, task.registry) == (paths.root, paths.registry)
    assert task.work_dir == paths.work_of("0d" * 32)


def test_a_task_made_to_be_asked_has_no_outputs_and_takes_progress(
    instances: Mapping[str, Instance], paths: ProjectPaths
) -> None:
    told: list[Progress] = []
    make_task(instances["s"], instances, paths).progress(1)
    task = make_task(instances["s"], instances, paths, on_progress=told.append)
    task.progress(1, 2)
    assert task.outputs == {}
    assert [(p.done, p.total) for p in told] == [(1, 2)]


# ------------------------------------------------------------------------------------------ results


def test_a_result_is_there_when_every_output_is(paths: ProjectPaths) -> None:
    made = instance(outputs={"a": "artifacts/a", "b": "artifacts/b"})
    assert find_result(made, paths).presence is Presence.ABSENT
    create_artifact(paths.artifact(made.key, "b"), lambda out: None)
    assert find_result(made, paths).presence is Presence.ABSENT
    create_artifact(paths.artifact(made.key, "a"), lambda out: (out / "x").write_text("1"))
    found = find_result(made, paths)
    assert found.presence is Presence.COMPLETE
    assert found.artifact is not None and found.artifact.path.name.endswith(".a")
    (paths.artifact(made.key, "a") / "x").unlink()
    assert find_result(made, paths).presence is Presence.PURGED


def test_an_effect_has_no_result_to_find(paths: ProjectPaths) -> None:
    assert find_result(instance(effect=True, outputs={}), paths).presence is Presence.ABSENT


# ------------------------------------------------------------------------------------------- states


def test_every_state_either_settles_or_goes_on() -> None:
    assert {state for state in State if not state.settled} == {
        State.PENDING,
        State.SUBMITTED,
        State.RUNNING,
    }
    assert {state for state in State if state.succeeded} == {State.COMPLETED, State.SKIPPED}


# --------------------------------------------------------------------------------------- projection


def test_the_projection_tells_status_and_key_of_each_step(paths: ProjectPaths) -> None:
    made = [instance("0a" * 32, step="a"), instance("0b" * 32, step="b", parents=("a",))]
    run = create_run(paths, "demo", {"file": "demo.yaml"}, made)
    folder = paths.records("0a" * 32)
    records.claim(folder, 1, {"job": "host:1", "log": "demo/runs/demo-1/logs/a.1.log"})
    records.start(folder, 1, {})
    records.end(folder, 1, State.FAILED, reason=Reason.EXCEPTION, message="no")
    write_projection(run, fold_all(run))
    told = json.loads(run.place.state.read_text())
    assert (told["run"], told["pipeline"], told["file"]) == ("demo-1", "demo", "demo.yaml")
    a, b = told["steps"]["a"], told["steps"]["b"]
    assert (a["status"], a["cache_key"], a["attempt"]) == ("FAILED", "0a" * 32, 1)
    assert (a["reason"], a["message"], a["job"]) == ("exception", "no", "host:1")
    assert a["log"] == "demo/runs/demo-1/logs/a.1.log"
    assert a["started_at"] <= a["ended_at"]
    assert (b["status"], b["message"]) == ("BLOCKED", "step 'a' failed")
    assert json.loads(run.place.pipeline.state.read_text()) == told


def test_only_the_newest_run_writes_the_pipelines_projection(paths: ProjectPaths) -> None:
    older, newest = (create_run(paths, "demo", {}, [instance()]) for _ in range(2))
    for run in (newest, older):
        write_projection(run, {"s": Standing(State.PENDING)})
    assert json.loads(older.place.pipeline.state.read_text())["run"] == "demo-2"
    assert json.loads(older.place.state.read_text())["run"] == "demo-1"


def test_losing_every_projection_loses_nothing(project: Path) -> None:
    done = pipeline(project, command("s")).run()
    before = done.status()
    for file in (project / ".nexa_state").rglob("*state.json"):
        file.unlink()
    assert done.status() == before
    pipeline(project, command("s")).run()
    told = json.loads((project / ".nexa_state/demo/pipeline_state.json").read_text())
    assert told["steps"]["s"]["status"] == "SKIPPED"
