"""Digests of inputs: of content, remembered while nothing suggests that it changed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.core import digests
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.canonical import sha256_bytes
from nexa_hpc.core.digests import Digester, host_name, signature
from nexa_hpc.errors import UserError

LONG_AGO = 1_600


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "state/digests/host.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    found: list[Path] = []

    def read(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setattr(digests, "sha256_file", read)
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two minutes pass: a file's ctime cannot be set, so the clock is."""
    ahead = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: ahead)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("a")
    (made / "sub/b.txt").write_text("b")
    return made


def sha256(path: Path, mode: str = "content") -> str:
    return Digester().digest(path, mode).sha256


# ------------------------------------------------------------------------------------------ content


def test_the_digest_of_a_file_is_that_of_its_bytes(folder: Path) -> None:
    assert sha256(folder / "a.txt") == sha256_bytes(b"a")


def test_the_digest_of_a_folder_follows_names_and_contents(folder: Path) -> None:
    before = sha256(folder)
    (folder / "a.txt").rename(folder / "c.txt")
    renamed = sha256(folder)
    (folder / "c.txt").rename(folder / "a.txt")
    assert sha256(folder) == before
    (folder / "sub/b.txt").write_text("B")
    assert len({before, renamed, sha256(folder)}) == 3


def test_a_folder_is_the_same_wherever_it_lies_and_whenever_it_was_made(
    folder: Path, tmp_path: Path
) -> None:
    before = sha256(folder)
    os.utime(folder / "a.txt", (1, 1))
    assert sha256(folder.rename(tmp_path / "moved")) == before


def test_files_of_two_folders_do_not_pass_for_each_other(folder: Path) -> None:
    before = sha256(folder)
    (folder / "a.txt").write_text("b")
    (folder / "sub/b.txt").write_text("a")
    assert sha256(folder) != before


def test_byte_code_and_empty_folders_do_not_count(folder: Path) -> None:
    before = sha256(folder)
    (folder / "sub/__pycache__").mkdir()
    (folder / "sub/__pycache__/b.pyc").write_text("x")
    (folder / "empty").mkdir()
    assert sha256(folder) == before


def test_links_count_as_what_they_lead_to(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "a.txt").symlink_to(folder / "a.txt")
    (copied / "sub").symlink_to(folder / "sub")
    assert sha256(copied) == sha256(folder)


def test_a_link_back_up_is_refused_instead_of_followed_for_ever(folder: Path) -> None:
    (folder / "sub/up").symlink_to("..")
    with pytest.raises(UserError, match="sub/up links to a folder that it lies in"):
        sha256(folder)


def test_two_folders_that_link_to_each_other_are_refused_at_once(folder: Path) -> None:
    for one, other in (("x", "y"), ("y", "x")):
        (folder / one).mkdir()
        for number in range(4):
            (folder / one / str(number)).symlink_to(folder / other)
    start = time.monotonic()
    with pytest.raises(UserError, match="links to a folder that it lies in"):
        sha256(folder)
    assert time.monotonic() - start < 1


def test_a_pipe_is_refused_instead_of_waited_on(folder: Path) -> None:
    os.mkfifo(folder / "sub/pipe")
    with pytest.raises(UserError, match="sub/pipe is neither a file nor a folder"):
        sha256(folder)


def test_a_device_is_refused_instead_of_read_for_ever() -> None:
    with pytest.raises(UserError, match="/dev/zero is neither"):
        sha256(Path("/dev/zero"))


def test_a_broken_link_is_no_file(folder: Path) -> None:
    (folder / "broken").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        sha256(folder)


def test_a_folder_that_cannot_be_listed_is_never_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refuse(path: Any) -> list[str]:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        sha256(folder)


# -------------------------------------------------------------------------------------------- modes


def test_stat_reads_nothing_and_follows_sizes_and_times(folder: Path, reads: list[Path]) -> None:
    found = {sha256(folder, "stat")}
    os.utime(folder / "sub/b.txt", (5, 5))
    found.add(sha256(folder, "stat"))
    (folder / "sub/b.txt").write_text("longer")
    os.utime(folder / "sub/b.txt", (5, 5))
    found.add(sha256(folder, "stat"))
    assert len(found) == 3
    assert reads == []


