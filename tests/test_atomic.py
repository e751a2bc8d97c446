"""Writing: whole or not at all, with one winner, whoever looks and whoever dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from nexa_hpc.core import atomic

SPAWN = get_context("spawn")  # a fork of a process with threads warns, and warnings are errors


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --------------------------------------------------------------------------------------- write_file


def test_writes_text_and_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", "grün\n")
    atomic.write_file(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "grün\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert _names(tmp_path) == ["a", "b"]


def test_makes_missing_folders_private(tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(0)
    atomic.write_file(tmp_path / "x" / "y" / "z", "")
    assert _mode(tmp_path / "x") == _mode(tmp_path / "x" / "y") == 0o700
    assert _mode(tmp_path / "x" / "y" / "z") == 0o600


def test_replacing_leaves_a_file_that_is_being_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.write_file(path, "old")
    with path.open() as stream:
        atomic.write_file(path, "new")
        assert stream.read() == "old"
    assert path.read_text() == "new"


def test_a_folder_in_the_way_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write_file(tmp_path / "a", "x")
    assert _names(tmp_path) == ["a"]


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", "x")
    with pytest.raises(FileExistsError):
        atomic.make_folder(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        atomic.write_file(tmp_path / "a" / "b", "x")


def test_json_is_readable_utf8_with_a_final_newline_and_no_nan(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"name": "Zoë", "b": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text()
    assert "Zoë" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Zoë", "b": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == text


def _rewrite(path: Path, stop: Path) -> None:
    turn = 0
    while not stop.exists():
        atomic.write_file(path, f"{turn % 10}" * 200_000)
        turn += 1


def test_a_reader_beside_two_writers_never_sees_a_torn_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "a", tmp_path / "stop"
    atomic.write_file(path, "9" * 200_000)
    writers = [SPAWN.Process(target=_rewrite, args=(path, stop)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    end = time.monotonic() + 10
    while time.monotonic() < end and len(seen) < 8:
        content = path.read_bytes()
        assert len(content) == 200_000
        assert len(set(content)) == 1
        seen.add(content[0])
    stop.touch()
    for writer in writers:
        writer.join()
    assert len(seen) >= 2, "the writers did write"
    assert _names(tmp_path) == ["a", "stop"]


# Runs {action}, and kills itself as it enters its n-th call of one of the system calls that matter.
_DOOMED = """
import os, signal, sys
from pathlib import Path
from nexa_hpc.core import atomic

countdown = int(sys.argv[2])

def deadly(call):
    def wrapper(*args, **kwargs):
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper

