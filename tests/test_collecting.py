"""gc takes what nothing keeps, and nothing else: beside a starting run, and killed anywhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment
from planned import command, pipeline, tree
from planned import run as run_pipeline
from stores import KEYS, NOW, at, claim, plan_of, publish, record_run, this_process

from nexa_hpc.core import atomic, collecting, exchange, records
from nexa_hpc.core.artifacts import open_artifact, place_of, verify
from nexa_hpc.core.atomic import unique_suffix
from nexa_hpc.core.collecting import collect
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.retention import DAY_S
from nexa_hpc.core.settings import Retention
from nexa_hpc.core.states import State
from nexa_hpc.core.store import stored, thrown_away
from nexa_hpc.core.sweeping import Collection, Item
from nexa_hpc.errors import StateError

A, B, C, D = KEYS
NOTHING_KEPT = Retention(0, 0, 0, 0)


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


def gc(paths: ProjectPaths, retention: Retention | None = None, **options: Any) -> Collection:
    return collect(paths, retention or Retention(), **{"now": NOW, **options})


def names(items: list[Item]) -> list[str]:
    return [item.path.name[:2] for item in items]


def there(paths: ProjectPaths) -> list[str]:
    return [entry.place.name[:2] for entry in stored(paths)]


# ----------------------------------------------------------------------------------- artifacts


def test_what_nothing_keeps_goes_to_the_trash_and_a_day_later_for_good(old: ProjectPaths) -> None:
    done = gc(old)
    assert (names(done.moved), done.restored, done.removed) == (["a1", "b2"], [], [])
    assert {item.why for item in done.moved} == {"no run, version or link asks for it"}
    assert there(old) == ["c3"]
    assert gc(old, now=NOW + 0.9 * DAY_S) == Collection()
    removed = gc(old, now=NOW + 1.1 * DAY_S).removed
    assert [item.why for item in removed] == ["in the trash for 1 day"] * 2
    assert not list(thrown_away(old.store))
    assert not os.path.lexists(old.artifact(A))
    assert gc(old, now=NOW + 9 * DAY_S) == Collection()


def test_a_dry_run_says_the_same_and_changes_nothing(old: ProjectPaths) -> None:
    stale = old.work_of(A) / "1"
    stale.mkdir(parents=True)
    at(stale, 20)
    at(stale.parent, 20)
    before = tree(old.root)
    told = gc(old, dry_run=True)
    assert (names(told.moved), names(told.removed)) == (["a1", "b2"], ["a1"])
    assert tree(old.root) == before
    done = gc(old)
    assert (told.moved, told.removed) == (done.moved, done.removed)
    later = NOW + 2 * DAY_S
    before = tree(old.root)
    assert len(gc(old, now=later, dry_run=True).removed) == 2
    record_run(old, *plan_of(A))
    assert names(gc(old, now=later, dry_run=True).restored) == ["a1"]
    assert len(tree(old.store)) == sum(name.startswith("artifacts/.store/") for name in before)


def test_all_outputs_of_a_step_go_together(old: ProjectPaths) -> None:
    publish(old, D, "model")
    publish(old, D, "report")
    outputs: dict[str, Any] = {"outputs": {"model": None, "report": None}}
    record_run(old, *plan_of(D, **outputs), pipeline="two")
    registry = Registry(old.registry, project=old.root)
    registry.register("m", old.artifact(D, "model"))
    shutil.rmtree(old.pipeline("two").folder)
    assert there(old)[-2:] == ["d4", "d4"]
    gc(old)
    assert there(old)[-2:] == ["d4", "d4"]
    registry.delete("m", 1)
    assert "d4" not in names(gc(old).moved), "no run or record names it"
    assert names(gc(old, orphans=True).moved) == ["d4", "d4"]
    assert gc(old) == Collection(), "what was taken as an orphan is not put back as one"


def test_a_damaged_artifact_that_nothing_keeps_goes_and_is_never_put_back(
    old: ProjectPaths,
) -> None:
    (old.artifact(A) / "file").write_text("longer than it was")
    assert names(gc(old).moved) == ["a1", "b2"]
    record_run(old, *plan_of(A, B))
    assert names(gc(old).restored) == ["b2"]


def test_what_is_no_artifact_of_ours_is_left_alone(old: ProjectPaths) -> None:
    (old.artifact(A) / "COMPLETE").unlink()
    (old.store / "aa").mkdir()
    (old.store / "aa" / "notes").mkdir()
    assert names(gc(old, NOTHING_KEPT, orphans=True).moved) == ["b2"]
    assert (old.artifact(A) / "file").exists()


def test_a_registered_version_survives_whatever_the_settings(old: ProjectPaths) -> None:
    version = Registry(old.registry, project=old.root).register("m", old.artifact(A))
    for _ in range(2):
        gc(old, NOTHING_KEPT, orphans=True, now=NOW + 1e9)
    assert there(old) == ["a1", "c3"]
    assert verify(open_artifact(version.path)) == []


def test_nothing_is_taken_when_a_plan_that_counts_cannot_be_read(old: ProjectPaths) -> None:
    old.pipeline("demo").run("demo-2").plan.write_text("{")
    before = tree(old.store)
    with pytest.raises(StateError):
        gc(old)
    assert tree(old.store) == before


def test_what_cannot_be_moved_or_removed_is_told_and_met_again(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old.artifact(A).parent / ".trash").write_text("in the way")
    done = gc(old)
    assert names(done.moved) == ["b2"]
    assert len(done.troubles) == 1
    assert ".trash: " in done.troubles[0]
    (old.artifact(A).parent / ".trash").unlink()
    assert names(gc(old).moved) == ["a1"]

    # As an NFS client that holds a file of it open would have it.
    held = OSError(39, "Directory not empty", "x/.nfs0001")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove_tree", lambda path: held)
        later = gc(old, now=NOW + 2 * DAY_S)
    assert later.troubles == ["x/.nfs0001: Directory not empty"] * 2
    assert len(gc(old, now=NOW + 2 * DAY_S).removed) == 2
    assert later.to_json()["troubles"] == later.troubles


# ------------------------------------------------------------------- beside what begins meanwhile


def at_the_rename(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[Path], object], *, before: bool = False
) -> None:
    """Call `then` with each place, just after gc moved it to the trash, or just before."""
    move = collecting.move_to_trash

    def moving(path: Path, *args: Any, **options: Any) -> Path:
        if before:
            then(path)
        moved = move(path, *args, **options)
        if not before:
            then(path)
        return moved

    monkeypatch.setattr(collecting, "move_to_trash", moving)


@pytest.mark.parametrize("before", [True, False])
def test_what_a_run_asks_for_that_begins_at_this_moment_is_put_back(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    content = tree(old.artifact(A))

    def begin(place: Path) -> None:
        if place == old.artifact(A):
            record_run(old, *plan_of(A), pipeline="meanwhile")

    at_the_rename(monkeypatch, begin, before=before)
    done = gc(old)
    assert (names(done.moved), names(done.restored)) == (["b2"], ["a1"])
    assert done.restored[0].why == "run meanwhile-1 asks for it, the newest of its pipeline"
    assert not old.artifact(A).is_symlink()
    assert tree(old.artifact(A)) == content


def test_whoever_reads_an_artifact_meanwhile_reads_on_and_nobody_begins_to(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    at_the_rename(monkeypatch, lambda place: read.append((place / "file").read_text()))
    gc(old)
    assert read == ["x", "x"]
    assert (old.artifact(A) / "file").read_text() == "x", "until it is removed"
    assert A[:2] not in there(old)


def test_a_version_registered_at_this_moment_is_put_back_where_it_was(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(old.registry, project=old.root)

    def register(place: Path) -> None:
        if place == old.artifact(A):
            registry.register("m", place)

    at_the_rename(monkeypatch, register)
    assert names(gc(old).restored) == ["a1"]
    assert registry.version("m", 1).path == place_of(old.artifact(A))
    assert verify(registry.open(registry.version("m", 1))) == []


def test_what_was_computed_again_meanwhile_stays_and_the_old_one_goes(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(place: Path) -> None:
        if place == old.artifact(A):
            record_run(old, *plan_of(A), pipeline="meanwhile")
            publish(old, A, text="new")

    at_the_rename(monkeypatch, compute)
    done = gc(old)
    assert done.restored == []
    assert (old.artifact(A) / "file").read_text() == "new"
    gc(old, now=NOW + 2 * DAY_S)
    assert (old.artifact(A) / "file").read_text() == "new"
    assert not list(thrown_away(old.store))


def test_a_trash_link_of_a_later_one_is_left_when_an_earlier_one_goes(old: ProjectPaths) -> None:
    gc(old)
    publish(old, A, text="new")
    gc(old, now=NOW + 0.5 * DAY_S)
    assert [item.path.name[:2] for item in gc(old, now=NOW + 1.1 * DAY_S).removed] == ["a1", "b2"]
    assert (old.artifact(A) / "file").read_text() == "new"


def test_another_gc_may_take_or_put_back_first(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Collection] = []

    def also(place: Path) -> None:
        if not inner:
            inner.append(Collection())
            inner[0] = gc(old)

    at_the_rename(monkeypatch, also, before=True)
    outer = gc(old)
    assert sorted(names(inner[0].moved) + names(outer.moved)) == ["a1", "b2"]
    assert outer.troubles == inner[0].troubles == []


def test_what_another_gc_had_begun_to_remove_is_not_put_back(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc(old)
    record_run(old, *plan_of(A, B), pipeline="other")
    put_back = exchange.replace_left_link

    def spoiled(source: Path, target: Path) -> bool:
        if target.name == A:
            (source / "COMPLETE").unlink()
        if target.name == B:
            target.unlink()
            shutil.rmtree(source)
        return put_back(source, target)

    monkeypatch.setattr(exchange, "replace_left_link", spoiled)
    assert gc(old).restored == []
    assert there(old) == ["c3"]
    assert not os.path.lexists(old.artifact(A))


def test_what_cannot_be_put_back_is_told(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc(old)
    record_run(old, *plan_of(A))

    def refuse(source: Path, target: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "replace_left_link", refuse)
        done = gc(old)
    assert done.troubles == [f"{old.artifact(A)}: Permission denied"]
    assert names(gc(old).restored) == ["a1"]


def test_a_collected_result_that_is_asked_for_again_is_computed_again(project: Path) -> None:
    paths = ProjectPaths.at(project)
    first = command("a", "echo 1 >> ../../../count; echo x > $OUT/x", params={"v": 1})
    first["params"]["command"] = f"echo 1 >> {project.parent}/count; echo x > $OUT/x"
    key = run_pipeline(project, first)
    run_pipeline(project, command("b"))
    assert len(gc(paths, NOTHING_KEPT, now=NOW).moved) == 1
    plan = pipeline(project, first).plan().instances["a"]
    assert (plan.action, plan.reason) == ("RUN", "no result yet") or plan.action == "RUN"
    again = run_pipeline(project, first)
    assert again.result("a") == key.result("a")
    assert (project.parent / "count").read_text() == "1\n1\n"


def test_a_result_in_the_trash_counts_as_none_and_its_new_one_takes_the_place(
    project: Path,
) -> None:
    paths = ProjectPaths.at(project)
    step = command("a", "echo x > $OUT/x", out="out/a")
    run_pipeline(project, step)
    run_pipeline(project, command("b"))
    gc(paths, Retention(0, 0, 0, 1), now=NOW)
    assert (project / "out/a/x").read_text() == "x\n", "the link leads on until it is removed"
    assert pipeline(project, step).plan().instances["a"].action == "RUN"
    run_pipeline(project, step)
    (place,) = (e.place for e in stored(paths) if (e.place / "x").exists())
    assert not place.is_symlink()
    assert os.path.realpath(project / "out/a") == str(place)


@pytest.fixture(params=["exchanged", "renamed"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Names change places as one change, and as on a filesystem that cannot do that."""
    if request.param == "renamed":
        monkeypatch.setattr(exchange, "exchange", lambda first, second: False)
    return str(request.param)


