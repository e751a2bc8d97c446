"""Artifacts: whole or absent, never somebody else's folder, and never a half."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from nexa_hpc.core import artifacts, atomic, publishing
from nexa_hpc.core.artifacts import Presence, look, open_artifact
from nexa_hpc.core.publishing import Publication, create_artifact, discard_left_behind
from nexa_hpc.errors import ArtifactError

SPAWN = get_context("spawn")


def _produce(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "deep" / "config.json").write_text("{}")


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --------------------------------------------------------------------------------------- publishing


def test_what_the_producer_wrote_is_described_and_sealed(tmp_path: Path) -> None:
    made = create_artifact(
        tmp_path / "model", _produce, kind="model", inputs={"data": "v1"}, labels={"team": "nlp"}
    )
    assert _names(made.path) == ["COMPLETE", "deep", "meta.json", "model.bin"]
    meta = json.loads((made.path / "meta.json").read_text())
    assert meta == made.meta
    assert meta["kind"] == "model"
    assert meta["uri"] == str(tmp_path / "model")
    assert meta["inputs"] == {"data": "v1"}
    assert meta["labels"] == {"team": "nlp"}
    assert meta["bytes"] == made.size_bytes == 9
    assert sorted(meta["files"]) == ["deep/config.json", "model.bin"]
    assert made.key is None
    assert artifacts.verify(made) == []
    assert open_artifact(made.path) == made


def test_equal_content_has_the_equal_hash_wherever_it_lies(tmp_path: Path) -> None:
    first = create_artifact(tmp_path / "a", _produce)
    second = create_artifact(tmp_path / "b" / "c", _produce, labels={"x": "y"})
    other = create_artifact(tmp_path / "d", lambda folder: (folder / "model.bin").touch())
    assert first.hash == second.hash != other.hash


def test_a_complete_one_is_returned_and_the_producer_is_not_called(tmp_path: Path) -> None:
    made = create_artifact(tmp_path / "a", _produce)

    def never(folder: Path) -> None:
        pytest.fail("called again")

    assert create_artifact(tmp_path / "a", never) == made


def test_a_raising_producer_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        _produce(folder)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        create_artifact(tmp_path / "store" / "a", fails)
    assert _names(tmp_path / "store") == []
    create_artifact(tmp_path / "store" / "a", _produce)
    assert _names(tmp_path / "store") == ["a"]


def test_an_artifact_is_private_whatever_the_umask(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    umask(0)
    made = create_artifact(tmp_path / "a", _produce)
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert (made.path / "meta.json").stat().st_mode & 0o777 == 0o600


def test_nothing_at_all_is_an_artifact_too(tmp_path: Path) -> None:
    made = create_artifact(tmp_path / "a", lambda folder: None)
    assert made.size_bytes == 0
    assert look(made.path).presence is Presence.COMPLETE


@pytest.mark.parametrize("kind", ["link", "link to a folder", "dangling link", "pipe"])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def produce(folder: Path) -> None:
        _produce(folder)
        place = folder / "deep" / "odd"
        if kind == "pipe":
            os.mkfifo(place)
        else:
            targets = {"link": folder / "model.bin", "link to a folder": outside}
            place.symlink_to(targets.get(kind, tmp_path / "nowhere"))

    with pytest.raises(
        ArtifactError, match="deep/odd, which is a link or a special file"
    ) as caught:
        create_artifact(tmp_path / "a", produce)
    assert caught.value.hint is not None
    assert _names(tmp_path) == ["outside"]


@pytest.mark.parametrize("name", ["meta.json", "COMPLETE"])
def test_our_own_names_are_reserved_at_the_top_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="reserved"):
        create_artifact(tmp_path / "a", lambda folder: (folder / name).touch())

    def below(folder: Path) -> None:
        _produce(folder)
        (folder / "deep" / name).touch()

    assert f"deep/{name}" in create_artifact(tmp_path / "a", below).meta["files"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    def produce(folder: Path) -> None:
        (folder / os.fsdecode(b"caf\xe9")).touch()

    with pytest.raises(ArtifactError, match="not UTF-8"):
        create_artifact(tmp_path / "a", produce)
    assert _names(tmp_path) == []


def test_a_folder_that_cannot_be_listed_is_an_error_not_an_omission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(
        path: str | int,
    ) -> object:  # root may list everything, so permissions prove nothing
        if isinstance(path, str) and os.path.basename(path) == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        create_artifact(tmp_path / "a", _produce)
    monkeypatch.undo()
    assert look(tmp_path / "a").presence is Presence.ABSENT


# ---------------------------------------------------------------------------- what is there already


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, there: str) -> None:
    target = tmp_path / "a"
    if there == "file":
        target.write_text("precious")
    elif there == "dangling link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
    if there == "folder":
        (target / "thesis.txt").write_text("precious")
    assert look(target).presence is Presence.FOREIGN
    with pytest.raises(ArtifactError, match="left alone"):
        create_artifact(target, lambda _: pytest.fail("called"))
    assert _names(tmp_path) == ["a"]


def test_a_foreign_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def produce(folder: Path) -> None:
        _produce(folder)
        atomic.write_file(tmp_path / "a" / "thesis.txt", "precious")

    with pytest.raises(ArtifactError, match="left alone"):
        create_artifact(tmp_path / "a", produce)
    assert _names(tmp_path) == ["a"]
    assert _names(tmp_path / "a") == ["thesis.txt"]


def test_a_complete_one_that_appears_meanwhile_is_adopted(tmp_path: Path) -> None:
    theirs = []

    def produce(folder: Path) -> None:
        (folder / "mine").touch()
        theirs.append(create_artifact(tmp_path / "a", _produce))

    assert create_artifact(tmp_path / "a", produce) == theirs[0]
    assert _names(tmp_path) == ["a"]
    assert "mine" not in _names(tmp_path / "a")


def _damage(path: Path, how: str) -> None:
    if how == "file gone":
        (path / "model.bin").unlink()
    elif how == "folder gone":
        shutil.rmtree(path / "deep")
    elif how == "folder became a file":
        shutil.rmtree(path / "deep")
        (path / "deep").touch()
    elif how == "file short":
        os.truncate(path / "model.bin", 3)
    elif how == "meta.json gone":
        (path / "meta.json").unlink()
    elif how == "meta.json torn":
        os.truncate(path / "meta.json", 10)
    else:
        os.truncate(path / "COMPLETE", 5)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("file gone", "model.bin is gone"),
        ("folder gone", "deep/config.json is gone"),
        ("folder became a file", "deep/config.json is gone"),
        ("file short", "model.bin has 3 bytes, not 7"),
        ("meta.json gone", "meta.json is gone"),
        ("meta.json torn", "COMPLETE does not match meta.json"),
        ("COMPLETE torn", "COMPLETE does not match meta.json"),
    ],
)
def test_a_purged_one_is_told_and_made_again(tmp_path: Path, how: str, reason: str) -> None:
    first = create_artifact(tmp_path / "a", _produce)
    _damage(first.path, how)
    finding = look(first.path)
    assert finding.presence is Presence.PURGED
    assert finding.reason == reason
    with pytest.raises(ArtifactError, match=f"purged: {reason}"):
        open_artifact(first.path)

    again = create_artifact(tmp_path / "a", _produce)
    assert again.hash == first.hash
    assert look(first.path).presence is Presence.COMPLETE
    assert len(_names(tmp_path / ".trash")) == 1, "moved aside, not removed"


def test_one_that_may_not_be_read_is_not_taken_for_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_artifact(tmp_path / "a", _produce)
    elsewhere = tmp_path / "not-there"
    for call, code, place in (
        ("stat", errno.EIO, made.path),
        ("listdir", errno.EACCES, elsewhere),
    ):

        def refuse(path: object, *args: object, code: int = code, **kwargs: object) -> None:
            raise OSError(code, os.strerror(code), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(ArtifactError, match="cannot be read"):
                look(place)
            with pytest.raises(ArtifactError, match="cannot be read"):
                create_artifact(place, _produce)
    assert _names(tmp_path) == ["a"]


def test_looking_reads_sizes_and_verifying_reads_bytes(tmp_path: Path) -> None:
    made = create_artifact(tmp_path / "a", _produce)
    (made.path / "model.bin").write_bytes(b"WEIGHTS")
    (made.path / "deep" / "config.json").unlink()
    (made.path / "deep" / "config.json").write_text("{}")
    assert look(made.path).presence is Presence.COMPLETE
    assert artifacts.verify(made) == ["model.bin: its content is not what was published"]
    (made.path / "model.bin").unlink()
    assert artifacts.verify(made) == ["model.bin: No such file or directory"]


def test_an_artifact_is_found_through_a_link(tmp_path: Path) -> None:
    create_artifact(tmp_path / "store" / "a", _produce)
    atomic.replace_link(tmp_path / "out", "store/a")
    assert look(tmp_path / "out").presence is Presence.COMPLETE
    assert create_artifact(tmp_path / "out", lambda _: pytest.fail("called")).size_bytes == 9


def test_absent_and_trashed_say_so(tmp_path: Path) -> None:
    assert look(tmp_path / "a").presence is Presence.ABSENT
    with pytest.raises(ArtifactError, match="absent"):
        open_artifact(tmp_path / "a")
    publishing.move_to_trash(tmp_path / "a")  # somebody else was faster: no error
    assert _names(tmp_path / ".trash") == []


def test_the_key_and_its_document_are_kept(tmp_path: Path) -> None:
    publication = Publication.begin(tmp_path / "a")
    _produce(publication.folder)
    made = publication.publish(
        kind="model",
        step_key="ab" * 32,
        key_document={"params": {"lr": 0.1}},
        uri="store://x",
        extra={"host": "n1"},
    )
    assert made.key == "ab" * 32
    assert made.meta["key"] == {"params": {"lr": 0.1}}
    assert (made.meta["uri"], made.meta["host"]) == ("store://x", "n1")
    publication.discard()
    assert look(made.path).presence is Presence.COMPLETE, "discarding after publishing does no harm"


# ----------------------------------------------------------------------- other processes, and death


def _make(destination: Path, me: int, gate: Path) -> None:
    def produce(folder: Path) -> None:
        (folder / "by").write_text(str(me))
        for n in range(20):
            (folder / f"{n}").write_text(str(me))
        while not gate.exists():
            pass

    made = create_artifact(destination, produce)
    atomic.write_json(destination.parent / f"saw.{me}", made.meta)


def test_of_several_processes_one_publishes_and_all_get_the_same(tmp_path: Path) -> None:
    store, gate = tmp_path / "store", tmp_path / "gate"
    makers = [SPAWN.Process(target=_make, args=(store / "a", me, gate)) for me in range(4)]
    for maker in makers:
        maker.start()
    gate.touch()
    for maker in makers:
        maker.join()
        assert maker.exitcode == 0
    made = open_artifact(store / "a")
    assert artifacts.verify(made) == []
    for me in range(4):
        assert json.loads((store / f"saw.{me}").read_text()) == made.meta
    assert _names(store) == ["a", "saw.0", "saw.1", "saw.2", "saw.3"]


_DOOMED = """
import os, signal, sys
from pathlib import Path
from nexa_hpc.core.publishing import create_artifact

