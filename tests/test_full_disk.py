"""A disk or a quota is full, of bytes or of inodes: told by name, nothing lost, and it goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RunCli
from flows import Flow

from nexa_hpc.core import room
from nexa_hpc.core.room import no_room, room_told
from nexa_hpc.errors import CommandError, NoRoomError, StepError

Mount = Callable[..., Path]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Mount]:
    """Mount a small tmpfs as a folder; skipped where we may not."""
    mounted: list[Path] = []

    def mount(name: str, size: str = "64m", inodes: int = 100_000) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        options = f"size={size},nr_inodes={inodes},mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("needs root, and the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def flow(small: Mount, tmp_path: Path) -> Flow:
    """A pipeline in a project whose store alone is on a small disk."""
    project = tmp_path / "project"
    store = small("store", size="1m", inodes=40)
    project.mkdir()
    (project / "nexa.yaml").write_text(f"paths:\n  store: {store}\n")
    return Flow(project)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


BYTES = "head -c 4000000 /dev/zero > $OUT/big"
INODES = "for i in $(seq 100); do : > $OUT/$i; done"
PYTHON = """\
from pathlib import Path

def fill(task):
    out = task.outputs["out"]
    if Path("../room").exists():
        (out / "x").write_text("made")
        return
    for number in range({files}):
        (out / f"f{{number}}").write_bytes(b"x" * {size})
