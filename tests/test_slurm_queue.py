"""What squeue and sacct print, read, merged, and shared among the processes of a user."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.paths import user_cache
from nexa_hpc.schedulers.slurm import queue as queues
from nexa_hpc.schedulers.slurm.commands import calls
from nexa_hpc.schedulers.slurm.queue import Queue, Snapshot, Word, live_count

NAME = "train.demo-1.0123456789abcdef"


def listed(job: str, index: str, state: str, reason: str = "None", name: str = NAME) -> str:
    """Return a line as `squeue --format=%F|%K|%T|%N|%j|%e|%r` prints it."""
    return f"{job}|{index}|{state}|n1|{name}|N/A|{reason}\n"


def accounted(
    job: str, state: str, reason: str = "None", start: str = "Unknown", name: str = NAME
) -> str:
    """Return a line of sacct, as it is asked."""
    return f"{job}|{state}|n2|{name}|2026-01-02T03:04:05|{reason}|{start}\n"


def state_of(snapshot: Snapshot, job: str, index: int | None = None) -> str | None:
    word = snapshot.word(job, index, NAME)
    return None if word is None else word.state


def test_a_plain_job_is_found_by_its_id_and_name() -> None:
    snapshot = Snapshot(1.0, listed("7", "N/A", "PENDING", "Priority"))
    assert snapshot.word("7", None, NAME) == Word("PENDING", "Priority", "n1", NAME, "N/A")
    assert snapshot.word("7", None, "another job that got this id") is None
    assert snapshot.word("8", None, NAME) is None
    assert snapshot.job_named(NAME) == "7"
    assert snapshot.job_named("x") is None


def test_elements_that_slurm_has_not_split_off_are_found_in_their_set() -> None:
    text = listed("7", "3-5,9%2", "PENDING") + listed("7", "1", "RUNNING")
    snapshot = Snapshot(1.0, text)
    found = {index: state_of(snapshot, "7", index) for index in range(11)}
    assert {index for index, state in found.items() if state == "PENDING"} == {3, 4, 5, 9}
    assert {index for index, state in found.items() if state == "RUNNING"} == {1}
    assert {index for index, state in found.items() if state is None} == {0, 2, 6, 7, 8, 10}


def test_a_set_that_cannot_be_read_is_for_all_that_are_not_listed() -> None:
    snapshot = Snapshot(1.0, listed("7", "0,2,...", "PENDING") + listed("7", "1", "RUNNING"))
    assert state_of(snapshot, "7", 1) == "RUNNING"
    assert state_of(snapshot, "7", 77) == "PENDING"


def ranges(indices: Sequence[int]) -> str:
    """Write indices as Slurm does, with ranges where they follow one another."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


@given(
    st.sets(st.integers(0, 60), min_size=2),
    st.sets(st.integers(0, 60)),
    st.sampled_from(["", "%1", "%25"]),
)
def test_each_element_has_the_word_of_its_own_line_or_of_its_set(
    waiting: set[int], split: set[int], throttle: str
) -> None:
    lines = [listed("7", f"{ranges(sorted(waiting))}{throttle}", "PENDING")]
    lines += [listed("7", str(index), "RUNNING") for index in sorted(split)]
    snapshot = Snapshot(1.0, "".join(reversed(lines)))
    for index in range(62):
        expected = "RUNNING" if index in split else "PENDING" if index in waiting else None
        # A set of one that Slurm writes as a number is a split element.
        assert state_of(snapshot, "7", index) == expected
        assert snapshot.lists(f"7_{index}") is (expected is not None)
    assert live_count(snapshot, {"COMPLETED"}) == len(waiting) + len(split)


def test_steps_in_a_set_are_read() -> None:
    snapshot = Snapshot(1.0, listed("7", "0-8:4", "PENDING"))
    assert [i for i in range(9) if state_of(snapshot, "7", i)] == [0, 4, 8]


def test_squeue_outranks_accounting_and_accounting_fills_what_it_has_forgotten() -> None:
    accounting = (
        accounted("7_1", "RUNNING") + accounted("7_2", "TIMEOUT") + accounted("9", "FAILED")
    )
    snapshot = Snapshot(1.0, listed("7", "1", "COMPLETED"), accounting)
    one, two = snapshot.word("7", 1, NAME), snapshot.word("7", 2, NAME)
    assert one is not None and (one.state, one.accounted) == ("COMPLETED", False)
    assert two is not None and (two.state, two.accounted) == ("TIMEOUT", True)
    assert state_of(snapshot, "9") == "FAILED"
    assert state_of(snapshot, "7", 3) is None


def test_accounting_of_a_set_of_elements_is_read() -> None:
    snapshot = Snapshot(1.0, "", accounted("7_[2-3%1]", "PENDING"))
    assert [i for i in range(5) if state_of(snapshot, "7", i)] == [2, 3]


@pytest.mark.parametrize(
    ("state", "reason", "start", "means"),
    [
        ("CANCELLED", "Dependency", "None", "DependencyNeverSatisfied"),
        ("CANCELLED", "Dependency", "Unknown", "DependencyNeverSatisfied"),
        ("CANCELLED by 1000", "Dependency", "None", ""),
        ("CANCELLED", "Dependency", "2026-01-02T03:04:05", "DependencyNeverSatisfied"),
        ("CANCELLED", "Dependency", "2026-01-02T03:00:00", ""),
        ("CANCELLED", "Priority", "None", ""),
    ],
)
def test_who_cancelled_a_job_is_told_apart_in_accounting(
    state: str, reason: str, start: str, means: str
) -> None:
    word = Snapshot(1.0, "", accounted("7", state, reason, start)).word("7", None, NAME)
    assert word is not None and word.reason == means


