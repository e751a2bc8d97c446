"""What a step asks of a real Slurm: checked at planning, over defaults, throttled as a total."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from slurm_fixtures import BentSlurm
from slurm_flows import SlurmFlow

pytestmark = pytest.mark.slurm


def script(flow: SlurmFlow, *args: str, env: dict[str, str] | None = None) -> list[str]:
    """Return the sbatch lines of a dry run."""
    done = flow.cli("run", flow.file, "--scheduler", "slurm", "--dry-run", *args, env=env)
    return [line.split(" ", 1)[1] for line in done.stdout.splitlines() if "#SBATCH" in line]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpus_per_tsk": 2}, "did you mean 'cpus_per_task'?"),
        ({"timeout_min": "10"}, "timeout_min"),
        ({"partition": "shrt"}, "no partition 'shrt' on mini (it has: main, high, short)"),
        ({"partition": "short", "timeout_min": 3}, "more than the 2 min of the partition 'short'"),
        ({"mem_gb": 1, "mem_per_cpu_gb": 1}, "exclude each other"),
        ({"slurm": {"extra": {"time": "1"}}}, "say `timeout_min` in `resources`"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_way_out(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm, asked: dict[str, Any], words: str
) -> None:
    slurm_flow.write(slurm_flow.step("a", resources=asked))
    assert words in slurm_flow.submit(expect=2)
    assert bent_slurm.calls("sbatch") == []
    assert not (slurm_flow.project / ".nexa_state").exists()


def test_defaults_lie_over_each_other(slurm_flow: SlurmFlow) -> None:
    flow = slurm_flow
    flow.configure(
        "defaults: {partition: high, mem_gb: 2, account: site, cpus_per_task: 3}",
        policy="defaults: {mem_per_cpu_gb: 1, timeout_min: 7}\n",
    )
    flow.write(flow.step("a", resources={"cpus_per_task": 2}))
    environment = {"SBATCH_ACCOUNT": "mine", "SBATCH_QOS": "quick", "SBATCH_PARTITION": "main"}
    lines = script(flow, env=environment)
    # The site's file is over the environment, the project's over the site's, the step over all.
    assert "--partition=high" in lines and "--account=site" in lines and "--qos=quick" in lines
    assert "--mem-per-cpu=1024M" in lines and not any(x.startswith("--mem=") for x in lines)
    assert "--cpus-per-task=2" in lines and "--time=7" in lines


def test_the_environment_counts_where_no_file_says_otherwise(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(slurm_flow.step("a"))
    lines = script(slurm_flow, env={"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "high"})
    assert "--account=mine" in lines and "--partition=high" in lines


def spans(flow: SlurmFlow) -> list[tuple[float, float]]:
    """Return when each of the steps of `timed` ran."""
    folder = flow.project.parent / "times"
    found = [tuple(map(float, file.read_text().split())) for file in sorted(folder.iterdir())]
    return [(begin, end) for begin, end in found]


def timed(flow: SlurmFlow, count: int, seconds: float = 1, **resources: Any) -> list[Any]:
    """Return independent steps that note when they run."""
    folder = flow.project.parent / "times"
    folder.mkdir(exist_ok=True)
    return [
        flow.step(
            f"s{n:02}",
            f"a=$(date +%s.%N); sleep {seconds}; echo $a $(date +%s.%N) > {folder}/{n:02}",
            after=[],
            resources={"cpus_per_task": 1, **resources},
        )
        for n in range(count)
    ]


def most_at_once(found: list[tuple[float, float]]) -> int:
    """Return how many ran at a time, at most."""
    return max(sum(begin <= at < end for begin, end in found) for at, _ in found)


@pytest.mark.slow
def test_a_throttle_is_a_total_shared_among_arrays(slurm_flow: SlurmFlow) -> None:
    slurm_flow.configure("max_array_size: 4")
    slurm_flow.write(*timed(slurm_flow, 12, array_parallelism=3))
    assert slurm_flow.submit().count("submitted job") == 3
    assert set(slurm_flow.settle().values()) == {"COMPLETED"}
    found = spans(slurm_flow)
    assert len(found) == 12 and 2 <= most_at_once(found) <= 3
    assert len(slurm_flow.executed()) == 12


@pytest.mark.slow
def test_max_running_is_a_total_over_unlike_arrays_and_what_is_put_off(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    name = f"flow{os.urandom(3).hex()}"
    flow = slurm_flow.named(name)
    bent_slurm.bend(submit_limit=6, limit_counts=name)
    steps = timed(flow, 9)
    for n, step in enumerate(steps):
        step["resources"] = {"cpus_per_task": 1 + n % 2}
    flow.write(*steps)
    flow.submit("--max-running", "2")
    flow.until(lambda now: set(now.values()) == {"COMPLETED"})
    found = spans(flow)
    assert len(found) == 9 and most_at_once(found) <= 2
    assert len(flow.executed()) == 9


@pytest.mark.slow
def test_points_per_element_packs_short_work(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(*timed(slurm_flow, 10, 0.1))
    told = slurm_flow.submit("--points-per-element", "4")
    assert "of 3 elements" in told
    assert set(slurm_flow.settle().values()) == {"COMPLETED"}
    assert sorted(slurm_flow.executed()) == [f"s{n:02}" for n in range(10)]
    assert len(set(slurm_flow.jobs().values())) == 3


def test_a_heavy_local_step_behind_a_slurm_one_is_refused_at_planning(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow = slurm_flow
    flow.write(flow.step("a", scheduler="slurm"), flow.step("b", scheduler="local"))
    done = flow.cli("run", flow.file, expect=2)
    assert "'b' is local and comes after 'a'" in done.stderr
    assert "scheduler: slurm" in done.stderr and "light: true" in done.stderr
    assert bent_slurm.calls("sbatch") == []


def test_local_steps_before_any_slurm_step_run_at_once(slurm_flow: SlurmFlow) -> None:
    flow = slurm_flow
    flow.write(flow.step("a", scheduler="local"), flow.step("b", scheduler="slurm"))
    began = time.monotonic()
    flow.cli("run", flow.file)
    assert flow.count("a") == 1 and time.monotonic() - began < 30
    assert flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert flow.executed() == ["a", "b"]


def test_a_plan_shows_what_is_submitted_at_once_and_how_much_comes_later(
    slurm_flow: SlurmFlow,
) -> None:
    flow = slurm_flow
    flow.write(
        flow.step("a", scheduler="slurm"),
        flow.step("l", scheduler="local", light=True),
        flow.step("b", scheduler="slurm"),
    )
    told = flow.cli("run", flow.file, "--dry-run").stdout
    assert told.count("#SBATCH --job-name") == 1 and "--job-name=a." in told
    assert "1 step is submitted later" in told
    told = flow.cli("plan", flow.file, "--canary", "1").stdout
    assert "sbatch calls: 1" in told
