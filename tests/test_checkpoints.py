"""Checkpoints: only what was sealed, and is still whole, is resumed from."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from nexa_hpc.core import checkpoints


def _checkpoint(work_dir: Path, name: str, content: str = "weights") -> Path:
    folder = work_dir / name
    (folder / "deep").mkdir(parents=True)
    (folder / "model.bin").write_text(content)
    (folder / "deep" / "optimizer.bin").write_text(content * 2)
    return folder


def test_without_a_seal_nothing_is_trusted(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "checkpoint-1")
    assert checkpoints.newest([tmp_path]) is None
    assert checkpoints.newest([tmp_path / "nowhere"]) is None
    assert checkpoints.newest([]) is None


def test_the_newest_seal_wins(tmp_path: Path) -> None:
    for number in range(1, 13):  # past 9: by number, not by name
        checkpoints.seal(tmp_path, _checkpoint(tmp_path, f"checkpoint-{number}"))
    found = checkpoints.newest([tmp_path])
    assert found == checkpoints.Checkpoint(tmp_path, tmp_path / "checkpoint-12")


def test_a_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "state.txt").write_text("7")
    checkpoints.seal(tmp_path, tmp_path / "state.txt")
    found = checkpoints.newest([tmp_path])
    assert found is not None
    assert found.path.read_text() == "7"


def test_one_that_lost_bytes_or_files_is_passed_over(tmp_path: Path) -> None:
    for name in ("first", "short", "gone", "in part"):
        checkpoints.seal(tmp_path, _checkpoint(tmp_path, name))
    (tmp_path / "in part" / "model.bin").unlink()
    (tmp_path / "short" / "deep" / "optimizer.bin").write_text("w")
    shutil.rmtree(tmp_path / "gone")
    found = checkpoints.newest([tmp_path])
    assert found is not None
    assert found.path == tmp_path / "first"


def test_an_empty_folder_that_was_removed_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    checkpoints.seal(tmp_path, tmp_path / "empty")
    assert checkpoints.newest([tmp_path]) is not None
    (tmp_path / "empty").rmdir()
    assert checkpoints.newest([tmp_path]) is None


def test_more_written_to_a_sealed_file_needs_a_new_seal(tmp_path: Path) -> None:
    path = tmp_path / "state.txt"
    path.write_text("1")
    checkpoints.seal(tmp_path, path)
    path.write_text("1, 2")
    assert checkpoints.newest([tmp_path]) is None, "half-written, for all we know"
    checkpoints.seal(tmp_path, path)
    assert checkpoints.newest([tmp_path]) is not None


def test_earlier_attempts_are_asked_in_the_order_given(tmp_path: Path) -> None:
    third, second, first = (tmp_path / name for name in ("3", "2", "1"))
    _checkpoint(third, "unsealed")
    checkpoints.seal(second, _checkpoint(second, "b"))
    checkpoints.seal(first, _checkpoint(first, "a"))
    found = checkpoints.newest([third, second, first])
    assert found == checkpoints.Checkpoint(second, second / "b")


def test_what_else_lies_among_the_seals_is_ignored(tmp_path: Path) -> None:
    checkpoints.seal(tmp_path, _checkpoint(tmp_path, "a"))
    (tmp_path / "sealed" / "9.json.tmp.host.1.ab").write_text("{")
    (tmp_path / "sealed" / "note.json").write_text("{")
    found = checkpoints.newest([tmp_path])
    assert found is not None
    checkpoints.seal(tmp_path, _checkpoint(tmp_path, "b"))
    assert sorted(p.name for p in (tmp_path / "sealed").iterdir() if p.stem.isdigit()) == [
        "1.json",
        "2.json",
    ]


def test_sealing_what_is_not_there_or_not_ours_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoints.seal(tmp_path, tmp_path / "nowhere")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("x")
    with pytest.raises(ValueError, match="subpath"):
        checkpoints.seal(tmp_path, outside)
    assert checkpoints.newest([tmp_path]) is None


def test_every_file_and_folder_is_durable_before_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, Path]] = []
    monkeypatch.setattr(checkpoints.atomic, "sync_file", lambda p: order.append(("file", p)))
    monkeypatch.setattr(checkpoints.atomic, "sync_folder", lambda p: order.append(("folder", p)))
    folder = _checkpoint(tmp_path, "c")
    checkpoints.seal(tmp_path, folder)
    assert order == [
        ("file", folder / "deep" / "optimizer.bin"),
        ("file", folder / "model.bin"),
        ("folder", folder),
        ("folder", folder / "deep"),
        ("folder", tmp_path),
        ("folder", tmp_path / "sealed"),
    ]


# ------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_outlives_the_writer_that_replaces_its_file(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state.txt"
    state.parent.mkdir()
    state.write_text("1")
    checkpoints.snapshot(tmp_path, [state])
    (tmp_path / "new").write_text("2, and half of")
    (tmp_path / "new").rename(state)
    found = checkpoints.newest([tmp_path])
    assert found is not None
    assert (found.path / "deep" / "state.txt").read_text() == "1"


def test_a_snapshot_that_was_rewritten_in_place_is_passed_over(tmp_path: Path) -> None:
    state = tmp_path / "state.txt"
    state.write_text("1")
    checkpoints.snapshot(tmp_path, [state])
    state.write_text("2")
    os.utime(state, ns=(0, 0))  # the clock may be coarser than this test is quick
    assert checkpoints.newest([tmp_path]) is None


def test_the_last_two_snapshots_are_kept(tmp_path: Path) -> None:
    for number in range(1, 13):
        (tmp_path / "new").write_text(str(number))
        (tmp_path / "new").rename(tmp_path / "state.txt")
        checkpoints.snapshot(tmp_path, [tmp_path / "state.txt"])
    kept = sorted(int(path.parent.name) for path in tmp_path.rglob("*/[0-9]*/state.txt"))
    assert kept == [11, 12]
    found = checkpoints.newest([tmp_path])
    assert found is not None
    assert (found.path / "state.txt").read_text() == "12"


def test_a_checkpoint_that_goes_while_it_is_sealed_is_left_for_the_next_look(
    tmp_path: Path,
) -> None:
    here, gone = tmp_path / "1.txt", tmp_path / "2.txt"
    here.write_text("one")
    assert not checkpoints.snapshot(tmp_path, [here, gone])
    assert checkpoints.newest([tmp_path]) is None
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != here]
    assert checkpoints.snapshot(tmp_path, [here])


def test_snapshots_of_a_file_that_is_replaced_all_the_time_are_taken_or_left(
    tmp_path: Path,
) -> None:
    # link(2) finds no file where a rename has just taken the last name of the one it looked up.
    state, over = tmp_path / "state.txt", threading.Event()

    def write() -> None:
        while not over.is_set():
            (tmp_path / "new").write_text("state")
            (tmp_path / "new").replace(state)

    state.write_text("state")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken = [checkpoints.snapshot(tmp_path, [state]) for _ in range(200)]
    finally:
        over.set()
        writer.join()
    assert any(taken)
    found = checkpoints.newest([tmp_path])
    assert found is not None and (found.path / "state.txt").read_text() == "state"