def test_a_bar_in_a_reason_and_a_line_cut_short_do_no_harm() -> None:
    word = Snapshot(1.0, listed("7", "N/A", "PENDING", "a|b")).word("7", None, NAME)
    assert word is not None and word.reason == "a|b"
    assert Snapshot(1.0, "7|N/A|PENDING\n").word("7", None, NAME) is None


def test_how_long_ago_a_job_ended_is_zero_where_nobody_knows() -> None:
    ended = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 100))
    assert 98 < Word("FAILED", ended=ended).ended_ago_s() < 110
    assert Word("FAILED", ended="N/A").ended_ago_s() == 0.0


class Site:
    """Programs in the place of squeue and sacct, that print what they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.say("squeue", "")
        self.say("sacct", "")

    def say(self, command: str, text: str, *, code: int = 0) -> None:
        (self.folder / f"{command}.txt").write_text(text)
        program = self.folder / command
        program.write_text(f'#!/bin/sh\ncat "{self.folder}/{command}.txt"\nexit {code}\n')
        program.chmod(stat.S_IRWXU)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls.clear()
    return found


def test_within_the_interval_all_processes_have_one_answer(site: Site) -> None:
    site.say("squeue", listed("7", "N/A", "RUNNING"))
    one, two = (Queue("c", least_interval_s=60) for _ in range(2))
    assert state_of(one.look(), "7") == state_of(two.look(), "7") == "RUNNING"
    assert one.look().asked_at == two.look().asked_at
    assert calls["squeue"] == 1
    other = Queue("another", least_interval_s=60)
    other.look()
    assert calls["squeue"] == 2


def test_an_answer_that_is_too_old_is_asked_for_anew(site: Site) -> None:
    queue = Queue("c", least_interval_s=60)
    first = queue.look()
    assert queue.look(newer_than=first.asked_at).asked_at > first.asked_at
    assert calls["squeue"] == 2


def test_what_slurm_does_not_answer_changes_nothing_and_is_not_asked_at_once_again(
    site: Site,
) -> None:
    site.say("squeue", listed("7", "N/A", "RUNNING"))
    queue = Queue("c", least_interval_s=0.001)
    queue.look()
    site.say("squeue", "Unable to contact slurm controller\n", code=1)
    time.sleep(0.01)
    for _ in range(5):
        assert state_of(queue.look(), "7") == "RUNNING"
        assert queue.trouble is not None and "Unable to contact" in queue.trouble
    assert calls["squeue"] == 2


def test_the_trouble_is_over_when_slurm_answers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_QUIET_S", 0.0)
    site.say("squeue", "no\n", code=1)
    queue = Queue("c", least_interval_s=0.001)
    assert queue.look().asked_at == 0.0
    site.say("squeue", listed("7", "N/A", "RUNNING"))
    assert state_of(queue.look(), "7") == "RUNNING"
    assert queue.trouble is None


def test_accounting_is_asked_once_for_all_and_others_have_the_answer(site: Site) -> None:
    site.say("sacct", accounted("7", "TIMEOUT") + accounted("8", "FAILED"))
    queue = Queue("c", least_interval_s=60)
    queue.look()
    for _ in range(3):
        assert state_of(queue.recall(["7", "8"]), "7") == "TIMEOUT"
    assert calls["sacct"] == 1
    assert state_of(Queue("c", least_interval_s=60).look(), "8") == "FAILED"


def test_where_there_is_no_accounting_it_is_not_asked(site: Site) -> None:
    queue = Queue("c", least_interval_s=60, accounting=False)
    queue.look()
    assert state_of(queue.recall(["7"]), "7") is None
    assert calls["sacct"] == 0


def test_accounting_that_does_not_answer_is_no_trouble_of_the_queue(site: Site) -> None:
    site.say("sacct", "Connection refused\n", code=1)
    queue = Queue("c", least_interval_s=60)
    queue.look()
    queue.recall(["7"])
    assert queue.trouble is None
    assert queue.accounting_trouble is not None


def test_since_when_nothing_is_said_of_an_element_is_known_to_all_processes(site: Site) -> None:
    one = Queue("c", least_interval_s=0.001)
    since = one.look().asked_at
    assert one.absent_since("7_1") == since
    time.sleep(0.01)
    two = Queue("c", least_interval_s=0.001)
    assert two.look().asked_at > since
    assert two.absent_since("7_1") == since
    site.say("squeue", listed("7", "1", "RUNNING"))
    time.sleep(0.01)
    assert two.look().absent == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"asked_at": 1}', json.dumps({"x": 1})])
def test_a_shared_answer_that_cannot_be_read_is_asked_for(site: Site, content: str) -> None:
    file = user_cache() / "queue-c.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    queue = Queue("c", least_interval_s=60)
    queue.look()
    assert calls["squeue"] == 1 and queue.trouble is None


def test_a_cache_that_cannot_be_written_costs_only_calls(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    site.say("squeue", listed("7", "N/A", "RUNNING"))
    assert state_of(Queue("c", least_interval_s=60).look(), "7") == "RUNNING"
