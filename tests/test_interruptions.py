"""What Ctrl-C, SIGTERM, kill -9 and `cancel` leave behind, and how the work goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import RunCli, child_environment
from flows import Flow, Process, StepDict, alive, pids_in, until

Start = Callable[..., Process]

WAIT = "until [ -e ../go ]; do sleep 0.05; done"


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start `nexa-hpc ARGS` in the background; what still runs at the end is killed."""
    started: list[Process] = []

    def start(*args: str | os.PathLike[str]) -> Process:
        started.append(Process(project, *args))
        return started[-1]

    yield start
    for process in started:
        if process.running():
            process.kill()
    for pid in alive(pids_in(project.parent / "pids")):
        os.kill(pid, signal.SIGKILL)


def waiting(flow: Flow) -> list[StepDict]:
    """quick → slow → last, where slow and a child of it note their pids and wait for `../go`."""
    slow = f"echo $$ >> ../pids\n({WAIT}) & echo $! >> ../pids\n{WAIT}\necho done > $OUT/x"
    return [
        flow.step("quick"),
        flow.step("slow", slow, out="out/slow"),
        flow.step("last", "cp $IN_input/x $OUT", out="out/last", **{"in": "out/slow"}),
    ]


def let_go(flow: Flow) -> None:
    """Let the waiting step come to its end."""
    (flow.project.parent / "go").touch()


def pids(flow: Flow) -> list[int]:
    """Return the processes of the waiting step."""
    return pids_in(flow.project.parent / "pids")


@pytest.mark.parametrize(
    "stop",
    [
        Process.interrupt,
        lambda process: process.send(signal.SIGTERM),
        lambda process: process.send(signal.SIGHUP),
    ],
    ids=["Ctrl-C", "SIGTERM", "a closed terminal"],
)
def test_a_stopped_run_ends_cleanly_and_is_resumed(
    flow: Flow, start: Start, run_cli: RunCli, stop: Callable[[Process], None]
) -> None:
    process = start("run", flow.write(*waiting(flow)))
    until(lambda: len(pids(flow)) == 2, "the slow step")
    stop(process)
    told = process.wait(expect=130)
    assert "run flow-1 was stopped in step 'slow'; what is finished stays" in told
    assert "hint: nexa-hpc pipeline resume flow-1" in told and "Traceback" not in told
    assert alive(pids(flow)) == []
    assert flow.states() == {"quick": "COMPLETED", "slow": "CANCELLED", "last": "BLOCKED"}
    status = run_cli("status").stdout
    assert "go on:      nexa-hpc resume flow-1" in status
    let_go(flow)
    run_cli("pipeline", "resume", flow.file)
    assert flow.executed() == ["quick", "slow", "slow", "last"]
    assert (flow.project / "out/last/x").read_text() == "done\n"


def test_a_second_interrupt_ends_a_command_that_does_not_listen(flow: Flow, start: Start) -> None:
    deaf = f"trap '' TERM INT\necho $$ >> ../pids\n{WAIT}"
    process = start("run", flow.write(flow.step("deaf", deaf)))
    until(lambda: pids(flow), "the step")
    process.interrupt()
    until(lambda: "another Ctrl-C ends it at once" in process.text(), "word of the first Ctrl-C")
    process.interrupt()
    process.wait(expect=130)
    assert alive(pids(flow)) == []
    assert flow.states() == {"deaf": "CANCELLED"}


def test_a_run_started_in_the_background_of_a_script_is_stopped_by_cancel(
    flow: Flow, run_cli: RunCli
) -> None:
    file = flow.write(*waiting(flow))
    # A script's `&` makes its child ignore SIGINT.
    shell = f"{sys.executable} -m nexa_hpc run {file} > ../told 2>&1 & wait $!"
    script = subprocess.Popen(["sh", "-c", shell], cwd=flow.project, env=child_environment())
    until(lambda: len(pids(flow)) == 2, "the slow step")
    done = run_cli("cancel")
    assert "run flow-1: asked to stop" in done.stdout
    assert script.wait(60) == 130
    assert alive(pids(flow)) == [] and flow.states()["slow"] == "CANCELLED"
    assert "nothing is running" in run_cli("cancel").stdout
    let_go(flow)
    run_cli("resume")
    assert flow.executed() == ["quick", "slow", "slow", "last"]


def test_a_killed_run_is_seen_as_lost_and_its_orphans_are_ended_by_the_next(
    flow: Flow, start: Start, run_cli: RunCli
) -> None:
    process = start("run", flow.write(*waiting(flow)))
    until(lambda: len(pids(flow)) == 2, "the slow step")
    process.kill()
    orphans = pids(flow)
    assert alive(orphans) == orphans
    status = run_cli("status").stdout
    assert "lost: process" in status and "nexa-hpc resume flow-1" in status
    resumed = start("resume")
    until(lambda: len(pids(flow)) == 4, "the next attempt")
    assert alive(orphans) == []
    let_go(flow)
    resumed.wait()
    assert flow.executed() == ["quick", "slow", "slow", "last"]
    assert [*flow.project.glob("artifacts/.store/*/*.tmp.*")] == [], "half-written outputs go"


def test_a_killed_command_goes_on_from_its_last_whole_checkpoint(
    flow: Flow, start: Start, run_cli: RunCli
) -> None:
    train = f"""\
if [ -n "$RESUME" ]; then cat "$RESUME"/at/*.step > $OUT/from; exit; fi
mkdir $WORK/at
echo 41 > $WORK/at/tmp; mv $WORK/at/tmp $WORK/at/1.step
echo $$ >> ../pids
{WAIT}
"""
    file = flow.write(
        flow.step("train", train, out="out/x", params={"checkpoint": {"glob": "at/*.step"}})
    )
    process = start("run", file)
    work = flow.project / ".nexa_state/work"
    until(lambda: [*work.glob("*/*/1/sealed/*.json")], "a sealed checkpoint")
    process.kill()
    # What came after the last look is not to be trusted.
    (checkpoint,) = work.glob("*/*/1/at")
    (checkpoint / "2.step").write_text("half of")
    run_cli("resume")
    assert (flow.project / "out/x/from").read_text() == "41\n"
    assert [*work.glob("*/*/*")] == [], "a finished step's work folders are removed"


