"""What a killed attempt left running is ended, and nothing else is."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import child_environment

from nexa_hpc.core import leftovers
from nexa_hpc.core.leftovers import TAG_VARIABLE, attempt_tag, end_leftovers

# Of this test run alone: another one on this machine must not be ended by ours.
TAG = attempt_tag(Path("/project", secrets.token_hex(32)), 1)

_SUICIDAL = """
import subprocess
from nexa_hpc.core.leftovers import end_leftovers
with subprocess.Popen(["sleep", "60"]):
    print(end_leftovers(TAG))
"""

Start = Callable[[str | None], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a shell and its child, which both carry a tag."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(tag: str | None) -> subprocess.Popen[bytes]:
        environment = dict(os.environ) if tag is None else {**os.environ, TAG_VARIABLE: tag}
        process = subprocess.Popen(
            ["sh", "-c", "sleep 60 & echo; wait"], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()  # the child is there
        started.append(process)
        return process

    yield begin
    for process in started:
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_tagged_process_and_what_it_started_are_ended(start: Start) -> None:
    process = start(TAG)
    (child,) = children(process.pid)
    time.sleep(0.05)  # until the child has become `sleep`
    assert end_leftovers(TAG) == 2
    assert process.wait(60) == -9
    assert not Path(f"/proc/{child}/exe").exists()


def test_other_attempts_and_other_processes_are_left_alone(start: Start) -> None:
    others = [
        start(None),
        start(TAG + "0"),
        start(attempt_tag(Path("/project", "cd" * 32), 1)),
        start(""),
    ]
    assert end_leftovers(TAG) == 0
    assert [process.poll() for process in others] == [None] * 4


def test_a_process_spares_itself(tmp_path: Path) -> None:
    script = _SUICIDAL.replace("TAG", repr(TAG))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_environment(**{TAG_VARIABLE: TAG}),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_process_that_ends_by_itself_meanwhile_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([[2**22 + 1], []])
    monkeypatch.setattr(leftovers, "_tagged", lambda *_: next(answers))
    assert end_leftovers(TAG) == 1


def test_a_process_that_cannot_be_ended_is_not_waited_for_for_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(TAG)
    monkeypatch.setattr(leftovers, "_PATIENCE_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda *_: None)
        begun = time.monotonic()
        end_leftovers(TAG)
    assert 0.1 <= time.monotonic() - begun < 5
    assert process.poll() is None
