"""Paths: one project root, the same from everywhere, and one author for what lies below."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_hpc.core.paths import ProjectPaths, find_root
from nexa_hpc.errors import UserError

KEY = "ab" + "0" * 62


@pytest.mark.parametrize("mark", [".nexa_state", "nexa.yaml"])
def test_the_root_is_the_nearest_ancestor_with_a_mark(tmp_path: Path, mark: str) -> None:
    inner = tmp_path / "outer" / "inner"
    deep = inner / "a" / "b"
    deep.mkdir(parents=True)
    for folder in (tmp_path / "outer", inner):
        if mark == "nexa.yaml":
            (folder / mark).touch()
        else:
            (folder / mark).mkdir()
    assert find_root(deep) == inner
    assert find_root(inner) == inner
    assert find_root(tmp_path / "outer") == tmp_path / "outer"


def test_without_a_mark_the_pipeline_files_ancestor_with_configs_is_the_root(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (there / "configs").mkdir(parents=True)
    (there / "pipelines").mkdir()
    assert find_root(here, file=there / "pipelines" / "p.yaml") == there
    (here / "nexa.yaml").touch()
    assert find_root(here, file=there / "pipelines" / "p.yaml") == here, "a mark goes first"


def test_with_nothing_to_go_by_it_is_the_current_folder(tmp_path: Path) -> None:
    assert find_root(tmp_path, file=tmp_path / "p.yaml") == tmp_path


def test_project_overrules_all_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "nexa.yaml").touch()
    (tmp_path / "other").mkdir()
    assert find_root(tmp_path, project=tmp_path / "other") == tmp_path / "other"
    with pytest.raises(UserError, match="no such folder") as caught:
        find_root(tmp_path, project=tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_a_root_reached_through_a_link_is_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "nexa.yaml").touch()
    (tmp_path / "link").symlink_to("real")
    assert find_root(tmp_path / "link") == tmp_path / "real"


def test_places_are_absolute_and_each_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ProjectPaths.at(Path("p"))
    root = tmp_path / "p"
    assert paths == ProjectPaths(
        root=root,
        state=root / ".nexa_state",
        store=root / "artifacts/.store",
        registry=root / "artifacts/.registry",
        work=root / ".nexa_state/work",
    )
    moved = ProjectPaths.at(root, state="s", store="/scratch/store", work="../work")
    assert moved.state == root / "s"
    assert moved.store == Path("/scratch/store")
    assert moved.work == tmp_path / "work"
    assert ProjectPaths.at(root, state="s").work == root / "s/work", "work goes with state"


def test_a_runs_record_of_the_paths_gives_them_back(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path, store="/elsewhere")
    assert ProjectPaths.from_json(paths.to_json()) == paths


def test_keys_are_sharded_and_outputs_named(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path)
    assert paths.artifact(KEY) == paths.store / "ab" / KEY
    assert paths.artifact(KEY, "plots") == paths.store / "ab" / f"{KEY}.plots"
    assert paths.records(KEY) == paths.state / "records" / "ab" / KEY
    assert paths.work_of(KEY) == paths.work / "ab" / KEY
    assert paths.remembered_digests("n1") == paths.state / "digests" / "n1.json"


def test_pipelines_are_the_folders_that_hold_runs(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path)
    assert paths.pipelines() == []
    run = paths.pipeline("demo").run("demo-3")
    run.folder.mkdir(parents=True)
    paths.records(KEY).mkdir(parents=True)
    assert [pipeline.name for pipeline in paths.pipelines()] == ["demo"]
    assert run.pipeline == paths.pipeline("demo")
    assert run.run_id == "demo-3"


def test_everything_of_a_run_lies_in_its_folder(tmp_path: Path) -> None:
    pipeline = ProjectPaths.at(tmp_path).pipeline("demo")
    run = pipeline.run("demo-1")
    below = [
        run.request, run.plan, run.rounds, run.cancelled, run.state, run.drivers, run.log("s", 2),
    ]  # fmt: skip
    assert len(set(below)) == len(below)
    assert all(path.is_relative_to(run.folder) for path in below)
    assert run.log("s", 2).name == "s.2.log"
    assert pipeline.state == pipeline.folder / "pipeline_state.json"
    assert pipeline.reruns("s").is_relative_to(pipeline.folder)


def test_the_named_root_of_a_path_is_the_most_specific(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path)
    path = paths.work / "x"
    assert next(n for n, root in paths.named_roots().items() if path.is_relative_to(root)) == "work"


def test_people_read_paths_below_the_root_as_relative(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path)
    assert paths.relative(tmp_path / "a" / "b") == "a/b"
    assert paths.relative(Path("/elsewhere/x")) == "/elsewhere/x"
