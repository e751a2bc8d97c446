"""A file with metadata is read without trusting it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexa_hpc.core.registry_meta import LIMIT_BYTES, read_meta
from nexa_hpc.errors import RegistryError


def test_one_json_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"accuracy": 0.85, "by": {"class": [1, null, "ä"]}}')
    assert read_meta(tmp_path / "meta.json") == {
        "accuracy": 0.85,
        "by": {"class": [1, None, "ä"]},
    }


def test_of_a_folder_the_metrics_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.85}')
    assert read_meta(tmp_path) == {"accuracy": 0.85}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "must be a JSON object, not list"),
        (b"{1: 2}", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "cannot be written as JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'{"a": "\\ud800"}', "cannot be written as JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", None),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * LIMIT_BYTES + b'"}', "larger than 1 MiB"),
    ],
)
def test_anything_else_is_refused_with_its_place(
    tmp_path: Path, content: bytes, words: str | None
) -> None:
    file = tmp_path / "meta.json"
    file.write_bytes(content)
    if words is None:
        try:
            read_meta(file)
        except RegistryError:
            pass  # How deep is too deep depends on the Python; no other error may come.
        return
    with pytest.raises(RegistryError, match=words) as caught:
        read_meta(file)
    assert str(file) in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "absent.json", tmp_path):
        with pytest.raises(RegistryError, match="no such file"):
            read_meta(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    # Opening it fails with EIO whoever asks, also root.
    with pytest.raises(RegistryError, match=r"/proc/self/mem: "):
        read_meta(Path("/proc/self/mem"))