def test_none_does_not_even_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> list[str]:
        raise AssertionError("listed")

    monkeypatch.setattr(os, "listdir", refuse)
    assert Digester().digest(folder, "none").sha256 == "none"


def test_a_signature_tells_of_a_write_and_not_of_a_move(folder: Path, tmp_path: Path) -> None:
    before = Digester().digest(folder).signature
    folder = folder.rename(tmp_path / "moved")
    assert signature(folder) == before
    os.utime(folder / "a.txt", (5, 5))
    assert signature(folder) != before


def test_more_than_the_limit_is_refused_unread_and_told_with_what_to_write(
    tmp_path: Path, reads: list[Path]
) -> None:
    (tmp_path / "big").mkdir()
    for name in ("one", "two"):
        with (tmp_path / "big" / name).open("wb") as file:
            file.truncate(600)
    digester = Digester(limit_gb=1e-6)
    with pytest.raises(
        UserError, match=r"big holds 0\.0 GB, more than paths.hash_limit_gb \(1e-06\)"
    ) as found:
        digester.digest(tmp_path / "big")
    assert "digest: stat" in str(found.value.hint)
    assert reads == []
    assert len(digester.digest(tmp_path / "big", "stat").sha256) == 64
    with (tmp_path / "big/two").open("wb") as file:
        file.truncate(0)
    assert Digester(limit_gb=0.6e-6).digest(tmp_path / "big")


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.usefixtures("settled")
def test_a_settled_file_is_read_once_in_all(folder: Path, memory: Path, reads: list[Path]) -> None:
    digester = Digester(memory)
    first = digester.digest(folder)
    digester.save()
    again = Digester(memory)
    assert again.digest(folder) == first
    assert len(reads) == 2
    again.save()
    assert list(memory.parent.iterdir()) == [memory]


def test_a_file_changed_in_the_last_minute_is_not_remembered(
    folder: Path, memory: Path, reads: list[Path]
) -> None:
    os.utime(folder / "a.txt", (LONG_AGO, LONG_AGO))  # ctime is now, all the same
    for _ in range(2):
        digester = Digester(memory)
        digester.digest(folder / "a.txt")
        digester.save()
    assert len(reads) == 2
    assert not memory.exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["same size", "other size", "time only", "replaced"])
def test_any_change_is_seen_past_the_memory(folder: Path, memory: Path, change: str) -> None:
    file = folder / "a.txt"
    os.utime(file, (LONG_AGO, LONG_AGO))
    digester = Digester(memory)
    before = digester.digest(file).sha256
    digester.save()
    if change == "replaced":  # an older copy with the same size and time
        (folder / "copy").write_text("z")
        (folder / "copy").rename(file)
    else:
        file.write_text({"same size": "z", "other size": "zz", "time only": "a"}[change])
    if change != "time only":
        os.utime(file, (LONG_AGO, LONG_AGO))
    found = Digester(memory).digest(file).sha256
    assert found == sha256_bytes(file.read_bytes())
    assert (found == before) == (change == "time only")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"FILE": 5}', '{"FILE": []}', '{"FILE": {"a": 1}}']
)
def test_a_damaged_memory_costs_time_only(folder: Path, memory: Path, text: str) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text(text.replace("FILE", str(folder / "a.txt")))
    digester = Digester(memory)
    assert digester.digest(folder / "a.txt").sha256 == sha256_bytes(b"a")
    digester.save()
    assert str(folder / "a.txt") in json.loads(memory.read_text())


@pytest.mark.usefixtures("settled")
def test_a_memory_that_cannot_be_read_or_kept_costs_time_only(folder: Path, memory: Path) -> None:
    memory.mkdir(parents=True)
    digester = Digester(memory)
    assert digester.digest(folder / "a.txt").sha256 == sha256_bytes(b"a")
    digester.save()
    assert list(memory.parent.iterdir()) == [memory]


@pytest.mark.usefixtures("settled")
def test_a_name_that_is_not_text_is_digested_and_not_remembered(
    tmp_path: Path, memory: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / os.fsdecode(b"data/\xff")).write_text("x")
    digester = Digester(memory)
    assert len(digester.digest(tmp_path / "data").sha256) == 64
    digester.save()


def test_the_host_in_the_memorys_name_is_a_plain_word() -> None:
    assert host_name()
    assert "." not in host_name()
