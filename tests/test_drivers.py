"""Whether a driver lives: by the kernel on its own machine, by its heartbeat from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.core import atomic, drivers
from nexa_hpc.core.drivers import Driver, Heartbeat, Life, Watch

ABSENT_PID = 2**22 + 1  # Linux gives none above 2**22


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".nexa_state"


@pytest.fixture
def driver(state: Path) -> Driver:
    return Driver.this_process(state / "demo/runs/demo-1/drivers", state)


@pytest.fixture
def elsewhere(driver: Driver) -> Driver:
    """A driver on another machine that happens to have our pid there."""
    return replace(driver, machine="another machine")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the monotonic clock, and return what moves it on."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def describe(driver: Driver, pid: int) -> Driver:
    """A driver of our machine with this pid."""
    started = drivers._process_start(pid)
    assert started
    return replace(driver, pid=pid, started=started)


def beat(state: Path, driver: Driver, count: int) -> None:
    atomic.write_json(state / driver.heartbeat, {"beat": count})


def until(condition: Callable[[], object]) -> None:
    """Wait for `condition`, for at most ten seconds."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")


# ---------------------------------------------------------------------------------- on this machine


def test_our_own_process_is_alive(state: Path, driver: Driver) -> None:
    assert Watch(state).life(driver) is Life.ALIVE
    assert driver.pid == os.getpid()
    assert str(driver) == f"{driver.host}:{os.getpid()}"


def test_a_driver_survives_being_recorded(driver: Driver) -> None:
    assert Driver.from_json(json.loads(json.dumps(driver.to_json()))) == driver


def test_two_drivers_of_one_process_have_heartbeats_of_their_own(state: Path) -> None:
    files = {Driver.this_process(state / "d", state).heartbeat for _ in range(2)}
    assert len(files) == 2
    assert {Path(file).parent for file in files} == {Path("d")}


def test_a_killed_process_has_ended_before_and_after_its_parent_has_noticed(
    state: Path, driver: Driver, sleeper: subprocess.Popen[bytes]
) -> None:
    other = describe(driver, sleeper.pid)
    watch = Watch(state)
    assert watch.life(other) is Life.ALIVE
    sleeper.kill()
    until(lambda: watch.life(other) is Life.ENDED)
    assert Path(f"/proc/{sleeper.pid}").exists()  # a zombie
    sleeper.wait()
    assert watch.life(other) is Life.ENDED


def test_a_process_that_was_given_the_same_pid_later_is_not_the_driver(
    state: Path, driver: Driver
) -> None:
    assert Watch(state).life(replace(driver, started="1")) is Life.ENDED


def test_a_name_with_spaces_and_brackets_does_not_confuse(
    tmp_path: Path, state: Path, driver: Driver
) -> None:
    program = tmp_path / "a ) S 1 (b"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            until(lambda: b") S 1" in Path(f"/proc/{process.pid}/stat").read_bytes())
            other = describe(driver, process.pid)
            assert int(other.started) >= int(driver.started)
            assert Watch(state).life(other) is Life.ALIVE
        finally:
            process.kill()


def test_a_fresh_heartbeat_does_not_make_a_gone_process_live(state: Path, driver: Driver) -> None:
    gone = replace(driver, pid=ABSENT_PID)
    beat(state, gone, 5)
    assert Watch(state).life(gone) is Life.ENDED


