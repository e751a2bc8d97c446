"""`--jobs N`: independent steps side by side, each in a worker process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RunCli, child_environment
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_hpc.core.frontier import Frontier

PIPELINE = """\
pipeline:
  name: side
  steps:
    - {id: a, uses: runners.command, after: [], params: {command: A}}
    - {id: b, uses: runners.command, after: [], params: {command: B}}
    - {id: below, uses: runners.command, after: [a], params: {command: 'echo below'}}
"""


def write(project: Path, a: str, b: str) -> None:
    text = PIPELINE.replace("command: A", f"command: {json.dumps(a)}")
    (project / "p.yaml").write_text(text.replace("command: B", f"command: {json.dumps(b)}"))


def states(run_cli: RunCli) -> dict[str, str]:
    steps = json.loads(run_cli("status", "--json").stdout)["steps"]
    return {step: entry["status"] for step, entry in steps.items()}


def test_independent_steps_run_at_the_same_time(project: Path, run_cli: RunCli) -> None:
    # Each waits for the other: one after the other, neither would end.
    wait = "touch {me}; until [ -e {other} ]; do sleep 0.05; done"
    write(project, wait.format(me="a", other="b"), wait.format(me="b", other="a"))
    done = run_cli("run", "p.yaml", "--jobs", "2", timeout_s=240)
    assert states(run_cli) == dict.fromkeys(("a", "b", "below"), "COMPLETED")
    assert "below | below" in done.stdout


def test_no_more_than_the_jobs_asked_for_run_at_once(project: Path, run_cli: RunCli) -> None:
    steps = "\n".join(
        f"    - {{id: s{n}, uses: runners.command, after: [], params: {{command: "
        f"'touch on.{n}; ls on.* | wc -l >> seen; sleep 0.2; rm on.{n}'}}}}"
        for n in range(6)
    )
    (project / "p.yaml").write_text(f"pipeline:\n  name: many\n  steps:\n{steps}\n")
    run_cli("run", "p.yaml", "-j", "2")
    seen = [int(line) for line in (project / "seen").read_text().split()]
    assert len(seen) == 6
    assert max(seen) == 2


def test_a_crash_of_a_worker_costs_one_step(project: Path, run_cli: RunCli) -> None:
    write(project, "kill -KILL $PPID; sleep 5", "echo fine")
    done = run_cli("run", "p.yaml", "--jobs", "2", expect=1)
    assert states(run_cli) == {"a": "FAILED", "b": "COMPLETED", "below": "BLOCKED"}
    assert "killed by SIGKILL" in done.stdout
    write(project, "echo mended", "echo fine")
    run_cli("run", "p.yaml", "--jobs", "2")
    assert states(run_cli) == {"a": "COMPLETED", "b": "SKIPPED", "below": "COMPLETED"}


def test_each_steps_output_goes_to_its_own_log(project: Path, run_cli: RunCli) -> None:
    write(project, "echo of a; echo of a >&2", "printf 'of b, no newline'")
    done = run_cli("run", "p.yaml", "--jobs", "2")
    assert run_cli("logs", "a").stdout == "of a\nof a\n"
    assert run_cli("logs", "b").stdout == "of b, no newline"
    assert "b | of b, no newline" in done.stdout.splitlines()


def test_progress_of_a_worker_arrives(project: Path, run_cli: RunCli) -> None:
    (project / "steps.py").write_text(
        "def work(progress, out_dir):\n"
        "    progress(3, 4, unit='rows', metrics={'loss': 0.5})\n"
        "    (out_dir / 'x').write_text('x')\n"
    )
    (project / "p.yaml").write_text("pipeline: {name: own, steps: [{id: w, uses: 'steps:work'}]}\n")
    lines = run_cli("run", "p.yaml", "--jobs", "2", "--json").stdout.splitlines()
    (told,) = [e for e in map(json.loads, lines) if e["event"] == "progress"]
    assert (told["done"], told["total"], told["unit"]) == (3, 4, "rows")
    assert told["metrics"] == {"loss": 0.5}


def start(project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nexa_hpc", "run", "p.yaml", "--jobs", "2"],
        cwd=project,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(paths: list[Path]) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_driver(project: Path, run_cli: RunCli, number: int) -> None:
    write(project, "echo $$ > pid.a; sleep 60", "echo $$ > pid.b; sleep 60")
    driver = start(project)
    files = [project / "pid.a", project / "pid.b"]
    wait_for(files)
    time.sleep(0.1)
    pids = [int(file.read_text()) for file in files]
    os.kill(driver.pid, number)
    assert driver.wait(timeout=120) in (130, -signal.SIGKILL)
    assert driver.stdout is not None
    driver.stdout.close()
    deadline = time.monotonic() + 90
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert states(run_cli) == {"a": "CANCELLED", "b": "CANCELLED", "below": "BLOCKED"}
    write(project, "true", "true")
    run_cli("run", "p.yaml")


class Node:
    def __init__(self, *parents: str) -> None:
        self.parents = parents


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_frontier_opens_a_step_once_all_above_it_have_settled(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    graph = {
        f"s{n}": Node(
            *data.draw(st.lists(st.sampled_from([f"s{m}" for m in range(n)]))) if n else ()
        )
        for n in range(count)
    }
    frontier = Frontier(graph)  # type: ignore[arg-type]
    settled: list[str] = []
    while not frontier.is_empty:
        before = len(settled)
        for step in frontier.open():
            assert step not in settled
            assert set(graph[step].parents) <= set(settled)
            if len(settled) == before or data.draw(st.booleans()):
                frontier.settle(step)
                settled.append(step)
        _reopen(data, frontier, settled)
    assert sorted(settled) == sorted(graph)


def _reopen(data: st.DataObject, frontier: Frontier, settled: list[str]) -> None:
    """Now and then have a step that had settled come again; what is below stays as it is."""
    if settled and data.draw(st.integers(0, 3)) == 3:
        again = data.draw(st.sampled_from(settled))
        settled.remove(again)
        frontier.reopen(again)
