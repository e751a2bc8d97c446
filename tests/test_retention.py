"""Why each artifact is kept, in words; and what nothing keeps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from stores import KEYS, NOW, at, claim, kept, plan_of, publish, record_run, this_process

from nexa_hpc.core import records
from nexa_hpc.core.atomic import unique_suffix
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.retention import UNKNOWN, Keeper, days
from nexa_hpc.core.runs import begin_round
from nexa_hpc.core.servers import Handle, Servers
from nexa_hpc.core.settings import Retention
from nexa_hpc.core.states import State
from nexa_hpc.core.store import stored, thrown_away, unfinished
from nexa_hpc.errors import StateError

A, B, C, D = KEYS


@pytest.fixture
def paths(project: Path) -> ProjectPaths:
    return ProjectPaths.at(project)


@pytest.fixture
def old(paths: ProjectPaths) -> ProjectPaths:
    """A project whose first run asked for A and B, long ago, and whose newest asks for C."""
    for key in (A, B, C):
        publish(paths, key)
    record_run(paths, *plan_of(A, B), days_ago=100)
    record_run(paths, *plan_of(C), days_ago=90)
    return paths


def test_the_newest_run_of_a_pipeline_keeps_what_it_asks_for_however_old(
    old: ProjectPaths,
) -> None:
    assert kept(old) == {
        "a1": None,
        "b2": None,
        "c3": "run demo-2 asks for it, the newest of its pipeline",
    }


def test_a_young_run_keeps_what_it_asks_for(old: ProjectPaths) -> None:
    at(next((old.pipeline("demo").run("demo-1").rounds).iterdir()), 3.5)
    assert kept(old)["a1"] == "run demo-1 asks for it, begun 3 days ago"
    assert kept(old, Retention(runs_days=3))["a1"] is None


def test_a_resumed_run_is_young_again(old: ProjectPaths) -> None:
    run = record_run(old, *plan_of(A), pipeline="other", days_ago=100)
    record_run(old, pipeline="other", days_ago=99)
    assert kept(old)["a1"] is None
    begin_round(run)
    at(run.place.rounds / "2.json", 0.1)
    assert kept(old)["a1"] == "run other-1 asks for it, begun less than a day ago"


def test_a_registered_version_is_kept_until_it_is_deleted(old: ProjectPaths) -> None:
    registry = Registry(old.registry, project=old.root)
    registry.register("m", old.artifact(A))
    version = registry.register("m", old.artifact(A))
    assert kept(old)["a1"] == "m version 1 is registered"
    assert kept(old)["b2"] is None
    registry.delete("m", 1)
    assert kept(old)["a1"] == "m version 2 is registered"
    registry.delete("m", version.number)
    assert kept(old)["a1"] is None


def test_what_a_server_serves_is_kept_until_it_has_ended(old: ProjectPaths) -> None:
    servers = Servers(old.servers)
    handle = Handle(
        name="chat", tag="chat-1", backend="vllm", model="m", served_as="m", host="127.0.0.1",
        port=0, argv=("vllm",), variables={}, folders=(str(old.artifact(A)),),
        token_variable="", created_at=0.0, deadline_s=60.0, scheduler="slurm",
    )  # fmt: skip
    servers.create(handle, None)
    assert kept(old)["a1"] == "server 'chat' serves it"
    servers.update(replace(handle, ended="STOPPED"))
    assert kept(old)["a1"] is None


def test_an_attempt_that_has_not_ended_keeps_its_key_and_all_that_its_run_asks_for(
    old: ProjectPaths,
) -> None:
    folder = claim(old, A, "demo-1")
    assert kept(old)["a1"] == "run demo-1 has an attempt at it that has not ended"
    assert kept(old)["b2"] == "run demo-1 asks for it, and has an attempt that has not ended"
    records.end(folder, 1, State.FAILED)
    assert kept(old)["a1"] is None


def test_an_attempt_whose_process_is_gone_keeps_nothing(old: ProjectPaths) -> None:
    gone = {**this_process(old).to_json(), "started": "another process"}
    claim(old, A, driver=gone)
    assert kept(old)["a1"] is None


def test_an_attempt_elsewhere_is_kept_for_a_day_after_its_last_heartbeat(
    old: ProjectPaths,
) -> None:
    elsewhere = {**this_process(old).to_json(), "machine": "another", "heartbeat": "beat.json"}
    claim(old, A, driver=elsewhere)
    beat = old.state / "beat.json"
    beat.write_text("{}")
    at(beat, 0.5)
    assert kept(old)["a1"] == "run demo-1 has an attempt at it that has not ended"
    at(beat, 1.5)
    assert kept(old)["a1"] is None


def test_an_attempt_without_a_driver_is_taken_for_alive(old: ProjectPaths) -> None:
    assert records.claim(old.records(A), 1, {"run": "demo-1", "job": "4711"})
    assert "not ended" in str(kept(old)["a1"])


def test_a_run_whose_driver_beats_is_kept_between_two_steps(old: ProjectPaths) -> None:
    drivers = old.pipeline("demo").run("demo-1").drivers
    drivers.mkdir()
    (drivers / "host-1-ab.json").write_text("{}")
    at(drivers / "host-1-ab.json", 0.1)
    assert kept(old)["a1"] == "run demo-1 asks for it, and is being driven"
    at(drivers / "host-1-ab.json", 1.1)
    assert kept(old)["a1"] is None


def test_a_link_keeps_what_it_points_at_while_either_is_young(paths: ProjectPaths) -> None:
    place = publish(paths, A)
    record_run(paths, *plan_of(A, outputs={"out": "out/a"}), days_ago=100)
    record_run(paths, days_ago=90)
    link = paths.root / "out/a"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(place, link.parent))
    at(link, 12)
    assert kept(paths)["a1"] == "out/a, made 12 days ago, is a link to it"
    assert kept(paths, Retention(artifacts_days=12))["a1"] is None
    at(link, 1000)
    assert kept(paths)["a1"] is None
    at(place / "COMPLETE", 1)
    assert kept(paths)["a1"] == "out/a, made 1 day ago, is a link to it"


def test_what_stands_where_a_link_was_keeps_nothing(paths: ProjectPaths) -> None:
    publish(paths, A)
    record_run(paths, *plan_of(A, outputs={"out": "a"}), days_ago=100)
    record_run(paths, days_ago=90)
    (paths.root / "a").mkdir()
    assert kept(paths)["a1"] is None


def test_an_artifact_that_an_input_is_a_path_to_is_asked_for(old: ProjectPaths) -> None:
    inputs = {
        "inside": {"path": str(old.artifact(A) / "file"), "signature": "s"},
        "outside": {"path": str(old.root / "data")},
        "store": {"path": str(old.store)},
        "no_key": {"path": str(old.store / "ab" / "mine")},
    }
    record_run(old, *plan_of(D, inputs=inputs), pipeline="reader", days_ago=50)
    assert kept(old)["a1"] == "run reader-1 asks for it, the newest of its pipeline"
    assert kept(old)["b2"] is None


def test_a_store_that_a_link_leads_to_is_the_same_store(project: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (project / "artifacts").symlink_to(tmp_path / "scratch")
    paths = ProjectPaths.at(project)
    publish(paths, A)
    real = os.path.realpath(paths.artifact(A))
    record_run(paths, *plan_of(D, inputs={"x": {"path": real}}))
    assert kept(paths)["a1"] == "run demo-1 asks for it, the newest of its pipeline"


def test_an_effect_asks_for_no_artifact(old: ProjectPaths) -> None:
    record_run(old, *plan_of(A, effect=True), pipeline="other")
    assert kept(old)["a1"] is None


def test_a_run_about_to_begin_is_asked_as_well(old: ProjectPaths) -> None:
    run = record_run(old, *plan_of(A), pipeline="other")
    staged = run.place.folder.with_name(f"other.tmp.{unique_suffix()}")
    os.rename(run.place.folder, staged)
    assert kept(old)["a1"] == "a run of other that is about to begin asks for it"
    (staged / "plan.json").unlink()
    assert kept(old)["a1"] is None


def test_what_no_run_and_no_record_names_may_be_another_projects(old: ProjectPaths) -> None:
    publish(old, D)
    assert kept(old)["d4"] == UNKNOWN
    records.end(claim(old, D), 1, State.COMPLETED)
    assert kept(old)["d4"] is None


def test_what_is_no_artifact_of_ours_is_left_alone(old: ProjectPaths) -> None:
    (old.store / "zz").mkdir()
    publish(old, "zz" + "not-a-key")
    (old.artifact(A) / "COMPLETE").unlink()
    assert kept(old)["a1"] == "left alone: a folder without COMPLETE"
    assert kept(old)["zz"] == "left alone: its name is no step key"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_plan_that_counts_and_cannot_be_read_stops_everything(
    old: ProjectPaths, text: str
) -> None:
    plan = old.pipeline("demo").run("demo-2").plan
    plan.write_text(text)
    with pytest.raises(StateError, match=r"plan\.json"):
        kept(old)


def test_one_that_counts_no_more_is_passed_over(old: ProjectPaths) -> None:
    plan = old.pipeline("demo").run("demo-1").plan
    plan.write_text("{")
    at(plan, 100)
    assert kept(old)["a1"] == UNKNOWN
    plan.unlink()
    assert kept(old)["a1"] == UNKNOWN


def test_a_second_look_sees_what_has_come_and_forgets_nothing(old: ProjectPaths) -> None:
    keeper = Keeper(old, Retention(), NOW)
    keeper.look()
    assert keeper.reason(A) is None
    record_run(old, *plan_of(A))
    Registry(old.registry, project=old.root).register("m", old.artifact(B))
    keeper.look_again()
    assert keeper.reason(A) == "run demo-3 asks for it, the newest of its pipeline"
    assert keeper.reason(B) == "m version 1 is registered"
    assert keeper.reason(C) == "run demo-2 asks for it, the newest of its pipeline"


def test_the_store_lists_artifacts_trash_and_what_is_half_made(paths: ProjectPaths) -> None:
    whole, half = publish(paths, A), paths.artifact(B)
    temporary = half.with_name(f"{half.name}.tmp.{unique_suffix()}")
    temporary.mkdir(parents=True)
    trash = whole.parent / ".trash" / f"{C}.out.1700000000.{unique_suffix()}"
    trash.mkdir(parents=True)
    (trash.parent / "something else").mkdir()
    (paths.store / "no shard").mkdir()
    assert [entry.place for entry in stored(paths)] == [whole]
    assert list(unfinished(paths)) == [(temporary, B)]
    (thrown,) = thrown_away(paths.store)
    assert (thrown.path, thrown.place.name, thrown.at) == (trash, f"{C}.out", 1700000000.0)


def test_a_place_that_cannot_be_read_is_listed_with_the_reason(paths: ProjectPaths) -> None:
    place = publish(paths, A)
    (place / "COMPLETE").unlink()
    (place / "COMPLETE").mkdir()  # opening it fails, for root as well
    (entry,) = stored(paths)
    assert not entry.is_ours
    assert "cannot be read: Is a directory" in entry.finding.reason
    assert entry.key == A


@pytest.mark.parametrize(
    ("number", "words"), [(0.2, "less than a day"), (1.9, "1 day"), (2.1, "2 days")]
)
def test_days_in_words(number: float, words: str) -> None:
    assert days(number) == words
