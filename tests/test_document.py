"""Documents: YAML becomes plain Python, and every part of it knows its line."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_hpc.core import yaml_reading
from nexa_hpc.core.document import Document, parse_document, read_document
from nexa_hpc.errors import Problem, SpecError

PIPELINE = b"""\
# a comment
x-base: &base
  nodes: 2
  mem_gb: 4
pipeline:
  name: demo
  steps:
    - id: one
      params: {rate: 2e-5, words: [a, b]}
      resources:
        <<: *base
        mem_gb: 8
    - id: two
      resources: *base
"""


def problem_of(text: bytes) -> Problem:
    """Return the one problem of `text`."""
    with pytest.raises(SpecError) as caught:
        parse_document(text, "p.yaml")
    (problem,) = caught.value.problems
    assert problem.file == "p.yaml"
    return problem


@pytest.fixture(params=["libyaml", "pure Python"])
def either_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both sources of events: the one that is there, and what PyYAML has without libyaml."""
    if request.param == "pure Python":
        monkeypatch.setattr(yaml_reading, "_EventSource", yaml.BaseLoader)
    return str(request.param)


def test_a_document_is_plain_mappings_lists_and_scalars(either_parser: str) -> None:
    assert parse_document(PIPELINE, "p.yaml").value == {
        "x-base": {"nodes": 2, "mem_gb": 4},
        "pipeline": {
            "name": "demo",
            "steps": [
                {
                    "id": "one",
                    "params": {"rate": 2e-5, "words": ["a", "b"]},
                    "resources": {"nodes": 2, "mem_gb": 8},
                },
                {"id": "two", "resources": {"nodes": 2, "mem_gb": 4}},
            ],
        },
    }


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ((), None),
        (("pipeline",), 5),
        (("pipeline", "name"), 6),
        (("pipeline", "steps", 0), 8),
        (("pipeline", "steps", 0, "id"), 8),
        (("pipeline", "steps", 0, "params", "words", 1), 9),
        (("pipeline", "steps", 0, "resources", "mem_gb"), 12),
        (("pipeline", "steps", 1), 13),
    ],
)
def test_every_part_knows_its_line(location: tuple[str | int, ...], line: int | None) -> None:
    assert parse_document(PIPELINE, "p.yaml").line_of(location) == line


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("pipeline", "steps", 0, "resources", "nodes"), 3),
        (("pipeline", "steps", 1, "resources"), 14),
        (("pipeline", "steps", 1, "resources", "mem_gb"), 4),
    ],
)
def test_what_an_alias_or_a_merge_brings_stands_where_its_anchor_is(
    location: tuple[str | int, ...], line: int
) -> None:
    assert parse_document(PIPELINE, "p.yaml").line_of(location) == line


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("pipeline", "steps", 0, "uses"), 8),
        (("pipeline", "steps", 7, "id"), 7),
        (("pipeline", "steps", "one"), 7),
        (("pipeline", "name", "deeper", 3), 6),
        (("nothing", "at", "all"), None),
    ],
)
def test_what_is_missing_has_the_line_of_what_encloses_it(
    location: tuple[str | int, ...], line: int | None
) -> None:
    assert parse_document(PIPELINE, "p.yaml").line_of(location) == line


