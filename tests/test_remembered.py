"""What large documents came to is remembered: as they read, with their lines, and never trusted."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_hpc.core import remembered, yaml_reading
from nexa_hpc.core.document import Document, parse_document
from nexa_hpc.core.paths import user_cache
from nexa_hpc.core.spec import parse_pipeline
from nexa_hpc.errors import SpecError

STEP = """\
    - id: s{n}
      uses: runners.command
      params: {{command: "echo ünï", rate: 2e-5, big: 18446744073709551616, words: [a, ~, 1.0]}}
      <<: *base
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return user_cache() / "documents"


def large(extra: str = "", steps: int = 1000) -> bytes:
    """Return a pipeline document that is worth remembering."""
    head = "x-base: &base\n  resources: &few {nodes: 2}\n  after: []\npipeline:\n  name: demo\n"
    body = "".join(STEP.format(n=n) for n in range(steps))
    return f"{head}  steps:\n{body}{extra}".encode()


def parse_unread(text: bytes, monkeypatch: pytest.MonkeyPatch) -> Document:
    """Return the document in `text`, whose YAML must not be read for it."""

    def read_yaml(text: bytes, name: str) -> Any:
        raise AssertionError("the text was read")

    with monkeypatch.context() as patch:
        patch.setattr(yaml_reading, "read_yaml", read_yaml)
        return parse_document(text, "p.yaml")


def test_a_large_document_is_read_once_and_is_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = parse_document(large(), "p.yaml")
    again = parse_unread(large(), monkeypatch)
    assert repr(again.value) == repr(first.value)
    assert again.text == first.text


def test_a_remembered_document_knows_the_line_of_each_of_its_parts() -> None:
    first, again = (parse_document(large(), "p.yaml") for _ in range(2))
    places: list[tuple[str | int, ...]] = [
        (),
        ("x-base", "resources"),
        ("pipeline", "steps", 7),
        ("pipeline", "steps", 7, "params", "words", 2),
        # Merged, and shared by all steps in the text.
        ("pipeline", "steps", 999, "resources", "nodes"),
        ("pipeline", "steps", 999, "no such key"),
    ]
    assert [again.line_of(place) for place in places] == [first.line_of(place) for place in places]
    assert again.line_of(("pipeline", "steps", 7)) == 7 + 4 * 7
    assert len(again.lines) >= len(first.lines)


def test_what_is_wrong_in_a_remembered_document_is_told_with_its_line() -> None:
    told = []
    for _ in range(2):
        with pytest.raises(SpecError) as caught:
            parse_pipeline(parse_document(large("    - {id: x, usse: y}\n"), "p.yaml"))
        told.append([str(problem) for problem in caught.value.problems])
    assert told[0] == told[1]
    assert any(":4007:" in problem and "usse" in problem for problem in told[1])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=12,
        ),
    )
)
def test_every_document_is_remembered_as_it_reads(
    monkeypatch: pytest.MonkeyPatch, value: dict[str, Any]
) -> None:
    monkeypatch.setattr(remembered, "_LEAST_BYTES", 0)
    text = yaml.safe_dump(value, allow_unicode=True).encode()
    try:
        read, _ = yaml_reading.read_yaml(text, "p.yaml")
    except SpecError:
        return  # Infinities, and what PyYAML writes in a way that we do not take.
    remembered.remember(text, read)
    again = remembered.recall(text)
    assert again is None or repr(again) == repr(read)


@pytest.mark.parametrize("damage", ["cut", "emptied", "another value", "not ASCII"])
def test_a_damaged_memory_is_not_believed(cache: Path, damage: str) -> None:
    expected = parse_document(large(), "p.yaml").value
    (file,) = cache.iterdir()
    content = file.read_bytes()
    bent = {
        "cut": content[:-10],
        "emptied": b"",
        "another value": content.replace(b"echo", b"curl"),
        "not ASCII": b"\xff" + content,
    }
    file.write_bytes(bent[damage])
    assert parse_document(large(), "p.yaml").value == expected


def test_another_text_and_another_state_of_the_code_are_read_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_document(large(), "p.yaml")
    assert len(parse_document(large("    - id: x\n"), "p.yaml").value["pipeline"]["steps"]) == 1001
    monkeypatch.setattr(remembered, "_FORMAT", 0)
    parse_document(large(), "p.yaml")
    assert len(list(cache.iterdir())) == 3


def test_a_small_document_and_one_that_aliases_made_huge_are_not_remembered(cache: Path) -> None:
    parse_document(large(steps=10), "p.yaml")
    many = ", ".join(["*long"] * 3000)
    tracemalloc.start()
    try:
        parse_document(f"long: &long {'x' * 70_000}\nmany: [{many}]\n".encode(), "p.yaml")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, "210 MB when written out"
    finally:
        tracemalloc.stop()
    assert not cache.exists()


def test_only_the_newest_are_kept(cache: Path) -> None:
    for number in range(20):
        parse_document(large(f"    - id: x{number}\n"), "p.yaml")
        for age, file in enumerate(sorted(cache.iterdir(), key=lambda file: file.stat().st_mtime)):
            os.utime(file, (age, age))
    assert len(list(cache.iterdir())) == 16
    assert {file.stat().st_mode & 0o077 for file in cache.iterdir()} == {0}


def test_a_cache_that_cannot_be_written_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert parse_document(large(), "p.yaml").value == parse_document(large(), "p.yaml").value