@pytest.mark.usefixtures("swap")
def test_a_folder_goes_and_comes_back_and_leaves_a_link_meanwhile(tmp_path: Path) -> None:
    place, aside = tmp_path / "place", tmp_path / "trash/aside"
    place.mkdir()
    (place / "file").touch()
    aside.parent.mkdir()
    exchange.rename_leaving_link(place, aside)
    assert os.readlink(place) == "trash/aside"
    assert (place / "file").exists()
    with pytest.raises(FileNotFoundError):  # a second gc finds the link
        exchange.rename_leaving_link(place, tmp_path / "trash/other")
    assert os.readlink(place) == "trash/aside"
    assert exchange.replace_left_link(aside, place)
    assert not place.is_symlink()
    assert os.listdir(place) == ["file"]
    assert not exchange.replace_left_link(aside, place), "there is no link any more"
    assert sorted(os.listdir(tmp_path)) == ["place", "trash"]
    assert os.listdir(aside.parent) == []
    with pytest.raises(FileNotFoundError):
        exchange.rename_leaving_link(tmp_path / "nothing", aside)
    assert os.listdir(aside.parent) == []


@pytest.mark.usefixtures("swap")
def test_a_folder_that_is_gone_takes_no_links_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".trash/x")
    with pytest.raises(FileNotFoundError):
        exchange.replace_left_link(tmp_path / "gone", tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("instead", ["nothing", "folder"])
def test_what_has_taken_a_links_place_at_this_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    link.symlink_to(".trash/x")
    swap = exchange.exchange

    def late(first: Path, second: Path) -> bool:
        if link.is_symlink():
            link.unlink()
            if instead == "folder":
                (link / "new").mkdir(parents=True)
        return swap(first, second)

    monkeypatch.setattr(exchange, "exchange", late)
    assert not exchange.replace_left_link(mine, link)
    assert os.listdir(mine) == []
    assert link.exists() == (instead == "folder")


_READ = """
import os, sys
place, stop, reads, misses = sys.argv[1], sys.argv[2], 0, 0
print("reading", flush=True)
while not os.path.exists(stop):
    reads += 1
    try:
        os.close(os.open(place, os.O_RDONLY))
    except OSError:
        misses += 1
print(reads, misses)
"""


def test_a_reader_reads_on_while_a_result_is_taken_and_put_back(tmp_path: Path) -> None:
    # One that does nothing but open it, while nothing else is done to it. Without the exchange of
    # names it misses a result in a hundred times; with it, in none, or the one in a hundred
    # thousand that has read the link and not yet followed it.
    place, aside, stop = tmp_path / "place", tmp_path / "trash/aside", tmp_path / "stop"
    place.mkdir()
    (place / "file").touch()
    aside.parent.mkdir()
    reader = subprocess.Popen(
        [sys.executable, "-c", _READ, place / "file", stop], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    for _ in range(300):
        exchange.rename_leaving_link(place, aside)
        assert exchange.replace_left_link(aside, place)
    stop.touch()
    reads, misses = map(int, reader.communicate()[0].split())
    assert reads > 100
    assert misses <= 1 + reads / 2000


def test_where_another_gc_is_about_to_move_something_nothing_is_removed(
    old: ProjectPaths,
) -> None:
    link = old.artifact(A).parent / ".trash" / f"{A}.{int(NOW)}.{unique_suffix()}"
    link.parent.mkdir()
    link.symlink_to(f".trash/{link.name}")
    gc(old, Retention(trash_days=0, runs_days=1e9))
    assert link.is_symlink()
    gc(old, Retention(runs_days=1e9), now=NOW + 2 * DAY_S)
    assert not link.is_symlink()


# --------------------------------------------------------------------------------- what is left


def test_work_goes_once_published_and_of_failures_after_a_while(old: ProjectPaths) -> None:
    for key in (A, B, C, D):
        (old.work_of(key) / "1").mkdir(parents=True)
    shutil.rmtree(old.artifact(B))
    records.end(claim(old, B), 1, State.COMPLETED)  # published, and since purged
    records.end(claim(old, D), 1, State.FAILED)
    at(old.records(D), 13)
    for folder in (old.work_of(D), old.work_of(D) / "1"):
        at(folder, 20)
    removed = gc(old, Retention(artifacts_days=1e9, runs_days=1e9)).removed
    assert names(removed) == ["a1", "b2", "c3"]
    assert {item.why for item in removed} == {"its result has been published"}
    assert sorted(os.listdir(old.work)) == ["a1", "b2", "c3", "d4"]
    at(old.records(D), 14)
    (gone,) = gc(old).removed
    assert (gone.path, gone.why) == (
        old.work_of(D),
        "its last attempt ended 14 days ago, without a result",
    )


def test_work_of_an_attempt_under_way_stays_and_that_of_a_lost_one_goes(
    old: ProjectPaths,
) -> None:
    for key, driver in ((A, None), (D, {**this_process(old).to_json(), "started": "gone"})):
        claim(old, key, driver=driver)
        (old.work_of(key) / "1").mkdir(parents=True)
        for path in (old.records(key), old.work_of(key), old.work_of(key) / "1"):
            at(path, 50)
    assert names(gc(old).removed) == ["d4"]
    assert (old.work_of(A) / "1").exists()


@pytest.mark.parametrize("begun", [True, False])
def test_work_that_an_attempt_wants_that_begins_at_this_moment_is_put_back(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    from nexa_hpc.core import sweeping

    checkpoint = old.work_of(D) / "1" / "checkpoint"
    checkpoint.mkdir(parents=True)
    for path in (old.work_of(D), old.work_of(D) / "1", checkpoint):
        at(path, 50)
    move = sweeping.move_to_trash

    def moving(path: Path, now: float) -> Path:
        moved = move(path, now)
        claim(old, D)
        if begun:
            (old.work_of(D) / "2").mkdir(parents=True)
        return moved

    monkeypatch.setattr(sweeping, "move_to_trash", moving)
    assert gc(old).removed == []
    assert os.listdir(old.work_of(D)) == (["2"] if begun else ["1"])
    monkeypatch.undo()
    gone = [item.why for item in gc(old, now=NOW + 2 * DAY_S).removed]
    assert gone == (["in the trash for 2 days"] if begun else [])


def test_work_that_cannot_be_moved_is_told(old: ProjectPaths) -> None:
    (old.work_of(A) / "1").mkdir(parents=True)
    (old.work_of(A).parent / ".trash").write_text("in the way")
    assert any(".trash" in trouble for trouble in gc(old).troubles)
    assert (old.work_of(A) / "1").exists()


def test_half_made_publications_go_after_a_day_without_a_live_attempt(old: ProjectPaths) -> None:
    left = []
    for key, age in ((A, 1.1), (B, 0.9), (C, 1.1)):
        folder = old.artifact(key).with_name(f"{key}.tmp.{unique_suffix()}")
        folder.mkdir()
        (folder / "part").write_text("half")
        at(folder / "part", age)
        at(folder, 30)
        left.append(folder)
    link = left[0].with_name(f"{A}.tmp.{unique_suffix()}")
    link.symlink_to(".trash/x")
    at(link, 2)
    claim(old, C)
    removed = gc(old, Retention(runs_days=1e9)).removed
    assert {item.path for item in removed} == {left[0], link}
    assert sum(item.size_bytes for item in removed) == 4
    assert [folder.exists() for folder in left] == [False, True, True]


def test_temporary_files_and_runs_that_never_began_go_after_a_day(old: ProjectPaths) -> None:
    folder = old.records(A)
    folder.mkdir(parents=True)
    run = old.pipeline("demo").runs
    record_run(old, *plan_of(A, outputs={"out": "out/a"}), days_ago=95)
    record_run(old, *plan_of(C), days_ago=90)
    (old.root / "out").mkdir()
    (old.registry / "m/versions").mkdir(parents=True)
    suffix = unique_suffix()
    ours = [
        folder / f"1.claim.json.tmp.{suffix}",
        old.registry / "m/versions" / f"1.json.tmp.{suffix}",
        old.root / "out" / f"a.tmp.{suffix}",
        run / f"demo.tmp.{suffix}",
    ]
    others = [old.root / "out" / f"b.tmp.{suffix}", folder / "1.end.json.tmp.mine"]
    for path in [*ours[:2], *others]:
        path.touch()
    ours[2].symlink_to(old.artifact(C))
    ours[3].mkdir()
    (ours[3] / f"plan.json.tmp.{suffix}").touch()
    for path in [*ours, *others]:
        at(path, 0.9)
    assert gc(old, dry_run=True).removed == []
    for path in [*ours, *others]:
        at(path, 1.1)
    removed = gc(old, Retention(runs_days=1e9)).removed
    assert sorted(item.path for item in removed) == sorted(ours)
    assert [os.path.lexists(path) for path in [*ours, *others]] == [False] * 4 + [True] * 2
    assert (old.artifact(C) / "file").exists()


def test_heartbeats_of_ended_drivers_go_after_a_day(old: ProjectPaths) -> None:
    drivers = old.pipeline("demo").run("demo-1").drivers
    drivers.mkdir()
    mine = this_process(old)
    claim(old, A, driver=mine.to_json())
    for name, age in (("young", 0.9), ("old", 1.1)):
        (drivers / f"{name}.json").touch()
        at(drivers / f"{name}.json", age)
    (old.state / mine.heartbeat).touch()
    at(old.state / mine.heartbeat, 5)  # as after a long suspension: it lives, as the kernel knows
    assert [item.path.name for item in gc(old).removed] == ["old.json"]
    assert (old.state / mine.heartbeat).exists()


# --------------------------------------------------------------------------------- real processes

_COLLECT = """
import random, sys, time
from pathlib import Path
from nexa_hpc.core.collecting import collect
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.settings import Retention

paths, told, pause = ProjectPaths.at(Path.cwd()), [0, 0], random.Random(sys.argv[1])
for _ in sys.stdin:
    time.sleep(pause.random() * 0.05)  # to meet another moment of the run each time
    done = collect(paths, Retention(0, 0, 0, 0))
    assert not done.troubles, done.troubles
    told = [told[0] + len(done.moved), told[1] + len(done.restored)]
print(*told)
"""


@pytest.mark.slow
def test_gc_beside_a_starting_run_loses_nothing_that_it_relies_on(
    project: Path, tmp_path: Path
) -> None:
    collector = subprocess.Popen(
        [sys.executable, "-c", _COLLECT, "7"],
        cwd=project,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert collector.stdin is not None
    count = tmp_path / "count"
    shared = command("shared", f"echo x >> {count}; echo x > $OUT/x")
    for number in range(60):
        run_pipeline(project, command("other"))
        # From here on nothing asks for `shared`, until the next run has been recorded.
        collector.stdin.write("go\n")
        collector.stdin.flush()
        reader = command(
            "reader", "cat $IN_input/x > $OUT/y", **{"in": "shared"}, params={"n": number}
        )
        del reader["after"]
        done = run_pipeline(project, shared, reader)
        assert (done.result("reader") / "y").read_text() == "x\n"
        for step in ("shared", "reader"):
            assert verify(open_artifact(done.result(step))) == []
    told = collector.communicate(timeout=240)[0].split()
    assert collector.returncode == 0
    moved, restored = map(int, told)
    computed = count.read_text().count("x")
    print(f"{moved} moved, {restored} put back, computed {computed} times in 60 runs")
    assert computed <= 1 + moved + restored, "again only after it was taken"


_KILLED = """
import os, signal, sys
from pathlib import Path
from nexa_hpc.core import collecting, retention
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.settings import Retention

calls = int(sys.argv[1])

def dying(event, args):
    global calls
    if event in {"os.rename", "os.remove", "os.rmdir", "os.symlink", "os.mkdir", "os.unlink"}:
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(dying)
collecting.collect(ProjectPaths.at(Path.cwd()), Retention(), now=float(sys.argv[2]))
"""


@pytest.mark.parametrize("days", [0, 2])
def test_killed_before_any_change_the_next_gc_leaves_what_one_gc_would(
    old: ProjectPaths, tmp_path: Path, days: int
) -> None:
    if days:
        gc(old)
    (old.work_of(A) / "1").mkdir(parents=True)
    moment = NOW + days * DAY_S
    master = tmp_path / "master"
    shutil.copytree(old.root, master, symlinks=True)
    gc(old, now=moment)
    expected = _places(old.root)
    kills = 0
    while True:
        shutil.rmtree(old.root)
        shutil.copytree(master, old.root, symlinks=True)
        for run, age in (("demo-1", 100), ("demo-2", 90)):
            place = old.pipeline("demo").run(run)
            for file in (place.plan, *place.rounds.iterdir()):
                at(file, age)
        ended = subprocess.run(
            [sys.executable, "-c", _KILLED, str(kills), str(moment)],
            cwd=old.root,
            env=child_environment(),
        )
        for entry in stored(old):
            assert entry.finding.artifact is not None, "never COMPLETE over less"
        assert _file(old.artifact(C)) == "x"
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        gc(old, now=moment)
        assert _places(old.root) == expected, f"killed before change {kills}"
        kills += 1
    assert kills > 5


def test_killed_between_rename_and_second_look_the_next_gc_puts_back(
    old: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(place: Path) -> None:
        record_run(old, *plan_of(A), pipeline="meanwhile")
        raise KeyboardInterrupt

    at_the_rename(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        gc(old)
    monkeypatch.undo()
    assert there(old) == ["b2", "c3"]
    assert names(gc(old, now=NOW + 30 * DAY_S).restored) == ["a1"]
    assert there(old) == ["a1", "c3"]


def _places(root: Path) -> list[str]:
    """What is where, but for the unique parts of names and empty folders of work."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or (".store" in path.parts and not path.is_dir()):
            continue  # A reader's link may be missing where gc was killed.
        name = path.relative_to(root).as_posix()
        if ".trash/" in name:
            head, _, tail = name.partition(".trash/")
            name = f"{head}.trash/{tail.split('.')[0]}" if "/" not in tail else ""
        if name and "work" not in name.split("/"):
            found.append(name)
    return sorted(set(found))


def _file(place: Path) -> str:
    return (place / "file").read_text()