def test_a_document_made_in_python_has_no_lines() -> None:
    assert Document({}, {}, "made in Python").line_of(("pipeline", "steps", 0)) is None


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(either_parser: str) -> None:
    document = parse_document(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n", "p.yaml")
    assert document.value == {"a": 1, "b": ["x"]}
    assert document.line_of(("b", 0)) == 3


def test_block_scalars_and_quotes_are_text_as_written(either_parser: str) -> None:
    text = b"a: |\n  echo ${X}\n  echo 2\nb: >\n  one\n  two\nc: 'yes'\nd: \"2e-5\"\ne: ! 12\n"
    assert parse_document(text, "p.yaml").value == {
        "a": "echo ${X}\necho 2\n",
        "b": "one two\n",
        "c": "yes",
        "d": "2e-5",
        "e": "12",
    }


# ------------------------------------------------------------------------------ anchors and merges


def value_of(text: bytes) -> dict[str, Any]:
    return parse_document(text, "p.yaml").value


def test_an_anchor_may_stand_for_a_scalar_a_list_a_mapping_or_a_key(either_parser: str) -> None:
    assert value_of(b"a: &n 3\nb: &l [1]\nc: &m {x: 1}\nd: [*n, *l, *m]\n&k e: *k\n") == {
        "a": 3,
        "b": [1],
        "c": {"x": 1},
        "d": [3, [1], {"x": 1}],
        "e": "e",
    }


def test_a_later_anchor_of_the_same_name_wins_from_there_on() -> None:
    assert value_of(b"a: &x 1\nb: *x\nc: &x 2\nd: *x\n") == {"a": 1, "b": 1, "c": 2, "d": 2}


@pytest.mark.parametrize("position", ["first", "last"])
def test_own_keys_win_over_merged_ones_wherever_the_merge_stands(position: str) -> None:
    merge, own = b"  <<: *x\n", b"  k: own\n"
    body = merge + own if position == "first" else own + merge
    assert value_of(b"x: &x {k: merged, l: 1}\na:\n" + body)["a"] == {"k": "own", "l": 1}


def test_of_several_merged_mappings_the_first_that_has_a_key_gives_it() -> None:
    text = b"x: &x {k: 1}\ny: &y {k: 2, l: 3}\na: {<<: [*x, *y]}\n"
    assert value_of(text)["a"] == {"k": 1, "l": 3}


def test_merges_may_be_merged_again() -> None:
    text = b"x: &x {k: 1}\ny: &y {<<: *x, l: 2}\nz: {<<: *y, m: 3}\n"
    assert value_of(text)["z"] == {"k": 1, "l": 2, "m": 3}


def test_a_mapping_written_in_place_may_be_merged() -> None:
    assert value_of(b"a: {<<: {k: 1}, l: 2}\n")["a"] == {"k": 1, "l": 2}


def test_a_quoted_merge_key_is_a_key_like_any_other() -> None:
    assert value_of(b"'<<': 1\n") == {"<<": 1}


def test_merging_leaves_the_anchored_mapping_as_it_was() -> None:
    text = b"x: &x {k: 1}\na: {<<: *x, l: 2}\nb: {<<: *x, m: 3}\n"
    assert value_of(text)["x"] == {"k": 1}


def test_a_merge_key_by_an_alias_is_a_key_like_any_other() -> None:
    assert value_of(b"a: &k '<<'\nb: {*k : 1}\n")["b"] == {"<<": 1}


@pytest.mark.parametrize("merged", [b"3", b"[1, 2]", b"text", b"[{a: 1}, 2]"])
def test_only_mappings_may_be_merged(merged: bytes) -> None:
    assert "merges a mapping" in problem_of(b"a:\n  <<: " + merged + b"\n").message


def test_two_merges_in_one_mapping_are_a_duplicate_key() -> None:
    problem = problem_of(b"x: &x {k: 1}\na:\n  <<: *x\n  <<: *x\n")
    assert (problem.line, problem.message) == (4, "duplicate key '<<', first in line 3")


# -------------------------------------------------------------------------------- reading the file


def test_a_missing_file_is_a_problem_that_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "general_e2e.yaml").touch()
    with pytest.raises(SpecError, match=r"no such file; did you mean 'general_e2e.yaml'\?"):
        read_document(tmp_path / "genral_e2e.yaml")


def test_a_file_in_a_missing_folder_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file$"):
        read_document(tmp_path / "missing" / "p.yaml")


def test_a_folder_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_document(tmp_path)


def test_a_name_with_a_nul_is_a_problem() -> None:
    with pytest.raises(SpecError, match="cannot be read: "):
        read_document(Path("a\0b"))


def test_the_problem_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: [")
    with pytest.raises(SpecError) as caught:
        read_document(path)
    assert caught.value.problems[0].file == str(path)


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"a: 1\n",))
    writer.start()
    try:
        assert read_document(pipe).value == {"a": 1}
    finally:
        writer.join()


def test_an_endless_device_is_refused_after_the_limit() -> None:
    with pytest.raises(SpecError, match="larger than 8 MB"):
        read_document(Path("/dev/zero"))
