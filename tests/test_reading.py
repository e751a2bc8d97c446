"""Reading: stale handles are retried, torn files are errors, absence is told by a listing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.core import reading
from nexa_hpc.errors import StateError


def _stale_times(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Path]:
    """Let the first `times` openings of any file fail as NFS does when the file was replaced."""
    asked: list[Path] = []
    real = os.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> int:
        asked.append(path)
        if len(asked) <= times:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    return asked


def test_a_stale_handle_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    asked = _stale_times(monkeypatch, 3)
    assert reading.read_bytes(tmp_path / "a") == b"x"
    assert len(asked) == 4


def test_a_handle_that_stays_stale_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _stale_times(monkeypatch, 1000)
    with pytest.raises(OSError, match="Stale"):
        reading.read_bytes(tmp_path / "a")
    assert len(asked) < 10


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"{'a': 1}"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"a\.json: not valid JSON"):
        reading.read_json(path)
    with pytest.raises(StateError):
        reading.read_json_or_none(path)


def test_what_is_not_there_is_none_or_an_error_as_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "a.json", tmp_path / "no" / "a.json", tmp_path / "file" / "a.json"):
        assert reading.read_json_or_none(path) is None
    with pytest.raises(FileNotFoundError):
        reading.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("null")
    assert reading.read_json(tmp_path / "a.json") is None


def test_names_are_sorted_and_none_where_no_folder_is(tmp_path: Path) -> None:
    for name in ("b", ".a", "c"):
        (tmp_path / name).touch()
    assert reading.list_names(tmp_path) == [".a", "b", "c"]
    assert reading.list_names(tmp_path / "nowhere") == []
    assert reading.list_names(tmp_path / "b") == []


def test_what_cannot_be_looked_at_is_an_error_and_not_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not reading.is_there(tmp_path / "x")
    (tmp_path / "x").symlink_to("nowhere")
    assert reading.is_there(tmp_path / "x")
    (tmp_path / "file").touch()
    assert not reading.is_there(tmp_path / "file/x")

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "lstat", fails)
    with pytest.raises(OSError, match="Input/output error"):
        reading.is_there(tmp_path / "x")


def test_a_folder_that_an_old_no_hides_is_found_by_listing_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x").touch()
    hidden, listdir = {str(tmp_path / "a"), str(deep)}, os.listdir

    def lies(path: Path) -> list[str]:
        """Do what an NFS client does after it has looked for a name in vain."""
        if any(str(path) == old or str(path).startswith(f"{old}/") for old in hidden):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        hidden.difference_update([f"{path}/{name}" for name in listdir(path)])
        return listdir(path)

    monkeypatch.setattr(os, "listdir", lies)
    assert reading.list_names(deep) == ["x"]
    assert reading.list_names(tmp_path / "a" / "nowhere" / "at all") == []
