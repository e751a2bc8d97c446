"""Outs: each in a place of its own, inside the project, and nobody's files are in the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_hpc.core.document import Document, parse_document
from nexa_hpc.core.outs import check_outs
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.spec import PipelineSpec, Step, parse_pipeline

NO_DOCUMENT = Document({}, {}, "p")
Check = Callable[..., list[str]]


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    root = tmp_path / "project"
    root.mkdir()
    return ProjectPaths.at(root)


@pytest.fixture
def check(paths: ProjectPaths) -> Check:
    """Return the messages about the `out`s of steps s0, s1, …"""

    def messages(
        *outs: str | dict[str, str], allow_absolute: bool = False, places: ProjectPaths = paths
    ) -> list[str]:
        steps = tuple(Step(id=f"s{n}", uses="x", out=out) for n, out in enumerate(outs))
        spec = PipelineSpec(name="p", steps=steps)
        problems = check_outs(spec, NO_DOCUMENT, places, allow_absolute)
        assert all(problem.step and problem.key and problem.file == "p" for problem in problems)
        return [problem.message for problem in problems]

    return messages


@pytest.mark.parametrize(
    "out", ["a", "artifacts/checkpoints/x", "a/b/", "./a", "a//b", "ä ö", "…", "${x}", "a.b", "-x"]
)
def test_a_place_of_its_own_is_fine(check: Check, out: str) -> None:
    assert check(out, "elsewhere") == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("..", "leads outside the project root"),
        ("../x", "leads outside the project root"),
        ("a/../../x", "leads outside the project root"),
        ("a/../b", "goes back by `..`; write 'b'"),
        ("/abs/x", "is absolute; write it from the project root"),
        ("~/x", "begins with `~`, which is not expanded"),
        (".", "is the project root itself"),
        ("./", "is the project root itself"),
        (".nexa_state", "lies inside the state folder (.nexa_state)"),
        (".nexa_state/x", "lies inside the state folder (.nexa_state)"),
        (".nexa_state/work/x", "lies inside the work folder (.nexa_state/work)"),
        ("artifacts/.store", "lies inside the store (artifacts/.store)"),
        ("artifacts/.store/ab/x", "lies inside the store (artifacts/.store)"),
        ("artifacts/.registry/m", "lies inside the registry (artifacts/.registry)"),
        ("artifacts", "contains the store (artifacts/.store)"),
        ("a\0b", "holds control characters"),
        ("a\nb", "holds control characters"),
        ("a\x1b[31m", "holds control characters"),
        ("a\x7f", "holds control characters"),
        ("a\ud800", "is no valid text"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("x" * 256, "is too long: a name"),
        ("ä" * 128, "is too long: a name"),
        ("/".join(["abc"] * 1200), "is too long: more than 4000 bytes"),
    ],
)
def test_it_is_refused(check: Check, out: str, message: str) -> None:
    (found,) = check(out)
    assert message in found
    assert found.isprintable(), "a terminal would act on it"
    assert len(found) < 400


def test_a_name_that_only_begins_like_a_folder_of_ours_is_fine(check: Check) -> None:
    assert check(".nexa_state_too", "artifacts/.stores/x", "artifacts/.registry.old") == []


def test_a_store_elsewhere_leaves_its_usual_place_free(
    check: Check, paths: ProjectPaths, tmp_path: Path
) -> None:
    moved = ProjectPaths.at(paths.root, store=str(tmp_path / "scratch"), registry="models")
    assert check("artifacts", places=moved) == []
    assert check("models/m", places=moved)


# ------------------------------------------------------------------------------ against the disk


def test_a_folder_of_the_user_is_left_alone(check: Check, paths: ProjectPaths) -> None:
    (paths.root / "results").mkdir()
    assert check("results") == [
        "'results' is a folder that nexa_hpc did not make; it is left alone"
    ]
    assert check("results/new") == [], "but a place inside of it may be taken"


def test_a_file_of_the_user_is_left_alone(check: Check, paths: ProjectPaths) -> None:
    (paths.root / "c.yaml").touch()
    assert check("c.yaml") == ["'c.yaml' is a file that nexa_hpc did not make; it is left alone"]
    assert check("c.yaml/x") == ["'c.yaml/x' leads through 'c.yaml', which is a file"]


def test_a_link_into_the_store_is_ours_whether_its_target_is_there_or_not(
    check: Check, paths: ProjectPaths
) -> None:
    (paths.root / "artifacts").mkdir()
    (paths.root / "artifacts" / "x").symlink_to(".store/ab/abcd")
    assert check("artifacts/x") == []
    (paths.store / "ab" / "abcd").mkdir(parents=True)
    assert check("artifacts/x") == []


def test_nothing_may_lie_inside_a_result(check: Check, paths: ProjectPaths) -> None:
    (paths.root / "artifacts").mkdir()
    (paths.root / "artifacts" / "x").symlink_to(".store/ab/abcd")
    assert check("artifacts/x/deeper") == [
        "'artifacts/x/deeper' leads through 'artifacts/x', which is a symbolic link"
    ]


@pytest.mark.parametrize("target", ["/tmp", "real", "missing", "../outside", "artifacts/.stores"])
def test_a_link_of_the_user_is_left_alone_and_not_gone_through(
    check: Check, paths: ProjectPaths, target: str
) -> None:
    (paths.root / "real").mkdir()
    (paths.root / "link").symlink_to(target)
    assert "is a symbolic link that nexa_hpc did not make" in check("link")[0]
    assert "leads through 'link', which is a symbolic link" in check("link/x")[0]
    assert "leads through 'link', which is a symbolic link" in check("link/deep/er")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_told(check: Check, paths: ProjectPaths) -> None:
    (paths.root / "closed").mkdir(mode=0)
    assert "cannot be looked at: Permission denied" in check("closed/x")[0]


def test_what_the_disk_refuses_is_told_in_words(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "cannot be looked at: Permission denied" in check("a/x")[0]


# ----------------------------------------------------------------------------------- absolute


def test_an_absolute_place_is_fine_where_it_is_allowed(check: Check, tmp_path: Path) -> None:
    assert check(str(tmp_path / "scratch" / "x"), allow_absolute=True) == []


def test_an_absolute_place_may_not_reach_into_what_is_ours_by_a_link(
    check: Check, paths: ProjectPaths, tmp_path: Path
) -> None:
    paths.store.mkdir(parents=True)
    (tmp_path / "way").symlink_to(paths.store)
    (found,) = check(str(tmp_path / "way" / "x"), allow_absolute=True)
    assert "lies inside the store" in found


@pytest.mark.parametrize("out", ["/", "{root}", "{root}/..", "{root}/.nexa_state"])
def test_an_absolute_place_may_not_contain_the_project(
    check: Check, paths: ProjectPaths, out: str
) -> None:
    assert check(out.format(root=paths.root), allow_absolute=True)


def test_two_ways_to_one_absolute_place_are_one_place(
    check: Check, paths: ProjectPaths, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    outs = [str(tmp_path / "real" / "x"), str(tmp_path / "way" / "x")]
    assert "is the `out` of step 's0', too" in check(*outs, allow_absolute=True)[0]
    inside = [str(paths.root / "x"), "x"]
    assert "is the `out` of step 's0', too" in check(*inside, allow_absolute=True)[0]


# --------------------------------------------------------------------------- against each other


def test_two_steps_may_not_share_a_place(check: Check) -> None:
    assert check("a/b", "x", "./a//b/") == ["'./a//b/' is the `out` of step 's0', too"]
    assert check({"m": "a", "n": "a"}) == ["'a' is the `out` of step 's0', too"]


def test_a_place_may_not_lie_inside_another(check: Check) -> None:
    assert check("a/b/c", "a", "a.b", "a-b", "ab") == [
        "'a/b/c' lies inside 'a', the `out` of step 's1'"
    ]


def test_a_place_deep_inside_is_found_behind_its_neighbours(check: Check) -> None:
    found = check("a", "a/b", "a/b/c", "b", "a/z", "a!", "a0")
    assert [message.partition(" lies inside ")[0] for message in found] == [
        "'a/b'", "'a/b/c'", "'a/z'",
    ]  # fmt: skip


def test_problems_have_their_lines_and_keys(paths: ProjectPaths) -> None:
    text = (
        "pipeline:\n  name: p\n  steps:\n"
        "    - {id: a, uses: x, out: same}\n"
        "    - id: b\n      uses: x\n      out:\n        model: same\n        log: ../up\n"
    )
    document = parse_document(text.encode(), "p.yaml")
    problems = check_outs(parse_pipeline(document), document, paths, False)
    assert [str(problem) for problem in problems] == [
        "p.yaml:9: step 'b': out.log: '../up' leads outside the project root",
        "p.yaml:8: step 'b': out.model: 'same' is the `out` of step 'a' (line 4), too",
    ]


def test_ten_thousand_outs_are_checked_in_no_time(
    check: Check, paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (paths.root / "out" / "7").mkdir(parents=True)
    listed: list[str] = []
    scandir = os.scandir

    def count(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    outs = [f"out/{n % 10}/{n}" for n in range(10_000)]
    start = time.process_time()
    assert check(*outs) == []
    assert time.process_time() - start < 3
    assert len(listed) == len(set(listed)) < 20, "each folder is listed once"