def test_another_users_process_that_proc_hides_is_told_by_its_heartbeat(
    state: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    def refuse(pid: int, number: int) -> None:
        assert (pid, number) == (ABSENT_PID, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    hidden = replace(driver, pid=ABSENT_PID)
    watch = Watch(state, silence_s=90)
    beat(state, hidden, 1)
    assert watch.life(hidden) is Life.UNKNOWN
    beat(state, hidden, 2)
    assert watch.life(hidden) is Life.ALIVE
    clock(91)
    assert watch.life(hidden) is Life.ENDED


def test_a_machine_is_this_kernel_since_it_booted_and_this_pid_namespace(driver: Driver) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot_id in driver.machine
    assert os.readlink("/proc/self/ns/pid") in driver.machine
    assert driver.host in driver.machine


def test_a_machine_is_named_also_where_it_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert drivers._machine().startswith(f"{os.uname().nodename}/pid:")


def test_a_pid_that_no_system_can_have_is_nobody(state: Path, driver: Driver) -> None:
    assert Watch(state).life(replace(driver, pid=2**70)) is Life.ENDED


def test_another_pid_namespace_is_another_machine(driver: Driver) -> None:
    code = "from nexa_hpc.core import drivers; print(drivers._machine())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("we may not make a pid namespace here")
    assert done.stdout.strip() != driver.machine


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let /proc be absent, as on other systems than Linux."""
    if shutil.which("ps") is None:
        pytest.skip("there is no ps here")
    monkeypatch.setattr(drivers, "Path", lambda text: Path(text.replace("/proc", "/no/proc")))

    def no_link(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", no_link)


@pytest.mark.usefixtures("no_proc")
def test_without_proc_ps_is_asked(state: Path, sleeper: subprocess.Popen[bytes]) -> None:
    driver = Driver.this_process(state / "d", state)
    other = describe(driver, sleeper.pid)
    assert drivers._process_start(ABSENT_PID) is None
    assert Watch(state).life(driver) is Life.ALIVE
    assert Watch(state).life(other) is Life.ALIVE
    assert Watch(state).life(replace(other, started="Thu Jan  1 00:00:00 1970")) is Life.ENDED
    sleeper.kill()
    sleeper.wait()
    assert Watch(state).life(other) is Life.ENDED


def test_a_process_that_ends_while_we_look_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path) -> str:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_text", gone)
    assert drivers._process_start(os.getpid()) is None


# ----------------------------------------------------------------------------------- from elsewhere


def test_from_elsewhere_nothing_is_known_until_the_counter_moves(
    state: Path, elsewhere: Driver, clock: Callable[[float], None]
) -> None:
    watch = Watch(state, silence_s=90)
    beat(state, elsewhere, 3)
    assert watch.life(elsewhere) is Life.UNKNOWN
    clock(89)
    assert watch.life(elsewhere) is Life.UNKNOWN
    beat(state, elsewhere, 4)
    assert watch.life(elsewhere) is Life.ALIVE
    clock(89)
    assert watch.life(elsewhere) is Life.UNKNOWN


@pytest.mark.parametrize("has_beaten", [True, False])
def test_from_elsewhere_silence_for_long_enough_is_the_end(
    state: Path, elsewhere: Driver, has_beaten: bool, clock: Callable[[float], None]
) -> None:
    watch = Watch(state, silence_s=90)
    if has_beaten:
        beat(state, elsewhere, 3)
    assert watch.life(elsewhere) is Life.UNKNOWN
    clock(90)
    assert watch.life(elsewhere) is Life.ENDED
    beat(state, elsewhere, 4)
    assert watch.life(elsewhere) is Life.ALIVE


def test_a_heartbeat_that_is_removed_is_no_beat(
    state: Path, elsewhere: Driver, clock: Callable[[float], None]
) -> None:
    watch = Watch(state, silence_s=90)
    beat(state, elsewhere, 3)
    watch.life(elsewhere)
    (state / elsewhere.heartbeat).unlink()
    assert watch.life(elsewhere) is Life.UNKNOWN
    clock(90)
    assert watch.life(elsewhere) is Life.ENDED


def test_an_observer_times_each_driver_by_itself(
    state: Path, elsewhere: Driver, clock: Callable[[float], None]
) -> None:
    watch, other = Watch(state, silence_s=90), replace(elsewhere, heartbeat="other.json")
    watch.life(elsewhere)
    clock(50)
    assert watch.life(other) is Life.UNKNOWN
    clock(50)
    assert watch.life(elsewhere) is Life.ENDED
    assert watch.life(other) is Life.UNKNOWN


# ---------------------------------------------------------------------------------------- heartbeat


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_MARKER_INTERVAL_S", 0.005)
    monkeypatch.setattr(drivers, "BEAT_INTERVAL_S", 0.01)


def count(state: Path, driver: Driver) -> int:
    return int(json.loads((state / driver.heartbeat).read_text())["beat"])


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_beats_while_it_is_open_and_is_gone_afterwards(
    state: Path, driver: Driver
) -> None:
    with Heartbeat(driver, state, state / "cancelled.json", lambda: None):
        assert count(state, driver) >= 0  # from the beginning, before the first interval
        until(lambda: count(state, driver) >= 3)
    assert not (state / driver.heartbeat).exists()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("quick")
def test_an_observer_elsewhere_sees_a_heartbeat_live_and_fall_silent(
    state: Path, driver: Driver, elsewhere: Driver
) -> None:
    watch = Watch(state, silence_s=0.3)
    with Heartbeat(driver, state, state / "cancelled.json", lambda: None):
        until(lambda: watch.life(elsewhere) is Life.ALIVE)
    until(lambda: watch.life(elsewhere) is Life.ENDED)


@pytest.mark.usefixtures("quick")
def test_the_cancel_marker_is_told_once(state: Path, driver: Driver) -> None:
    told: list[int] = []
    marker = state / "cancelled.json"
    with Heartbeat(driver, state, marker, lambda: told.append(1)):
        until(lambda: count(state, driver) >= 2)
        assert told == []
        marker.write_text("{}")
        until(lambda: told)
        before = count(state, driver)
        until(lambda: count(state, driver) >= before + 3)
    assert told == [1]


@pytest.mark.usefixtures("quick")
def test_a_filesystem_that_fails_for_a_while_does_not_end_the_beating(
    state: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    def fail(*_: Any) -> bool:
        failures.append(1)
        raise OSError(116, "Stale file handle")

    with Heartbeat(driver, state, state / "cancelled.json", lambda: None):
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_json", fail)
            patch.setattr(Path, "exists", fail)
            until(lambda: len(failures) > 6)
        before = count(state, driver)
        until(lambda: count(state, driver) > before)
