"""Hostile documents: refused in words, quickly, in little memory, and never with a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import child_environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_document import PIPELINE, problem_of

from nexa_hpc.core import yaml_reading
from nexa_hpc.core.document import parse_document
from nexa_hpc.core.spec import parse_pipeline
from nexa_hpc.core.yaml_reading import MAX_DEPTH
from nexa_hpc.errors import SpecError

BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 40)
)
MERGE_BOMB = (
    b"m: &m {" + b", ".join(b"k%d: 1" % n for n in range(5000)) + b"}\nlist:\n"
    + b"- {<<: *m}\n" * 5000
)  # fmt: skip
DEEP_BY_ALIASES = b"a0: &a0 [1]\n" + b"".join(
    b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, 300)
)

REFUSED = {
    "a duplicate key": (b"a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first in line 1"),
    "a duplicate key deep inside": (b"a:\n - x: 1\n   x: 2\n", 3, "duplicate key 'x', first in"),
    "a duplicate key in two quotings": (b"a: 1\n'a': 2\n", 2, "duplicate key 'a'"),
    "a python object": (b"a: !!python/object/apply:os.system [ls]\n", 1, "the tag !!python/object"),
    "a python name": (b"a: !!python/name:os.system\n", 1, "the tag !!python/name"),
    "a python tuple": (b"a: !!python/tuple [1]\n", 1, "the tag !!python/tuple is not allowed"),
    "a custom tag": (b"a: 1\nb: !mine {x: 1}\n", 2, "the tag !mine is not allowed"),
    "a binary tag": (b"a: !!binary aGk=\n", 1, "the tag !!binary is not allowed"),
    "a set": (b"a: !!set {x}\n", 1, "the tag !!set is not allowed"),
    "a timestamp tag": (b"a: !!timestamp 2026-01-01\n", 1, "the tag !!timestamp is not allowed"),
    "a mapping tagged as a list": (b"a: !!seq {x: 1}\n", 1, "the tag !!seq is not allowed"),
    "a list tagged as text": (b"a: !!str [x]\n", 1, "the tag !!str is not allowed"),
    "an alias bomb": (BOMB, None, "more than 1,000,000 values"),
    "a bomb of merges": (MERGE_BOMB, None, "more than 1,000,000 values"),
    "an alias to nothing": (b"a: *x\n", 1, "the alias *x has no anchor before it"),
    "an alias to itself": (b"a: &x [*x]\n", 1, "the alias *x has no anchor before it"),
    "a mapping merged into itself": (b"a: &x {<<: *x}\n", 1, "the alias *x has no anchor"),
    "absurd nesting": (b"a: " + b"[" * 100_000, 1, "nest"),
    "absurd nesting of mappings": (b"{a: " * 5000, 1, f"nested more than {MAX_DEPTH} deep"),
    "absurd nesting in block style": (b"- " * 5000 + b"x\n", 1, f"nested more than {MAX_DEPTH}"),
    "absurd nesting by aliases": (DEEP_BY_ALIASES, 101, f"nested more than {MAX_DEPTH} deep"),
    "a number as a key": (b"a: 1\n2: x\n", 2, "the key 2 reads as int; quote it"),
    "a boolean as a key": (b"on: 1\n", 1, "the key on reads as bool; quote it"),
    "null as a key": (b"~: 1\n", 1, "the key ~ reads as null; quote it"),
    "nothing as a key": (b"? \n: 1\n", 1, "the key null reads as null; quote it"),
    "a list as a key": (b"? [a]\n: 1\n", 1, "a key must be text; quote it"),
    "an alias to a list as a key": (b"a: &x [1]\n*x : 1\n", 2, "a key must be text; quote it"),
    "NaN": (b"a: .nan\n", 1, "'.nan' is not a finite number"),
    "NaN as a key": (b".nan: 1\n", 1, "'.nan' is not a finite number"),
    "two documents": (b"a: 1\n---\nb: 2\n", 2, "a second document (`---`)"),
    "an empty file": (b"", 1, "empty"),
    "nothing but comments": (b"# a\n\n# b\n", None, "empty"),
    "a million values": (b"a: [" + b"a," * 1_000_001 + b"]\n", 1, "more than 1,000,000 values"),
    "a list at the top": (b"- a\n", 1, "expected a mapping (`key: value` lines) at the top"),
    "text at the top": (b"hello\n", 1, "expected a mapping"),
    "null at the top": (b"---\n...\n", None, "expected a mapping"),
    "a NUL byte": (b"a: 1\nb: \0\n", 2, "a binary file: it holds a NUL byte"),
    "an executable": (b"\x7fELF\x02\x01\x01" + b"\0" * 9, 1, "a binary file"),
    "Latin-1": (b"a: 1\nb: caf\xe9\n", 2, "not UTF-8 text"),
    "UTF-16": ("a: 1\n".encode("utf-16"), 1, "binary"),
    "half of a character": (b"a: \xe2\x82", 1, "not UTF-8 text"),
    "a control character": (b"a: 1\nb: \x07\n", None, "not valid YAML"),
    "an unclosed bracket": (b"a: [1, 2\nb: 3\n", 2, "not valid YAML"),
    "an unclosed quote": (b"a: 'x\n", 2, "not valid YAML"),
    "a tab as indentation": (b"a:\n\tb: 1\n", 2, "not valid YAML"),
    "bad indentation": (b"a:\n  b: 1\n c: 2\n", 3, "not valid YAML"),
    "an undeclared tag handle": (b"a: !x!y 1\n", 1, "not valid YAML"),
    "a later YAML": (b"%YAML 2.0\n---\na: 1\n", None, "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_words_with_its_line(text: bytes, line: int | None, message: str) -> None:
    problem = problem_of(text)
    assert message in problem.message
    if line is not None:
        assert problem.line == line


@pytest.mark.parametrize("text", [case[0] for case in REFUSED.values()], ids=REFUSED)
def test_it_is_refused_without_libyaml_too(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(text) > 200_000:
        pytest.skip("too slow in pure Python")
    monkeypatch.setattr(yaml_reading, "_EventSource", yaml.BaseLoader)
    problem_of(text)


_CHILD = """
import json, resource, sys, time
from pathlib import Path
from nexa_hpc.core.document import read_document
from nexa_hpc.errors import SpecError
resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
start = time.process_time()
try:
    read_document(Path(sys.argv[1]))
