"""Who may read, add and change: private by default, a group's where the settings say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import RunCli, child_environment
from users import ALICE, BOB, GROUP, MALLORY, User, below, lab, mode

from nexa_hpc import create_artifact
from nexa_hpc.core import digests
from nexa_hpc.core.artifacts import COMPLETE
from nexa_hpc.core.publishing import discard_left_behind
from nexa_hpc.errors import SpecError, UserError

__all__ = ["lab"]

UMASKS = pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)

MESSY = (
    "echo '{\"accuracy\": 1}' > $OUT/metrics.json; mkdir -p $OUT/deep; echo hidden > $OUT/deep/x; "
    "cp /bin/true $OUT/tool; chmod 700 $OUT/tool; chmod 400 $OUT/deep/x; "
    "chmod 777 $OUT/metrics.json"
)


def pipeline(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"pipeline": {"name": name, "steps": list(steps)}}


COMMON = planned.command("common", MESSY, out="out/common")


# ---------------------------------------------------------------------------------------- private


@UMASKS
@pytest.mark.parametrize("setgid", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_without_a_group_all_is_the_owners_whatever_the_umask(
    project: Path, umask: Callable[[int], int], mask: int, setgid: bool, jobs: int
) -> None:
    if setgid:
        project.chmod(0o2770)
    umask(mask)
    register = {"id": "r", "uses": "core.registry.register", "params": {"name": "m", "uri": "a"}}
    done = planned.run(project, planned.command("a", MESSY, out="a"), register, jobs=jobs)
    assert done.succeeded
    roots = [project / ".nexa_state", project / "artifacts"]
    assert {path.name for path in project.iterdir()} >= {"a", ".nexa_state", "artifacts"}
    payload = done.result("a")
    for path in (path for root in roots for path in below(root)):
        if payload not in path.parents or path.name in ("meta.json", COMPLETE):
            allowed = 0o2700 if path.is_dir() else 0o600
            assert mode(path) & ~allowed == 0, f"{path}: {mode(path):o}"


@UMASKS
def test_a_free_standing_artifact_is_the_owners(
    tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    made = create_artifact(tmp_path / "x/y", lambda folder: (folder / "a").write_text("a"))
    assert [mode(path) for path in (made.path.parent, made.path)] == [0o700, 0o700]


# ---------------------------------------------------------------------------------- a shared store


@pytest.fixture
def two(lab: Path, request: pytest.FixtureRequest) -> tuple[User, User]:
    """Two users with projects of their own and one store, one registry, of their group."""
    shared = lab / "shared"
    shared.mkdir()
    os.chown(shared, -1, GROUP)
    shared.chmod(getattr(request, "param", 0o775))
    users = User(ALICE, lab), User(BOB, lab)
    for user in users:
        settings = {
            "group": str(GROUP), "store": "../shared/store", "registry": "../shared/registry",
        }  # fmt: skip
        user.write("nexa.yaml", {"paths": settings})
    return users


@UMASKS
@pytest.mark.parametrize("two", [0o775, 0o2775], indirect=True, ids=["plain", "setgid"])
def test_two_users_publish_adopt_and_promote(two: tuple[User, User], mask: int) -> None:
    alice, bob = two
    register = {
        "id": "register", "uses": "core.registry.register",
        "params": {"name": "model", "uri": "common", "meta": "common/metrics.json"},
    }  # fmt: skip
    promote = {
        "id": "promote", "uses": "core.registry.promote",
        "params": {"name": "model", "version": "registered", "tag": "production"},
    }  # fmt: skip
    hers, his = planned.command("hers", MESSY + "; echo 1"), planned.command("his", MESSY + "; :")
    alice.write("p.yaml", pipeline("a", COMMON, hers, register, promote))
    bob.write("p.yaml", pipeline("b", COMMON, hers, his, register, promote))
    alice.run("run", "p.yaml", umask=mask)
    told = bob.run("run", "p.yaml", umask=mask).stdout
    assert "common: SKIPPED" in told and "hers: SKIPPED" in told, "her results are his"
    assert "his: COMPLETED" in told and "promote: SKIPPED" in told
    alice.write("p.yaml", pipeline("a", COMMON, his))
    assert "his: SKIPPED" in alice.run("run", "p.yaml", umask=mask).stdout, "and his are hers"

    bob.run("models", "promote", "model", "1", "canary", umask=mask)
    alice.run("models", "promote", "model", "latest", "staging", umask=mask)
    alice.run("models", "rollback", "model", "staging", umask=mask, expect=2)
    at = bob.run("models", "resolve", "model@staging").stdout.strip()
    assert (Path(at) / "deep/x").read_text() == "hidden\n"
    bob.run("artifacts", "verify")

    shared = alice.project.parent / "shared"
    for path in [*below(shared / "store"), *below(shared / "registry")]:
        assert path.lstat().st_gid == GROUP, path
        assert mode(path) == _expected(path, shared / "store"), f"{path}: {mode(path):o}"


def _expected(path: Path, store: Path) -> int:
    depth = len(path.relative_to(store).parts) if path.is_relative_to(store) else 0
    if path.is_dir():
        return 0o2750 if depth >= 2 else 0o2770
    return 0o750 if path.name in ("tool", "metrics.json") else 0o640


def test_two_users_publish_into_one_store_at_once(two: tuple[User, User]) -> None:
    steps = [planned.command(f"s{n}", f"echo {n} > $OUT/x") for n in range(12)]
    running = []
    for user, name in zip(two, "ab", strict=True):
        user.write("p.yaml", pipeline(name, *steps))
        running.append(user.start("run", "p.yaml", umask=0o077))
    for process in running:
        told, _ = process.communicate(timeout=400)
        assert process.returncode == 0, told
    assert two[0].run("artifacts", "verify").stdout.startswith("12 whole")


def test_what_one_published_the_other_cannot_change_but_replace_when_damaged(
    two: tuple[User, User],
) -> None:
    alice, bob = two
    alice.write("p.yaml", pipeline("a", COMMON))
    bob.write("p.yaml", pipeline("b", COMMON))
    alice.run("run", "p.yaml")
    (complete,) = (alice.project.parent / "shared/store").rglob(COMPLETE)
    published = complete.parent
    spoil = f"rm -rf {published}/deep; echo x > {published}/metrics.json; mv {published} /tmp/x"
    subprocess.run(bob.command("sh", "-c", spoil), stderr=subprocess.DEVNULL, check=False)
    bob.run("artifacts", "verify")
    assert "common: SKIPPED" in bob.run("run", "p.yaml").stdout

    (published / "deep/x").unlink()
    assert "common: COMPLETED" in bob.run("run", "p.yaml").stdout
    assert published.stat().st_uid == BOB
    assert "common: SKIPPED" in alice.run("run", "p.yaml").stdout
    alice.run("artifacts", "verify")


def test_gc_takes_nothing_that_another_user_published(two: tuple[User, User]) -> None:
    alice, bob = two
    alice.write("p.yaml", pipeline("a", COMMON))
    bob.write("p.yaml", pipeline("b", planned.command("b", "echo b > $OUT/x")))
    alice.run("run", "p.yaml")
    bob.run("run", "p.yaml")
    told = bob.run("artifacts", "gc", "--orphans").stderr
    assert "left for the next gc" in told and "Permission denied" in told
    assert "common: SKIPPED" in alice.run("run", "p.yaml").stdout
    assert alice.run("artifacts", "verify").stdout.startswith("2 whole")


def test_what_another_user_is_writing_is_left_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    hers, mine = tmp_path / "k.tmp.h.1.00000000", tmp_path / "k.tmp.h.2.00000000"
    for folder in (hers, mine):
        folder.mkdir()
    os.chown(hers, ALICE, ALICE)
    for folder in (hers, mine):
        discard_left_behind(folder, tmp_path / "k")
    assert list(tmp_path.iterdir()) == [hers]


def test_an_older_project_is_shared_by_the_first_run_with_a_group(lab: Path) -> None:
    alice, bob = User(ALICE, lab), User(BOB, lab)
    alice.write("p.yaml", pipeline("p", COMMON))
    alice.write("nexa.yaml", {})
    alice.run("run", "p.yaml")
    private = f"{alice.project}/.nexa_state"
    told = bob.run("--project", alice.project, "status", expect=2).stderr
    assert "permission denied" in told and f"{private} belongs to user {ALICE}" in told

    alice.write("nexa.yaml", {"paths": {"group": str(GROUP)}})
    assert "common: SKIPPED" in alice.run("run", "p.yaml").stdout
    bob.run("--project", alice.project, "status", "p-1")
    bob.run("--project", alice.project, "artifacts", "verify")
    bob.run("--project", alice.project, "logs", "common", "p-1")
    for path in below(alice.project / "artifacts/.store"):
        assert mode(path) == _expected(path, alice.project / "artifacts/.store"), path
    assert mode(alice.project / ".nexa_state") == 0o2750


# ------------------------------------------------------------------------- another user's run


@pytest.fixture
def shown(lab: Path) -> tuple[User, User]:
    """Alice has run a pipeline, with a failure, in a project that her group can reach; and Bob."""
    alice, bob = User(ALICE, lab), User(BOB, lab)
    os.chown(alice.project, ALICE, GROUP)
    alice.project.chmod(0o2775)
    alice.write("nexa.yaml", {"paths": {"group": str(GROUP)}})
    register = {
        "id": "register", "uses": "core.registry.register",
        "params": {"name": "model", "uri": "out/common"},
    }  # fmt: skip
    failing = planned.command("failing", "echo look here; test -e /nowhere")
    reader = planned.command("reader", "cat $IN_text", **{"in": {"text": "nexa.yaml"}})
    alice.write("p.yaml", pipeline("p", COMMON, register, reader, failing))
    os.utime(alice.project / "nexa.yaml", (0, 0))
    alice.run("run", "p.yaml", umask=0o077, expect=1)
    return alice, bob


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path): path.lstat() for path in below(folder)}
    return {path: (s.st_mode, s.st_uid, s.st_mtime_ns) for path, s in found.items()}


def test_another_users_run_is_shown(shown: tuple[User, User]) -> None:
    alice, bob = shown
    before = everything(alice.project)
    there = {"cwd": alice.project}
    assert "FAILED" in bob.run("status", **there).stdout
    assert "look here" in bob.run("logs", "failing", **there).stdout
    assert "p-1  " in bob.run("list", **there).stdout
    assert "common    SKIP" in bob.run("plan", "p.yaml", **there).stdout
    assert "failing: RUN" in bob.run("why", "failing", **there).stdout
    bob.run("viz", **there)
    assert "/.store/" in bob.run("models", "resolve", "model@1", **there).stdout
    bob.run("models", "show", "model", **there)
    assert "complete" in bob.run("artifacts", "list", **there).stdout
    assert everything(alice.project) == before


@pytest.mark.parametrize(
    "command", ["run p.yaml", "resume", "rerun p.yaml --from common", "rerun p --from common",
                "cancel", "resume p-1", "artifacts gc"],
)  # fmt: skip
def test_another_users_run_is_not_advanced(shown: tuple[User, User], command: str) -> None:
    alice, bob = shown
    before = everything(alice.project)
    told = bob.run(*command.split(), cwd=alice.project, expect=2).stderr
    assert f"belongs to user {ALICE}: another user's runs are shown, never advanced" in told
    assert "NEXA_HPC_STATE=FOLDER nexa-hpc run FILE" in told
    assert everything(alice.project) == before


def test_root_does_not_advance_it_either(shown: tuple[User, User], run_cli: RunCli) -> None:
    alice, _ = shown
    told = run_cli("resume", cwd=alice.project, expect=2).stderr
    assert f"belongs to user {ALICE}" in told


def test_with_a_state_of_ones_own_the_pipeline_is_run(shown: tuple[User, User]) -> None:
    alice, bob = shown
    mine = {"cwd": alice.project, "env": {"NEXA_HPC_STATE": str(bob.project / "state")}}
    told = bob.run("run", "p.yaml", **mine, expect=1).stdout
    assert "common: SKIPPED" in told and "register: SKIPPED" in told
    assert "p-1" in bob.run("list", **mine).stdout
    assert mode(bob.project / "state") == 0o2750
    (alice.project / "out/common").unlink()
    assert "common: SKIPPED" in bob.run("run", "p.yaml", **mine, expect=1).stdout
    link = alice.project / "out/common"
    assert link.is_symlink() and link.lstat().st_uid == BOB, "a view of the store is for both"
    assert mode(alice.project / "out") == mode(alice.project / "artifacts") == 0o2770


def test_scratch_is_not_shown(shown: tuple[User, User]) -> None:
    state = shown[0].project / ".nexa_state"
    assert all(mode(path) & 0o077 == 0 for path in below(state / "work"))
    records = [*below(state / "records"), *below(state / "p")]
    assert {mode(path) for path in records if path.is_file()} == {0o640}
    assert {mode(path) for path in records if path.is_dir()} == {0o2750}


def test_remembered_digests_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED_S", -1e9)
    (tmp_path / "data").write_text("x")
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o2750)
    digester = digests.Digester(tmp_path / "state/digests/host.json")
    digester.digest(tmp_path / "data")
    digester.save()
    made = [tmp_path / "state/digests", tmp_path / "state/digests/host.json"]
    assert [mode(path) for path in made] == [0o2700, 0o600]


# -------------------------------------------------------------------------- refused before writing


@pytest.mark.parametrize("root", [".nexa_state", "artifacts/.store", "artifacts/.registry"])
@pytest.mark.parametrize("bits", [0o777, 0o2777, 0o1777])
def test_a_root_that_anybody_may_change_is_refused(
    project: Path, run_cli: RunCli, root: str, bits: int
) -> None:
    (project / root).mkdir(parents=True)
    (project / root).chmod(bits)
    (project / "p.yaml").write_text(json.dumps(pipeline("p", COMMON)))
    sticky = bool(bits & 0o1000)
    told = run_cli("run", "p.yaml", expect=0 if sticky else 2).stderr
    if not sticky:
        assert f"{project / root} can be changed by anybody" in told
        assert f"hint: chmod o-w '{project / root}'" in told
        assert sorted(p.name for p in project.rglob("*") if p.is_file()) == ["nexa.yaml", "p.yaml"]


@pytest.mark.parametrize("root", [".nexa_state", "artifacts/.store", "artifacts/.registry"])
@pytest.mark.parametrize("bits", [0o755, 0o775, 0o2755])
def test_a_root_of_another_user_is_refused(
    project: Path, run_cli: RunCli, root: str, bits: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (project / root).mkdir(parents=True)
    os.chown(project / root, MALLORY, MALLORY)
    (project / root).chmod(bits)
    (project / "p.yaml").write_text(json.dumps(pipeline("p", COMMON)))
    told = run_cli("run", "p.yaml", expect=2).stderr
    assert f"{project / root} belongs to user {MALLORY}" in told
    assert sorted(p.name for p in project.rglob("*") if p.is_file()) == ["nexa.yaml", "p.yaml"]


def test_a_registry_of_another_user_is_refused_by_what_changes_it(
    project: Path, run_cli: RunCli
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (project / "artifacts/.registry").mkdir(parents=True)
    os.chown(project / "artifacts/.registry", MALLORY, MALLORY)
    made = create_artifact(project / "a", lambda folder: (folder / "x").write_text(""))
    told = run_cli("models", "register", "m", made.path, expect=2).stderr
    assert "is not shared with a group of yours" in told
    run_cli("models", "list")


def test_a_group_that_is_not_there_is_told_before_anything_is_written(
    project: Path, run_cli: RunCli
) -> None:
    (project / "nexa.yaml").write_text("paths: {group: no-such-group}\n")
    (project / "p.yaml").write_text(json.dumps(pipeline("p", COMMON)))
    for command in ("run", "plan"):
        told = run_cli(command, "p.yaml", expect=2).stderr
        assert "error: paths.group: no group 'no-such-group' on this machine" in told
    assert sorted(path.name for path in project.iterdir()) == ["nexa.yaml", "p.yaml"]
    assert "nothing has run" in run_cli("list").stdout, "reading needs no group"


def test_a_group_that_one_is_not_in_is_refused(lab: Path) -> None:
    mallory = User(MALLORY, lab, groups="")
    mallory.write("nexa.yaml", {"paths": {"group": str(GROUP)}})
    mallory.write("p.yaml", pipeline("p", COMMON))
    told = mallory.run("run", "p.yaml", expect=2).stderr
    assert f"you are not in the group '{GROUP}'" in told
    assert not (mallory.project / ".nexa_state").exists()


def test_who_is_not_in_the_group_gets_in_nowhere(shown: tuple[User, User], lab: Path) -> None:
    alice, _ = shown
    mallory = User(MALLORY, lab, groups="")
    for command in ("status", "list", "models list", "artifacts list"):
        told = mallory.run(*command.split(), cwd=alice.project, expect=2).stderr
        assert "permission denied" in told


# ------------------------------------------------------------------------ where code is loaded from


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o775])
def test_handlers_in_a_project_that_anybody_may_change_are_refused(
    project: Path, bits: int
) -> None:
    (project / "mine.py").write_text("def make(out_dir): (out_dir / 'x').write_text('')\n")
    step = {"id": "s", "uses": "mine:make"}
    project.chmod(bits)
    if bits != 0o777:
        planned.run(project, step)
        return
    with pytest.raises(SpecError, match="can be changed by anybody"):
        planned.plan(project, step)


def test_a_worker_imports_nothing_from_the_current_folder(
    project: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("ctypes", "traceback", "signal", "nexa_hpc"):
        (trap / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    (project / "p.yaml").write_text(json.dumps(pipeline("p", COMMON, planned.command("b"))))
    script = "import sys, runpy; sys.argv[:] = ['nexa-hpc', *sys.argv[1:]]; sys.path.remove(''); "
    script += "from nexa_hpc.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "run", project / "p.yaml", "--jobs", "2"],
        cwd=trap, env=child_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "sprung").exists()


def test_prepare_refuses_in_python_too(project: Path) -> None:
    (project / ".nexa_state").mkdir()
    (project / ".nexa_state").chmod(0o777)
    with pytest.raises(UserError, match=r"the state folder .* can be changed by anybody"):
        planned.run(project, COMMON)