countdown = int(sys.argv[2])

def deadly(call):
    def wrapper(*args, **kwargs):
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper

def produce(folder):
    (folder / "model.bin").write_bytes(b"new")

for name in ("open", "write", "fsync", "mkdir", "rename", "unlink"):
    setattr(os, name, deadly(getattr(os, name)))
create_artifact(sys.argv[1], produce)
"""


@pytest.mark.parametrize("before", ["absent", "purged"])
def test_killed_between_any_two_steps_it_is_whole_or_not_there(tmp_path: Path, before: str) -> None:
    seen = set()
    for call in range(1, 60):
        target = tmp_path / str(call) / "a"
        if before == "purged":
            create_artifact(target, _produce)
            _damage(target, "file short")
        done = subprocess.run([sys.executable, "-c", _DOOMED, target, str(call)])
        finding = look(target)
        seen.add(finding.presence)
        if finding.artifact is not None:
            assert artifacts.verify(finding.artifact) == []
        create_artifact(target, _produce)
        assert look(target).presence is Presence.COMPLETE, "the next one needs no repair"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0
    expected = {Presence.ABSENT, Presence.COMPLETE}
    assert seen == (expected if before == "absent" else expected | {Presence.PURGED})


def test_on_a_full_disk_nothing_is_published_and_nothing_left(full_disk: Path) -> None:
    def too_much(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"n" * (4 << 20))

    def just_no_room_for_meta(folder: Path) -> None:
        with pytest.raises(OSError, match="No space left"):
            (folder / "model.bin").write_bytes(b"n" * (4 << 20))

    for producer in (too_much, just_no_room_for_meta):
        with pytest.raises(OSError, match="No space left"):
            create_artifact(full_disk / "a", producer)
        assert _names(full_disk) == []
    create_artifact(full_disk / "a", _produce)


def test_what_is_removed_as_left_behind_can_no_more_be_published(tmp_path: Path) -> None:
    late = Publication.begin(tmp_path / "a")
    _produce(late.folder)
    discard_left_behind(late.folder, late.destination)
    assert _names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        late.publish(kind="model")
    discard_left_behind(late.folder, late.destination)
    assert _names(tmp_path) == []


def test_what_was_published_just_before_it_is_removed_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Publication.begin(tmp_path / "a")
    _produce(late.folder)
    rename = os.rename

    def publishes_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        late.publish(kind="model")
        os.rename(source, target)

    monkeypatch.setattr(os, "rename", publishes_first)
    discard_left_behind(late.folder, late.destination)
    assert artifacts.verify(open_artifact(tmp_path / "a")) == []
    assert _names(tmp_path) == ["a"]
