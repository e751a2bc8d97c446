"""Records: each created once, by one of many, and never mistaken for something else."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from nexa_hpc.core import records
from nexa_hpc.core.records import Attempt, newest_number, read_attempts
from nexa_hpc.core.states import Reason, State
from nexa_hpc.errors import StateError

_SPAWN = multiprocessing.get_context("spawn")
PROCESSES = 4
ATTEMPTS = 15


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "records/ab/abcd"


def test_a_key_without_records_has_no_attempts(folder: Path) -> None:
    assert read_attempts(folder) == []
    assert newest_number(folder) == 0


def test_an_attempt_goes_from_claimed_to_started_to_ended(folder: Path) -> None:
    states = []
    for write in (
        lambda: records.claim(folder, 1, {"run": "demo-1"}),
        lambda: records.start(folder, 1, {"pid": 7}),
        lambda: records.end(folder, 1, State.FAILED, reason=Reason.TIMEOUT, message="too slow"),
    ):
        assert write()
        (attempt,) = read_attempts(folder)
        states.append(attempt.state)
    assert states == [State.SUBMITTED, State.RUNNING, State.FAILED]
    assert attempt.claim["run"] == "demo-1"
    assert attempt.start is not None and attempt.start["pid"] == 7
    assert attempt.end is not None
    del (end := dict(attempt.end))["ended_at"]
    assert end == {"state": "FAILED", "reason": "timeout", "message": "too slow"}


def test_an_end_without_a_reason_says_so(folder: Path) -> None:
    records.end(folder, 1, State.COMPLETED)
    (attempt,) = read_attempts(folder)
    assert attempt.end is not None
    assert (attempt.end["reason"], attempt.end["message"]) == (None, "")


def test_an_attempt_has_ended_once_somebody_recorded_its_end(folder: Path) -> None:
    assert not records.has_ended(folder, 1)
    records.claim(folder, 1, {})
    assert not records.has_ended(folder, 1)
    records.end(folder, 1, State.FAILED, reason=Reason.LOST)
    assert records.has_ended(folder, 1) and not records.has_ended(folder, 11)


def test_whoever_records_an_end_first_has_the_last_word(folder: Path) -> None:
    assert records.end(folder, 1, State.FAILED, reason=Reason.LOST, message="gone")
    assert not records.end(folder, 1, State.COMPLETED)
    (attempt,) = read_attempts(folder)
    assert attempt.state is State.FAILED


def test_a_second_claim_and_a_second_start_change_nothing(folder: Path) -> None:
    for write in (records.claim, records.start):
        assert write(folder, 1, {"who": "first"})
        assert not write(folder, 1, {"who": "second"})
    (attempt,) = read_attempts(folder)
    assert attempt.claim["who"] == "first"
    assert attempt.start is not None and attempt.start["who"] == "first"


def test_attempts_are_in_order_of_their_numbers_not_of_their_names(folder: Path) -> None:
    for number in (10, 9, 2, 1):
        records.claim(folder, number, {})
    assert [attempt.number for attempt in read_attempts(folder)] == [1, 2, 9, 10]


def test_the_newest_number_is_that_of_an_attempt_that_has_ended(folder: Path) -> None:
    for number in (1, 2, 3):
        records.claim(folder, number, {})
    for number in (2, 1):
        records.end(folder, number, State.CANCELLED)
    assert newest_number(folder) == 2


@pytest.mark.parametrize(
    "name",
    [
        "1.claim.json.tmp.host.12.ab34",
        "1.claim",
        "1.claim.json~",
        "1.other.json",
        "1.claim.txt",
        "01.claim.json",
        "0.claim.json",
        "-1.claim.json",
        "².claim.json",
        "٣.end.json",
        "x.claim.json",
        ".claim.json",
        "claim.json",
        "1.start.end.json",
        ".nfs0000",
    ],
)
def test_names_that_are_not_ours_are_passed_over(folder: Path, name: str) -> None:
    records.claim(folder, 2, {})
    (folder / name).write_text("torn")
    assert [attempt.number for attempt in read_attempts(folder)] == [2]


def test_a_record_that_is_torn_is_told_and_not_guessed_at(folder: Path) -> None:
    records.claim(folder, 1, {})
    (folder / "1.end.json").write_text('{"state": "COMP')
    with pytest.raises(StateError, match=r"1\.end\.json: not valid JSON"):
        read_attempts(folder)


@pytest.mark.parametrize("left", [b"", b"\0" * 64])
def test_what_a_power_cut_empties_counts_as_absent(folder: Path, left: bytes) -> None:
    records.claim(folder, 1, {"run": "r-1"}, start=records.here())
    records.end(folder, 1, State.COMPLETED, durable=False)
    for part in ("claim", "end"):
        (folder / f"1.{part}.json").write_bytes(left)
    (attempt,) = read_attempts(folder)
    assert (attempt.claim, attempt.start, attempt.end) == ({}, None, None)
    assert records.has_ended(folder, 1), "its name has been taken, so that n+1 may be claimed"


def test_a_claim_may_say_that_its_attempt_has_started(folder: Path) -> None:
    records.claim(folder, 1, {"run": "r-1"}, start=records.here())
    (attempt,) = read_attempts(folder)
    assert attempt.state is State.RUNNING and attempt.start is not None
    assert attempt.start == {"started_at": attempt.claim["claimed_at"], **records.here()}


def test_a_record_removed_while_reading_counts_as_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.claim(folder, 1, {})
    monkeypatch.setattr(records, "list_names", lambda _: ["1.claim.json", "1.end.json"])
    (attempt,) = read_attempts(folder)
    assert attempt.end is None


def test_records_are_private_and_leave_nothing_beside_them(folder: Path) -> None:
    records.claim(folder, 1, {})
    records.claim(folder, 1, {})
    assert [path.name for path in folder.iterdir()] == ["1.claim.json"]
    assert (folder / "1.claim.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


# -------------------------------------------------------------------------------------------- races


def _claim_all(folder: Path, start: Barrier, won: Queue[tuple[int, int]], who: int) -> None:
    start.wait()
    for number in range(1, ATTEMPTS + 1):
        if records.claim(folder, number, {"who": who}):
            won.put((number, who))
    won.put((0, who))


def _end_all(folder: Path, start: Barrier, won: Queue[tuple[int, int]], who: int) -> None:
    start.wait()
    for number in range(1, ATTEMPTS + 1):
        if records.end(folder, number, State.FAILED, message=str(who)):
            won.put((number, who))
    won.put((0, who))


@pytest.mark.parametrize("part", ["claim", "end"])
def test_of_many_processes_exactly_one_writes_each_record(folder: Path, part: str) -> None:
    start, won = _SPAWN.Barrier(PROCESSES), _SPAWN.Queue()
    target = {"claim": _claim_all, "end": _end_all}[part]
    everybody = [
        _SPAWN.Process(target=target, args=(folder, start, won, who)) for who in range(PROCESSES)
    ]
    for process in everybody:
        process.start()
    winners: dict[int, int] = {}
    done = 0
    while done < PROCESSES:
        number, who = won.get(timeout=240)
        if number == 0:
            done += 1
            continue
        assert number not in winners, "two processes were told that they won"
        winners[number] = who
    for process in everybody:
        process.join()
    assert sorted(winners) == list(range(1, ATTEMPTS + 1))
    for number, who in winners.items():
        content = json.loads((folder / f"{number}.{part}.json").read_text())
        assert content["who" if part == "claim" else "message"] in (who, str(who))
    assert len(list(folder.iterdir())) == ATTEMPTS


def test_an_attempt_knows_its_state_from_the_end_alone() -> None:
    end = {"state": "CANCELLED"}
    assert Attempt(1, {}, None, end).state is State.CANCELLED
