"""Secrets are found in output however it is cut, and nothing else is changed or lost."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.redaction import Redactor

SECRETS = {"CANARY": "hf_abab", "LONGER": "hf_ababcd", "KEY": "-----BEGIN\nx'y\"\\z\n-----END"}


@pytest.fixture
def redactor(monkeypatch: pytest.MonkeyPatch) -> Redactor:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return Redactor(SECRETS)


def cut(text: bytes, size: int) -> Iterator[bytes]:
    return (text[i : i + size] for i in range(0, len(text), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_a_secret_is_found_wherever_the_output_is_cut(redactor: Redactor, size: int) -> None:
    text = b"a hf_abab b hf_ababcd, hf_hf_abab; hf_aba hf_ababc h"
    passed = b"".join(redactor.chunks(cut(text, size)))
    assert passed == b"a *** b ***, hf_***; hf_aba ***c h"


def test_of_two_that_overlap_no_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "abcdefgh")
    monkeypatch.setenv("B", "cdef")
    passed = b"".join(Redactor(["A", "B"]).chunks([b"_abcdef", b"gh_abcdef_"]))
    assert passed == b"_***_ab***_"


def bash(value: str) -> str:
    """As `export -p` prints it."""
    code = 'export -p | sed -n "/declare -x X=/,/^declare -x Y/p"'
    env = {"X": value, "Y": "1"}
    return subprocess.run(
        ["bash", "-c", code],
        env={**env, "PATH": "/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("form", [str, repr, json.dumps, shlex.quote, bash])
@pytest.mark.parametrize("name", SECRETS)
def test_a_printed_environment_shows_none(
    redactor: Redactor, name: str, form: Callable[[str], str]
) -> None:
    text = f"environ({{'X': {form(SECRETS[name])}}})"
    assert "***" in redactor.text(text)
    for part in SECRETS[name].split("\n"):
        assert part not in redactor.text(text)


def test_output_is_passed_on_as_it_comes(redactor: Redactor) -> None:
    chunks = redactor.chunks([b"loss 0.5\r", b"loss 0.4\r", b"the h"])
    assert next(chunks) == b"loss 0.5\r"
    assert next(chunks) == b"loss 0.4\r"
    assert next(chunks) == b"the "
    assert next(chunks) == b"h"


def test_what_is_too_short_or_not_set_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "abc")
    monkeypatch.setenv("EMPTY", "")
    redactor = Redactor(["SHORT", "EMPTY", "NOT_SET"])
    assert redactor.text("abc") == "abc"
    assert list(redactor.chunks([b"ab", b"c"])) == [b"ab", b"c"]


@given(
    st.lists(st.text("ab\n'", min_size=4, max_size=6), min_size=1, max_size=3),
    st.lists(st.binary(max_size=6) | st.text("ab\n'", max_size=9).map(str.encode), max_size=8),
)
def test_a_stream_shows_no_secret_and_keeps_the_rest(
    secrets: list[str], chunks: list[bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for number, value in enumerate(secrets):
            patch.setenv(f"S{number}", value)
        redactor = Redactor([f"S{number}" for number in range(len(secrets))])
    passed = b"".join(redactor.chunks(chunks))
    values = [value.strip().encode() for value in secrets if len(value.strip()) >= 4]
    assert not any(value in passed for value in values)
    if not values:
        assert passed == b"".join(chunks)


def test_a_long_secret_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG", "ab" * 2000)
    redactor = Redactor(["LONG"])
    start = time.process_time()
    lines = [b"step %d: loss 0.123, about a batch\n" % n for n in range(2000)]
    assert b"".join(redactor.chunks(lines)) == b"".join(lines)
    assert time.process_time() - start < 2