for name in ("open", "write", "fsync", "close", "replace", "rename", "link", "unlink", "symlink"):
    setattr(os, name, deadly(getattr(os, name)))
{action}
"""


def _killed_at(action: str, target: Path, call: int) -> bool:
    """Run `action` and kill it at its `call`-th system call; False when it ended before."""
    done = subprocess.run(
        [sys.executable, "-c", _DOOMED.format(action=action), str(target), str(call)],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("old", [None, "old"])
def test_killed_between_any_two_steps_the_file_is_the_old_or_the_new(
    tmp_path: Path, old: str | None
) -> None:
    outcomes = []
    for call in range(1, 30):
        path = tmp_path / str(call) / "a"
        path.parent.mkdir()
        if old is not None:
            atomic.write_file(path, old)
        killed = _killed_at("atomic.write_file(Path(sys.argv[1]), 'new')", path, call)
        outcomes.append(path.read_text() if path.exists() else None)
        if not killed:
            break
    assert not killed
    assert set(outcomes) == {old, "new"}
    assert outcomes == sorted(outcomes, key=lambda content: content == "new"), "old, then new"


def test_killed_between_any_two_steps_a_link_points_to_the_old_or_the_new(tmp_path: Path) -> None:
    outcomes = []
    for call in range(1, 30):
        link = tmp_path / str(call) / "out"
        atomic.replace_link(link, "old")
        killed = _killed_at("atomic.replace_link(Path(sys.argv[1]), 'new')", link, call)
        outcomes.append(os.readlink(link))
        if not killed:
            break
    assert not killed
    assert set(outcomes) == {"old", "new"}


# -------------------------------------------------------------------------------------- create_once


def test_the_first_creates_and_the_second_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "1.json"
    assert atomic.create_once(path, {"by": "a"})
    assert not atomic.create_once(path, {"by": "b"})
    assert json.loads(path.read_text()) == {"by": "a"}
    assert _names(path.parent) == ["1.json"]


def _race(folder: Path, me: int, gate: Path) -> None:
    while not gate.exists():
        pass
    won = [n for n in range(40) if atomic.create_once(folder / f"{n}.json", me)]
    atomic.write_json(folder.parent / f"won.{me}", won)


def test_of_several_processes_exactly_one_creates_each_file(tmp_path: Path) -> None:
    folder, gate = tmp_path / "claims", tmp_path / "gate"
    racers = [SPAWN.Process(target=_race, args=(folder, me, gate)) for me in range(4)]
    for racer in racers:
        racer.start()
    gate.touch()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    won = {me: json.loads((tmp_path / f"won.{me}").read_text()) for me in range(4)}
    assert sorted(n for numbers in won.values() for n in numbers) == list(range(40))
    for me, numbers in won.items():
        for n in numbers:
            assert json.loads((folder / f"{n}.json").read_text()) == me
    assert len(_names(folder)) == 40, "no temporary file is left"


def test_a_link_whose_reply_was_lost_counts_as_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # NFS: the server made the link, its reply was lost, the client's second request says EEXIST.
    real = os.link

    def lossy(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lossy)
    assert atomic.create_once(tmp_path / "a", 1)


def test_a_stale_handle_is_won_only_if_the_link_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def stale(source: Path, target: Path) -> None:
        if target.name == "made":
            real(source, target)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "link", stale)
    assert atomic.create_once(tmp_path / "made", 1)
    with pytest.raises(OSError, match="Stale"):
        atomic.create_once(tmp_path / "not made", 1)
    assert _names(tmp_path) == ["made"]


# -------------------------------------------------------------------------------- folders and links


def test_renaming_a_folder_never_replaces_one_that_holds_something(tmp_path: Path) -> None:
    for name in ("a", "b"):
        atomic.write_file(tmp_path / name / name, "")
    assert not atomic.rename_folder(tmp_path / "a", tmp_path / "b")
    assert _names(tmp_path / "a") == ["a"]
    assert _names(tmp_path / "b") == ["b"]
    assert atomic.rename_folder(tmp_path / "a", tmp_path / "c")
    assert _names(tmp_path) == ["b", "c"]


def test_renaming_a_folder_onto_a_file_or_a_link_leaves_both(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert not atomic.rename_folder(tmp_path / "a", tmp_path / "file")
    assert not atomic.rename_folder(tmp_path / "a", tmp_path / "link")
    assert _names(tmp_path) == ["a", "file", "link"]


def test_renaming_what_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.rename_folder(tmp_path / "a", tmp_path / "b")


def test_a_link_is_not_put_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace_link(tmp_path / "out", "target")
    assert _names(tmp_path) == ["out"]


def test_a_second_name_is_a_link_to_the_same_bytes_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    atomic.link_file(tmp_path / "a", tmp_path / "deep" / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "deep" / "b")
    with pytest.raises(FileExistsError):
        atomic.link_file(tmp_path / "a", tmp_path / "deep" / "b")


def test_a_log_is_appended_to_and_each_line_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "train.1.log"
    for line in (b"one\n", b"two\n"):
        with atomic.open_log(path) as log:
            log.write(line)
            assert path.read_bytes().endswith(line), "before it is closed"
    assert path.read_bytes() == b"one\ntwo\n"
    assert _mode(path) == 0o600


def test_removing_a_tree_that_is_gone_is_no_error(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a" / "b", "")
    atomic.remove_tree(tmp_path / "a")
    atomic.remove_tree(tmp_path / "a")
    assert _names(tmp_path) == []


# ---------------------------------------------------------------------------------------- disk full


def test_on_a_full_disk_the_old_file_stays_whole_and_no_rubbish_is_left(full_disk: Path) -> None:
    atomic.write_file(full_disk / "a", "old")
    with pytest.raises(OSError, match="No space left") as caught:
        atomic.write_file(full_disk / "a", b"n" * (4 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert (full_disk / "a").read_text() == "old"
    with pytest.raises(OSError, match="No space left"):
        atomic.create_once(full_disk / "b", "n" * (4 << 20))
    assert _names(full_disk) == ["a"]