except SpecError as error:
    print(json.dumps([time.process_time() - start, str(error)]))
"""


def _refuse_in_little_memory(path: Path) -> tuple[float, str]:
    """Return the seconds of CPU and the message of refusing `path` within 200 MB of addresses."""
    plain = {k: v for k, v in child_environment().items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        env=plain, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, message = json.loads(done.stdout)
    return float(seconds), str(message)


@pytest.mark.parametrize(
    "name",
    ["an alias bomb", "a bomb of merges", "absurd nesting", "absurd nesting of mappings"],
)
def test_it_is_refused_in_under_a_second_and_200_mb(name: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(REFUSED[name][0])
    seconds, message = _refuse_in_little_memory(path)
    assert REFUSED[name][2] in message
    assert seconds < 1


@pytest.mark.parametrize("fill", [b"\0", b"a: 1\n"], ids=["sparse", "written"])
def test_a_file_of_100_mb_is_refused_unread(fill: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    with path.open("wb") as file:
        if fill == b"\0":
            file.truncate(100 << 20)
        else:
            for _ in range(100):
                file.write(fill * ((1 << 20) // len(fill)))
    seconds, message = _refuse_in_little_memory(path)
    assert "larger than 8 MB" in message
    assert seconds < 0.2


def test_eight_megabytes_of_nesting_are_refused_as_quickly_as_a_little(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: " + b"[" * ((8 << 20) - 3))
    seconds, message = _refuse_in_little_memory(path)
    assert "nest" in message, "libyaml's own limit may come first"
    assert seconds < 1


# ------------------------------------------------------------------------------------------ fuzzing


def _only_spec_errors(text: bytes) -> None:
    try:
        parse_pipeline(parse_document(text, "p.yaml"))
    except SpecError as error:
        assert error.problems
        assert all(str(problem) for problem in error.problems)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_raise_nothing_else(text: bytes) -> None:
    _only_spec_errors(text)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
@settings(deadline=None)
def test_random_text_raises_nothing_else(text: str) -> None:
    _only_spec_errors(text.encode())


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(PIPELINE)),
            st.integers(0, 12),
            st.one_of(st.binary(max_size=4), st.sampled_from(
                [b"*base", b"&base ", b"<<: ", b"!!int ", b"!x ", b"- ", b"? ", b": ", b"{", b"]",
                 b"'", b'"', b"|\n", b"---\n", b"...\n", b"\t", b"%TAG ! x\n", b"0x_", b".nan"])),
        ),
        max_size=4,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_mutated_pipeline_raises_nothing_else(changes: list[tuple[int, int, bytes]]) -> None:
    text = PIPELINE
    for start, length, new in changes:
        text = text[:start] + new + text[start + length :]
    _only_spec_errors(text)


_WORDS = [
    "id", "uses", "in", "out", "params", "after", "resources", "env", "labels", "slurm", "extra",
    "path", "digest", "variables", "nodes", "scope", "cache_hint", "a", "stat",
]  # fmt: skip
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(_WORDS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": _VALUES,
            "labels": _VALUES,
            "steps": st.one_of(
                _VALUES,
                st.lists(
                    st.one_of(_VALUES, st.dictionaries(st.sampled_from(_WORDS), _VALUES)),
                    max_size=4,
                ),
            ),
        },
    )
)
@settings(max_examples=300, deadline=None)
def test_values_of_any_shape_anywhere_raise_nothing_else(pipeline: dict[str, Any]) -> None:
    _only_spec_errors(yaml.safe_dump({"pipeline": pipeline}).encode())