"""


def store(flow: Flow) -> set[str]:
    """Return what is in the store, hidden names and all."""
    place = flow.project.parent / "store"
    return {p.relative_to(place).as_posix() for p in place.glob("??/*")}


@pytest.mark.parametrize(
    ("command", "named", "look"),
    [(BYTES, "no bytes left", "df -h"), (INODES, "no inodes (files) left", "df -i")],
    ids=["bytes", "inodes"],
)
def test_a_command_that_fills_the_store_fails_with_the_cause_and_goes_on_later(
    flow: Flow, run_cli: RunCli, command: str, named: str, look: str
) -> None:
    fill = f"if [ -e ../room ]; then echo made > $OUT/x; else {command}; fi"
    file = flow.write(
        flow.step("first", "echo 1 > $OUT/x", out="out/first"),
        flow.step("fills", fill, out="out/fills", after=["first"]),
        flow.step("below", "cp $IN_input/x $OUT", out="out/below", after=[], **{"in": "out/fills"}),
    )
    done = run_cli("run", file, expect=1)
    entry = flow.steps()["fills"]
    assert (entry["status"], entry["reason"]) == ("FAILED", "exception")
    assert named in entry["message"] and "the command exited with" in entry["message"]
    assert look in entry["message"] and "nexa-hpc pipeline resume" in entry["message"]
    assert named in done.stdout
    assert flow.states()["below"] == "BLOCKED"
    before = store(flow)
    assert len(before) == 1 and not any(".tmp." in name for name in before)
    (flow.project.parent / "room").touch()
    run_cli("resume")
    assert flow.executed() == ["first", "fills", "fills", "below"]
    assert (flow.project / "out/below/x").read_text() == "made\n"
    assert before < store(flow)


@pytest.mark.parametrize(
    ("files", "size", "named"), [(1, 4_000_000, "bytes"), (100, 0, "inodes (files)")]
)
def test_a_handler_that_fills_the_store_fails_with_the_cause(
    flow: Flow, run_cli: RunCli, files: int, size: int, named: str
) -> None:
    (flow.project / "mine.py").write_text(PYTHON.format(files=files, size=size))
    file = flow.write({"id": "fills", "uses": "mine:fill", "out": "out/x"})
    run_cli("run", file, expect=1)
    message = flow.steps()["fills"]["message"]
    assert f"no {named} left on the filesystem of {flow.project.parent}/store" in message
    assert "OSError: [Errno 28] No space left on device" in message
    assert store(flow) == set()
    (flow.project.parent / "room").touch()
    run_cli("resume")
    assert (flow.project / "out/x/x").read_text() == "made"


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_that_others_filled_stops_the_run_and_loses_nothing(
    small: Mount, run_cli: RunCli, what: str
) -> None:
    project = small("project", size="2m", inodes=400)
    (project / "nexa.yaml").touch()
    flow = Flow(project)
    file = flow.write(
        flow.step("first", "echo 1 > $OUT/x", out="out/first"),
        flow.step("second", "echo 2 > $OUT/x", out="out/second"),
    )
    run_cli("run", file)
    kept = (project / "out/first").resolve()
    flow.write(
        flow.step("first", "echo 1 > $OUT/x", out="out/first"),
        flow.step("other", "echo 3 > $OUT/x", out="out/other"),
    )
    fill(project, what)
    done = run_cli("run", file, expect=None)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    named = "inodes (files)" if what == "inodes" else "bytes"
    assert f"no {named} left on the filesystem of {project}" in done.stderr + done.stdout
    assert "make room" in done.stderr + done.stdout
    assert (kept / "x").read_text() == "1\n"
    for filler in project.glob("filler*"):
        filler.unlink()
    run_cli("run", file)
    assert flow.executed() == ["first", "second", "other"]
    assert (project / "out/other/x").read_text() == "3\n"


def fill(folder: Path, what: str) -> None:
    """Use up all of the filesystem of `folder`."""
    with pytest.raises(OSError, match="No space left"):
        if what == "bytes":
            (folder / "filler").write_bytes(b"x" * (8 << 20))
        for number in range(100_000):
            (folder / f"filler{number}").touch()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk_of_logs_and_records_does_not_kill_a_running_step(
    small: Mount, run_cli: RunCli, tmp_path: Path, jobs: str
) -> None:
    state = small("state", size="1m")
    project = tmp_path / "project"
    project.mkdir()
    (project / "nexa.yaml").write_text(f"paths:\n  state: {state}\n")
    flow = Flow(project)
    prints = f"head -c 3000000 /dev/zero | tr '\\0' x; echo whole > $OUT/x; rm -f {state}/filler*"
    file = flow.write(flow.step("prints", f"cp -r ../filler {state}; {prints}", out="out/x"))
    (tmp_path / "filler").write_bytes(b"x" * 700_000)
    run_cli("run", file, "--jobs", jobs, timeout_s=240)
    assert (project / "out/x/x").read_text() == "whole\n", "published, though its log is short"
    (log,) = state.glob("flow/runs/*/logs/*")
    assert 0 < log.stat().st_size < 3_000_000
    steps = json.loads((state / "flow/pipeline_state.json").read_text())["steps"]
    assert steps["prints"]["status"] == "COMPLETED" and flow.executed() == ["prints"]


# -------------------------------------------------------------------------------------- the words


def full_of(monkeypatch: pytest.MonkeyPatch, bytes_left: int, inodes_left: int) -> None:
    found = SimpleNamespace(f_bavail=bytes_left, f_files=9, f_favail=inodes_left)
    monkeypatch.setattr(room.os, "statvfs", lambda path: found)


@pytest.mark.parametrize(
    ("code", "bytes_left", "inodes_left", "said"),
    [
        (errno.ENOSPC, 0, 5, "no bytes left"),
        (errno.ENOSPC, 5, 0, "no inodes (files) left"),
        (errno.ENOSPC, 5, 5, "no bytes left"),
        (errno.EDQUOT, 5, 5, "the quota of bytes or of inodes (files) is used up"),
        (errno.EDQUOT, 0, 5, "no bytes left"),
        (errno.EDQUOT, 5, 0, "no inodes (files) left"),
    ],
)
def test_bytes_inodes_and_quota_are_told_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    bytes_left: int,
    inodes_left: int,
    said: str,
) -> None:
    full_of(monkeypatch, bytes_left, inodes_left)
    told = no_room(OSError(code, os.strerror(code), str(tmp_path / "no/such/file")))
    assert told is not None and said in str(told) and f"{tmp_path}/no/such/file" in str(told)
    assert told.hint is not None and told.hint.endswith("nexa-hpc pipeline resume")
    assert no_room(OSError(code, "without a name"), tmp_path) is not None
    assert no_room(OSError(code, "without a name")) is not None


def test_other_failures_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_of(monkeypatch, 5, 5)
    for error in (OSError(errno.EIO, "Input/output error"), CommandError("exit 1"), KeyError("x")):
        assert no_room(error, tmp_path) is None
    with pytest.raises(CommandError, match="exit 1"), room_told(tmp_path):
        raise CommandError("exit 1")
    full_of(monkeypatch, 0, 5)
    with pytest.raises(NoRoomError, match=r"no bytes left .*: exit 1"), room_told(tmp_path):
        raise CommandError("exit 1")
    with pytest.raises(KeyError), room_told(tmp_path):
        raise KeyError("x")
    assert issubclass(NoRoomError, StepError)
