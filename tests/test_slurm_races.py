"""Several of us at once on a real Slurm: nothing is done twice, nothing is forgotten."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flows import Process
from slurm_fixtures import BentSlurm, wait_until
from slurm_flows import SlurmFlow

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def flow(slurm_flow: SlurmFlow) -> SlurmFlow:
    """A flow under a name that no other test's jobs have."""
    return slurm_flow.named(f"flow{os.urandom(3).hex()}")


def chains(flow: SlurmFlow, count: int, command: str = "true") -> list[dict[str, Any]]:
    """Return chains of two steps that are not fused."""
    steps = []
    for n in range(count):
        steps.append(flow.step(f"a{n}", f"{command}; echo {n} > $OUT/x", after=[], out=f"out/a{n}"))
        after = {"in": {"x": f"out/a{n}"}, "after": [], "resources": {"cpus_per_task": 2}}
        steps.append(flow.step(f"b{n}", f"test -e $IN_x/x && {command}", **after))
    return steps


def finish(flow: SlurmFlow, runs: int, count: int) -> None:
    """Assert that all of `runs` end well, and that each of the steps was executed once."""
    for number in range(1, runs + 1):
        run = f"{flow.name}-{number}"
        flow.until(lambda now: set(now.values()) <= {"COMPLETED", "SKIPPED"}, run=run)
    executed = Counter(flow.executed())
    assert set(executed.values()) == {1} and len(executed) == count, executed


def test_two_resumes_at_once(flow: SlurmFlow) -> None:
    flag = flow.project.parent / "mended"
    flow.write(*chains(flow, 3, f"test -e {flag}"))
    flow.submit()
    flow.settle()
    flow.executed()
    flag.touch()
    both = [Process(flow.project, "resume", f"{flow.name}-1") for _ in range(2)]
    for process in both:
        process.wait()
    finish(flow, 1, 6)


def test_the_same_pipeline_submitted_by_three_at_once(flow: SlurmFlow) -> None:
    flow.write(*chains(flow, 4, "sleep 1"))
    some = [Process(flow.project, "run", flow.file, "--scheduler", "slurm") for _ in range(3)]
    for process in some:
        process.wait()
    finish(flow, 3, 8)


def test_a_run_and_its_advance_jobs_and_another_call_at_once(flow: SlurmFlow) -> None:
    flow.write(*chains(flow, 3, "sleep 1"))
    following = Process(flow.project, "run", flow.file, "--scheduler", "slurm", "--wait")
    run = flow.project / f".nexa_state/{flow.name}/runs/{flow.name}-1/plan.json"
    wait_until(run.exists, 30, "the run")
    while following.running():
        flow.cli("advance", f"{flow.name}-1", expect=None)
    following.wait()
    finish(flow, 1, 6)


