"""The links that `out` names: swapped by rename, and never in place of what is not ours."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from planned import instance, tree

from nexa_hpc.core.links import leads_into, link_outputs
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.errors import ArtifactError

OLD, NEW = "ab" * 32, "cd" * 32


@pytest.fixture
def paths(project: Path) -> ProjectPaths:
    return ProjectPaths.at(project)


def link(paths: ProjectPaths, key: str = OLD, out: str = "artifacts/models/m") -> Path:
    """Link the only output of an instance, and return the link."""
    link_outputs(instance(key, outputs={"out": out}), paths)
    return Path(os.path.join(paths.root, out))


def test_a_link_is_relative_so_that_a_moved_project_keeps_it(
    paths: ProjectPaths, tmp_path: Path
) -> None:
    made = link(paths)
    assert os.readlink(made) == f"../.store/ab/{OLD}"
    paths.artifact(OLD).mkdir(parents=True)
    (paths.artifact(OLD) / "x").write_text("1")
    moved = paths.root.rename(tmp_path / "moved")
    assert (moved / "artifacts/models/m/x").read_text() == "1"


def test_each_output_has_its_link_and_one_without_a_path_has_none(paths: ProjectPaths) -> None:
    link_outputs(instance(OLD, outputs={"a": "artifacts/a", "b": "deep/er/b"}), paths)
    assert os.readlink(paths.root / "artifacts/a") == f".store/ab/{OLD}.a"
    assert os.readlink(paths.root / "deep/er/b") == f"../../artifacts/.store/ab/{OLD}.b"
    before = tree(paths.root)
    link_outputs(instance(NEW, outputs={"out": None}), paths)
    assert tree(paths.root) == before


def test_an_effect_has_no_links(paths: ProjectPaths) -> None:
    link_outputs(instance(OLD, effect=True, outputs={}), paths)
    assert not (paths.root / "artifacts").exists()


def test_a_link_of_ours_is_swapped_also_where_it_dangles(paths: ProjectPaths) -> None:
    made = link(paths, OLD)
    assert not made.exists()
    link(paths, NEW)
    assert os.readlink(made) == f"../.store/cd/{NEW}"
    assert os.listdir(made.parent) == ["m"]


def test_a_link_that_is_right_already_is_not_written_again(paths: ProjectPaths) -> None:
    made = link(paths)
    before = made.lstat()
    link(paths)
    assert made.lstat().st_ino == before.st_ino


def test_there_is_a_link_at_every_moment_while_it_is_swapped(paths: ProjectPaths) -> None:
    made, stop, missing = link(paths), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                os.readlink(made)
            except OSError as error:
                missing.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        link(paths, NEW if number % 2 else OLD)
    stop.set()
    reader.join()
    assert missing == []


@pytest.mark.parametrize(
    "kind", ["file", "folder", "empty folder", "link", "link beside the store"]
)
def test_what_is_not_ours_is_never_touched(paths: ProjectPaths, tmp_path: Path, kind: str) -> None:
    place = paths.root / "artifacts/models/m"
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_text("precious")
    elif kind == "folder":
        place.mkdir()
        (place / "x").write_text("precious")
    elif kind == "empty folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path if kind == "link" else "../.store_of_mine/x")
    before = place.lstat()
    with pytest.raises(ArtifactError, match="models/m is not a link of nexa_hpc; it is left alone"):
        link(paths)
    assert place.lstat() == before


def test_a_file_in_the_way_of_a_folder_is_told_and_not_touched(paths: ProjectPaths) -> None:
    (paths.root / "artifacts").mkdir()
    (paths.root / "artifacts/models").write_text("precious")
    with pytest.raises(
        ArtifactError, match=r"models/m cannot be linked: (Not a directory|File ex)"
    ):
        link(paths)
    assert (paths.root / "artifacts/models").read_text() == "precious"


def test_a_link_reached_through_another_link_leads_into_the_store(
    paths: ProjectPaths, tmp_path: Path
) -> None:
    # Absolute outs may be allowed, and scratch is often reached by a link.
    (tmp_path / "deep/er/scratch").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to("deep/er/scratch")
    paths.artifact(OLD).mkdir(parents=True)
    made = link(paths, OLD, str(tmp_path / "scratch/m"))
    assert made.resolve() == paths.artifact(OLD)
    paths.artifact(NEW).mkdir(parents=True)
    assert link(paths, NEW, str(tmp_path / "scratch/m")).resolve() == paths.artifact(NEW)


def test_only_a_link_into_the_store_leads_into_it(paths: ProjectPaths, tmp_path: Path) -> None:
    paths.store.mkdir(parents=True)
    inside, outside, back = (tmp_path / name for name in ("inside", "outside", "back"))
    inside.symlink_to(paths.store / "ab/x")
    outside.symlink_to(tmp_path)
    back.symlink_to(f"{paths.store}/../../x")
    found = [leads_into(path, paths.store) for path in (inside, outside, back, paths.store)]
    assert found == [True, False, False, False]


@pytest.mark.parametrize("why", [errno.EIO, errno.ESTALE])
def test_what_cannot_be_looked_at_is_not_replaced(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    mine = paths.root / "artifacts/models/m"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    lstat = os.lstat

    def fails(path: Path) -> os.stat_result:
        if path == mine:
            raise OSError(why, os.strerror(why), str(path))
        return lstat(path)

    monkeypatch.setattr(os, "lstat", fails)
    with pytest.raises(ArtifactError, match="cannot be linked"):
        link(paths)
    monkeypatch.undo()
    assert mine.read_text() == "years of work"