def test_a_stopped_command_gets_its_signal_and_time_to_save(
    flow: Flow, start: Start, run_cli: RunCli
) -> None:
    saver = flow.project / "saver.sh"
    saver.write_text(
        f"""\
if [ -n "$RESUME" ]; then cp "$RESUME/saved" $OUT; exit; fi
trap 'sleep 0.6; echo whole > $WORK/saved; exit 1' USR1
echo $$ >> ../pids
{WAIT}
"""
    )
    # The shell around the saver dies of the signal at once.
    command = "bash saver.sh; echo after"
    checkpoint = {"glob": "saved", "signal": "USR1"}
    file = flow.write(flow.step("train", command, out="out/x", params={"checkpoint": checkpoint}))
    process = start("run", file)
    until(lambda: pids(flow), "the saver")
    process.interrupt()
    process.wait(expect=130)
    assert alive(pids(flow)) == []
    run_cli("resume")
    assert (flow.project / "out/x/saved").read_text() == "whole\n"


def test_resume_continues_the_recorded_plan_and_says_that_the_file_changed(
    flow: Flow, run_cli: RunCli
) -> None:
    steps = [flow.step("a", "test -e ../go; echo $PARAM_x > $OUT/x", out="out/a", params={"x": 1})]
    run_cli("run", flow.write(*steps), expect=1)
    steps[0]["params"]["x"] = 2
    flow.write(*steps, flow.step("new"))
    let_go(flow)
    done = run_cli("resume", flow.file)
    assert "note: flow.yaml has changed since run flow-1 was planned" in done.stderr
    assert (flow.project / "out/a/x").read_text() == "1\n"
    assert list(flow.states()) == ["a"]


def test_resume_without_a_run_says_what_to_do(project: Path, run_cli: RunCli) -> None:
    done = run_cli("resume", "flow-1", expect=2)
    assert "no run, pipeline or file that has run here: flow-1" in done.stderr
    assert "hint: nexa-hpc pipeline" in done.stderr


class Kills:
    """Runs a pipeline until something kills its driver, resumes it, and judges what came of it."""

    def __init__(self, home: Path, run_cli: RunCli) -> None:
        home.mkdir()
        self.project = home / "project"
        self.project.mkdir()
        (self.project / "nexa.yaml").touch()
        self.run_cli = run_cli
        self.flow = Flow(self.project)
        write = "echo begin > $OUT/x; sleep 0.05; echo end >> $OUT/x"
        self.flow.write(
            self.flow.step("a", write, out="out/a"),
            self.flow.step("b", f"test -s $IN_input/x; {write}", out="out/b", **{"in": "out/a"}),
            self.flow.step("c", write, out="out/c", after=[]),
        )

    def finished(self) -> Counter[str]:
        """Return how often each step with a published result has been executed."""
        store = self.project / "artifacts/.store"
        done = [
            json.loads((place.parent / "meta.json").read_text())["made_by"]["step"]
            for place in store.glob("??/*/COMPLETE")
            if ".tmp." not in place.parent.name
        ]
        return Counter({step: self.flow.count(step) for step in done})

    def recover(self) -> None:
        """Resume, and assert that nothing finished was redone and nothing half-done was taken."""
        before = self.finished()
        began = (self.project / ".nexa_state/flow/runs/flow-1").exists()
        verb = "resume" if began else "run"
        self.run_cli(verb, self.flow.file, cwd=self.project)
        after = self.finished()
        assert set(after) == {"a", "b", "c"}
        assert {step: after[step] for step in before} == dict(before)
        for step in "abc":
            assert (self.project / f"out/{step}/x").read_text() == "begin\nend\n"
        assert set(self.flow.states().values()) == {"COMPLETED"}


@pytest.mark.parametrize("round_", range(3))
def test_killed_at_any_moment_it_is_resumed(tmp_path: Path, run_cli: RunCli, round_: int) -> None:
    kills = Kills(tmp_path / "killed", run_cli)
    process = Process(kills.project, "run", kills.flow.file)
    step = "abc"[round_]
    until(lambda: kills.flow.count(step), f"step {step}")
    process.kill()
    assert kills.flow.count(step) == 1
    kills.recover()


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *[("link", number) for number in (1, 3, 4)],
        *[("rename", number) for number in (4, 7)],
        *[("fsync", number) for number in (12, 19, 30)],
    ],
)
def test_killed_within_any_system_call_it_is_resumed(
    tmp_path: Path, run_cli: RunCli, call: str, number: int
) -> None:
    kills = Kills(tmp_path / "killed", run_cli)
    strace = [
        *("strace", "-qq", "-o", os.devnull),
        *("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"),
    ]
    done = subprocess.run(
        [*strace, sys.executable, "-m", "nexa_hpc", "run", kills.flow.file],
        cwd=kills.project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    kills.recover()


@pytest.fixture(autouse=True)
def _needs_strace(request: pytest.FixtureRequest) -> None:
    if "call" not in request.fixturenames:
        return
    if (
        shutil.which("strace") is None
        or subprocess.run(
            ["strace", "-qq", "-o", os.devnull, "true"], capture_output=True
        ).returncode
    ):
        pytest.skip("needs strace, and the right to trace")