def held(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `steps`, of which those that wait for nothing are held in Slurm's queue."""
    hold = {"slurm": {"extra": {"hold": True}}}
    return [s | {"resources": hold} if s["id"].startswith("a") else s for s in steps]


def release(flow: SlurmFlow, *runs: str) -> None:
    """Release what is held of the runs, which may have jobs in common."""
    named = [item for run in runs for item in flow.jobs(run).items()]
    for job in sorted({job.partition("_")[0] for step, job in named if step[0] == "a"}):
        flow.cluster.ask("scontrol", "release", job)


def test_a_pipeline_that_grew_adopts_what_is_queued(flow: SlurmFlow) -> None:
    flow.write(*held(chains(flow, 2)))
    flow.submit()
    first, second = f"{flow.name}-1", f"{flow.name}-2"
    queued = flow.jobs(first)
    flow.write(*held(chains(flow, 4)), flow.step("sum", after=[f"b{n}" for n in range(4)]))
    flow.submit()
    jobs = flow.jobs(second)
    assert {step: jobs[step] for step in queued} == queued
    waits = flow.cluster.ask("squeue", "-h", "-j", jobs["sum"], "-o", "%E")
    assert all(queued[f"b{n}"] in waits for n in range(2)), waits
    release(flow, first, second)
    finish(flow, 2, 9)


def test_what_a_cancelled_run_had_queued_for_another_is_submitted_by_that_one(
    flow: SlurmFlow,
) -> None:
    flow.write(*held(chains(flow, 2)))
    flow.submit()
    first, second = f"{flow.name}-1", f"{flow.name}-2"
    flow.write(*held(chains(flow, 3)))
    flow.submit()
    before = flow.jobs(first)
    flow.cli("cancel", first)
    wait_until(lambda: not _live(flow, before), 30, "the jobs of the first run to end")

    def is_anew() -> bool:
        flow.cli("advance", second)
        jobs = flow.jobs(second)
        return all(jobs.get(step) not in (None, before[step]) for step in before)

    wait_until(is_anew, 60, "the second run to submit what it needs")
    release(flow, second)
    flow.until(lambda now: set(now.values()) == {"COMPLETED"}, run=second)
    executed = Counter(flow.executed())
    assert set(executed.values()) == {1} and len(executed) == 6


def _live(flow: SlurmFlow, jobs: dict[str, str]) -> str:
    ids = ",".join(sorted(set(jobs.values())))
    return flow.cluster.ask("squeue", "-h", "-j", ids, "-t", "pending,running,completing")


def test_run_again_after_kill_9_finds_what_the_killed_run_had_in_hand(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.write(*chains(flow, 2))
    bent_slurm.bend(slow_s={"sbatch": 2})
    killed = Process(flow.project, "run", flow.file, "--scheduler", "slurm")
    batches = flow.project / f".nexa_state/{flow.name}/runs/{flow.name}-1/batches"
    wait_until(lambda: _intents(batches), 30, "an intent")
    killed.kill()
    bent_slurm.bend()
    flow.submit()
    finish(flow, 2, 4)


def _intents(batches: Path) -> list[str]:
    return [file.name for file in batches.glob("*.json") if file.name.count(".") == 1]


def test_a_local_run_and_a_slurm_run_of_the_same_pipeline(flow: SlurmFlow) -> None:
    flow.write(*chains(flow, 2, "sleep 2"))
    local = Process(flow.project, "run", flow.file)
    wait_until(lambda: flow.count("a0"), 30, "the first step")
    flow.submit()
    local.wait()
    finish(flow, 2, 4)


def claim_elsewhere(flow: SlurmFlow) -> Path:
    """Make the queued attempts and batches of the first run those of another cluster."""
    state = flow.project / ".nexa_state"
    run = state / f"{flow.name}/runs/{flow.name}-1"
    for file in [*(run / "batches").glob("*.json"), *state.glob("records/*/*/*.claim.json")]:
        content = json.loads(file.read_text())
        if "cluster" in content:
            file.write_text(json.dumps({**content, "cluster": "faraway"}))
    request = json.loads((run / "run.json").read_text())
    request["slurm"]["cluster"]["name"] = "faraway"
    (run / "run.json").write_text(json.dumps(request))
    return state


def test_a_run_of_another_cluster_is_left_alone(flow: SlurmFlow, bent_slurm: BentSlurm) -> None:
    flow.write(*held(chains(flow, 1)))
    flow.submit()
    first, second = f"{flow.name}-1", f"{flow.name}-2"
    jobs = flow.jobs(first)
    records = claim_elsewhere(flow) / "records"
    before = sorted(str(path) for path in records.rglob("*"))
    assert "on cluster faraway; ask there" in flow.cli("status", first).stdout
    for command in ("resume", "advance"):
        done = flow.cli(command, first, expect=4)
        assert "login node of 'faraway'" in done.stderr
    done = flow.cli("cancel", first, expect=4)
    assert "faraway" in done.stderr
    calls = len(bent_slurm.calls("sbatch"))
    flow.submit()
    flow.cli("advance", second)
    assert "on cluster faraway; ask there" in flow.cli("status", second).stdout
    assert [
        c["name"] for c in bent_slurm.calls("sbatch")[calls:] if "advance" not in c["name"]
    ] == []
    assert sorted(str(path) for path in records.rglob("*")) == before
    assert flow.executed() == []
    for job in {*jobs.values()}:
        flow.cluster.ask("scancel", job)
    flow.cli("cancel", second)
