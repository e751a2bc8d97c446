"""What steps print is caught, each step's in its own log, by one thread that sleeps meanwhile."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nexa_hpc.core.redaction import Redactor
from nexa_hpc.schedulers import capture
from nexa_hpc.schedulers.capture import OutputPump

Say = Callable[[str, str], bytes]


@pytest.fixture
def say(tmp_path: Path) -> Say:
    """Print a text while captured, and return what the watcher got."""
    pump = OutputPump()

    def captured(step: str, text: str) -> bytes:
        got: list[bytes] = []
        with pump.captured(tmp_path / f"{step}.log", got.append, Redactor(())):
            os.write(1, text.encode())
        return b"".join(got)

    return captured


def pumps() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "output"]


def test_each_step_has_its_own_log(tmp_path: Path, say: Say) -> None:
    for number in range(50):
        assert say(f"s{number}", f"I am {number}\n") == f"I am {number}\n".encode()
    texts = [(tmp_path / f"s{number}.log").read_text() for number in range(50)]
    assert texts == [f"I am {number}\n" for number in range(50)]


def test_a_silent_step_leaves_no_log(tmp_path: Path, say: Say) -> None:
    assert say("s", "") == b""
    assert os.listdir(tmp_path) == []


def test_more_than_a_pipe_holds_is_passed_on_while_the_step_runs(tmp_path: Path, say: Say) -> None:
    text = "0123456789\n" * 100_000
    assert say("s", text) == text.encode()
    assert (tmp_path / "s.log").read_text() == text


def test_one_thread_reads_for_all_steps_and_ends_when_there_are_none(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pumps()
    monkeypatch.setattr(capture, "_IDLE_S", 0.01)
    for number in range(5):
        say(f"s{number}", "text")
        assert len(pumps()) <= len(before) + 1
    for thread in pumps():
        thread.join()
    assert say("again", "text") == b"text"


def test_what_a_child_that_was_left_behind_prints_later_goes_to_its_own_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_DRAIN_S", 0.01)
    pump = OutputPump()
    first: list[bytes] = []
    arrived = threading.Event()

    def heard(text: bytes) -> None:
        first.append(text)
        if b"late" in text:
            arrived.set()

    with pump.captured(tmp_path / "first.log", heard, Redactor(())):
        child = subprocess.Popen(["sh", "-c", "read _; echo late"], stdin=subprocess.PIPE)
    with pump.captured(tmp_path / "second.log", lambda _: None, Redactor(())):
        os.write(1, b"second\n")
        child.communicate(b"\n")
        assert arrived.wait(10)
    assert first == [b"late\n"]
    assert (tmp_path / "first.log").read_text() == "late\n"
    assert (tmp_path / "second.log").read_text() == "second\n"


def test_no_file_descriptor_is_left_open(say: Say) -> None:
    say("before", "text")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        say(f"s{number}", "text" if number % 2 else "")
    assert len(os.listdir("/proc/self/fd")) == before
