"""Runs: whole, numbered without locks, found by any word a user may use, and tried in rounds."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from planned import instance

from nexa_hpc.core import records, rounds, runs
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import (
    Run,
    all_runs,
    begin_round,
    create_run,
    find_run,
    last_cancel,
    mark_cancelled,
    newest_run,
    raise_rerun_count,
    read_instances,
    rerun_counts,
    run_ids,
)
from nexa_hpc.core.states import State
from nexa_hpc.errors import StateError, UnknownNameError

_SPAWN = multiprocessing.get_context("spawn")
PROCESSES, EACH = 4, 6


@pytest.fixture
def paths(project: Path) -> ProjectPaths:
    return ProjectPaths.at(project)


def make(paths: ProjectPaths, pipeline: str = "demo", **request: Any) -> Run:
    return create_run(paths, pipeline, {"file": f"{pipeline}.yaml", **request}, [instance()])


# ----------------------------------------------------------------------------------------- creating


def test_a_run_is_recorded_whole(paths: ProjectPaths) -> None:
    parts = [instance("ab" * 32, parents=("b",)), instance("cd" * 32, step="b", params={"x": [1]})]
    run = create_run(paths, "demo", {"file": "demo.yaml", "scheduler": None}, parts)
    assert (run.id, run.pipeline) == ("demo-1", "demo")
    again = Run(paths, run.place)
    assert list(again.instances.values()) == parts
    assert again.request["file"] == "demo.yaml"
    assert again.request["paths"] == paths.to_json()
    assert {"user", "host", "created_at", "format"} <= again.request.keys()
    assert sorted(os.listdir(run.place.folder)) == ["plan.json", "rounds", "run.json"]
    assert os.listdir(run.place.folder.parent) == ["demo-1"]


def test_an_instance_survives_being_recorded(paths: ProjectPaths) -> None:
    made = instance(parents=("a", "b"), inputs={"x": {"path": "/p"}}, outputs={"out": "o"})
    assert Instance.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_runs_are_numbered_as_numbers(paths: ProjectPaths) -> None:
    for _ in range(11):
        make(paths)
    assert run_ids(paths.pipeline("demo")) == [f"demo-{number}" for number in range(1, 12)]
    newest = newest_run(paths, "demo")
    assert newest is not None and newest.id == "demo-11"


def test_a_number_is_never_given_again_while_a_later_one_stands(paths: ProjectPaths) -> None:
    first, second = make(paths), make(paths)
    first.place.folder.rename(paths.root / "elsewhere")
    assert make(paths).id == "demo-3"
    assert second.id == "demo-2"


def test_what_is_not_a_run_is_passed_over(paths: ProjectPaths) -> None:
    make(paths)
    for name in ("demo-x", "demo-2.tmp.host.1.ab", "demo-²", "demo-02", "demo-", "other-7"):
        (paths.pipeline("demo").runs / name).mkdir()
    assert run_ids(paths.pipeline("demo")) == ["demo-1"]
    assert make(paths).id == "demo-2"


def test_a_pipeline_that_has_not_run_has_no_newest_run(paths: ProjectPaths) -> None:
    assert newest_run(paths, "demo") is None
    assert run_ids(paths.pipeline("demo")) == []


def _create(root: Path, start: Barrier, who: int) -> None:
    paths = ProjectPaths.at(root)
    start.wait()
    for number in range(EACH):
        create_run(paths, "demo", {"who": who, "n": number}, [instance(), instance(step="t")])


def test_runs_created_at_once_have_numbers_of_their_own_and_are_whole(paths: ProjectPaths) -> None:
    start = _SPAWN.Barrier(PROCESSES)
    everybody = [
        _SPAWN.Process(target=_create, args=(paths.root, start, who)) for who in range(PROCESSES)
    ]
    for process in everybody:
        process.start()
    for process in everybody:
        process.join()
        assert process.exitcode == 0
    found = all_runs(paths)
    assert [run.id for run in found] == [f"demo-{n}" for n in range(1, PROCESSES * EACH + 1)]
    asked = {(run.request["who"], run.request["n"]) for run in found}
    assert asked == {(who, number) for who in range(PROCESSES) for number in range(EACH)}
    assert all(list(run.instances) == ["s", "t"] for run in found)
    assert all(os.listdir(run.place.rounds) == ["1.json"] for run in found)
    assert len(os.listdir(paths.pipeline("demo").runs)) == len(found)


def test_a_number_that_somebody_else_took_meanwhile_is_followed_by_the_next(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_numbers", lambda _: [])
    assert [make(paths).id for _ in range(3)] == ["demo-1", "demo-2", "demo-3"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_could_not_be_recorded_leaves_nothing(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> bool:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_round", fail)
        with pytest.raises(type(error)):
            make(paths)
    assert os.listdir(paths.pipeline("demo").runs) == []
    assert make(paths).id == "demo-1"


def test_a_user_without_a_name_is_told_by_number(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    run = make(paths)
    assert run.request["user"] == "54321"
    assert mark_cancelled(run)
    raise_rerun_count(paths.pipeline("demo"), "a", 1)


def test_a_plan_of_another_format_is_refused_with_what_to_do(paths: ProjectPaths) -> None:
    run = make(paths)
    run.place.plan.write_text(json.dumps({"format": 999, "instances": []}))
    with pytest.raises(StateError, match="written in format 999; this version reads 1") as found:
        read_instances(run.place)
    assert "run the pipeline again" in str(found.value.hint)


# ------------------------------------------------------------------------------------------ finding


def test_a_run_is_found_by_its_id_its_pipeline_and_its_file(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo", "other", "demo", "a-1"):
        make(paths, name)
    (paths.root / "demo.yaml").write_text("")
    (paths.root / "sub").mkdir()
    monkeypatch.chdir(paths.root / "sub")
    words = {
        "demo-1": "demo-1",
        "demo": "demo-2",
        "demo.yaml": "demo-2",
        "../demo.yaml": "demo-2",
        str(paths.root / "demo.yaml"): "demo-2",
        "other": "other-1",
        "a-1": "a-1-1",
    }
    assert {word: find_run(paths, word).id for word in words} == words


def test_a_file_is_found_through_a_link(paths: ProjectPaths) -> None:
    make(paths)
    (paths.root / "demo.yaml").write_text("")
    (paths.root / "link.yaml").symlink_to("demo.yaml")
    assert find_run(paths, "link.yaml").id == "demo-1"


def test_without_a_word_the_newest_run_of_the_project_is_meant(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hour, name in enumerate(("zebra", "demo", "zebra", "ant")):
        monkeypatch.setattr(runs, "now", lambda hour=hour: f"2026-01-01T0{hour}:00:00.000+00:00")
        make(paths, name)
    assert find_run(paths, None).id == "ant-1"


def test_an_unknown_word_is_told_with_the_nearest_name(paths: ProjectPaths) -> None:
    make(paths, "sentiment")
    with pytest.raises(UnknownNameError, match="did you mean 'sentiment'") as found:
        find_run(paths, "sentimnt")
    assert found.value.hint == "nexa-hpc pipeline list"
    with pytest.raises(UnknownNameError, match="did you mean 'sentiment-1'"):
        find_run(paths, "sentiment-12")
    for word in ("", "../../etc/passwd-1", "sentiment-²", "sentiment-01"):
        with pytest.raises(UnknownNameError):
            find_run(paths, word)


def test_a_project_where_nothing_has_run_says_so(paths: ProjectPaths) -> None:
    with pytest.raises(UnknownNameError, match="nothing has run in"):
        find_run(paths, None)


def test_a_pipeline_made_in_python_is_not_found_by_a_file(paths: ProjectPaths) -> None:
    make(paths, file=None)
    with pytest.raises(UnknownNameError):
        find_run(paths, "demo.yaml")


def test_all_runs_are_listed_by_pipeline_the_newest_last(paths: ProjectPaths) -> None:
    for name in ("b", "a", "b"):
        make(paths, name)
    records.claim(paths.records("ab" * 32), 1, {})  # `records/` is no pipeline
    assert [run.id for run in all_runs(paths)] == ["a-1", "b-1", "b-2"]


# ------------------------------------------------------------------------------------------- rounds


def test_a_round_notes_the_newest_ended_attempt_of_each_key(paths: ProjectPaths) -> None:
    done, live, skipped, fresh = (name * 32 for name in ("ab", "cd", "ef", "01"))
    for key, numbers in ((done, (1, 2)), (live, (1,)), (skipped, (1,))):
        for number in numbers:
            records.claim(paths.records(key), number, {})
            if key != live:
                records.end(paths.records(key), number, State.FAILED)
    planned = [
        instance(done, step="done"),
        instance(live, step="live"),
        instance(fresh, step="fresh"),
        instance(skipped, step="skipped", action="SKIP"),
    ]
    run = create_run(paths, "demo", {}, planned)
    assert run.attempts_before() == {done: 2}
    records.end(paths.records(live), 1, State.FAILED)
    assert run.attempts_before() == {done: 2}
    begin_round(run)
    # Nothing is left of what was to be skipped.
    assert run.attempts_before() == {done: 2, live: 1, skipped: 1}


def test_the_tenth_round_comes_after_the_ninth(paths: ProjectPaths) -> None:
    run = make(paths)
    for _ in range(8):
        begin_round(run)
    records.end(paths.records("ab" * 32), 1, State.FAILED)
    begin_round(run)
    assert run.attempts_before() == {"ab" * 32: 1}
    assert len(os.listdir(run.place.rounds)) == 10


def test_names_that_are_no_rounds_are_passed_over(paths: ProjectPaths) -> None:
    run = make(paths)
    for name in ("2.json.tmp.host.1.ab", "1 copy.json", "².json", "x"):
        (run.place.rounds / name).write_text("torn")
    begin_round(run)
    assert (run.place.rounds / "2.json").exists()
    assert run.attempts_before() == {}


def test_a_round_begun_by_somebody_else_meanwhile_is_followed_by_another(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(paths)
    begin_round(run)
    monkeypatch.setattr(rounds, "present_round", lambda place: 1)
    begin_round(run)
    assert sorted(os.listdir(run.place.rounds)) == ["1.json", "2.json", "3.json"]


def test_a_run_without_rounds_holds_nothing_against_any_attempt(paths: ProjectPaths) -> None:
    run = make(paths)
    (run.place.rounds / "1.json").unlink()
    assert run.attempts_before() == {}


# --------------------------------------------------------------------------------------- cancelling


def test_cancelling_ends_the_present_round_only(paths: ProjectPaths) -> None:
    run = make(paths)
    assert not run.cancelled
    assert last_cancel(run) is None
    assert mark_cancelled(run)
    assert not mark_cancelled(run)
    assert run.cancelled
    marker = last_cancel(run)
    assert marker is not None and {"at", "by", "from"} <= marker.keys()
    begin_round(run)
    assert not run.cancelled


# ------------------------------------------------------------------------------------------- reruns


def test_rerun_counts_are_kept_for_each_step(paths: ProjectPaths) -> None:
    home = paths.pipeline("demo")
    assert rerun_counts(home) == {}
    for count in (1, 2, 2):
        raise_rerun_count(home, "a", count)
    raise_rerun_count(home, "b", 1)
    assert rerun_counts(home) == {"a": 2, "b": 1}


def test_what_a_killed_process_left_beside_a_rerun_does_not_count(paths: ProjectPaths) -> None:
    home = paths.pipeline("demo")
    raise_rerun_count(home, "a", 1)
    (home.reruns("a") / "2.json.tmp.host.1.ab").write_text("")
    home.reruns("b").mkdir(parents=True)
    (home.reruns("b") / "1.json.tmp.host.1.ab").write_text("")
    assert rerun_counts(home) == {"a": 1}
