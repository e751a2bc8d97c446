"""How often a real Slurm is asked: counted by wrappers that every call goes through."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from slurm_fixtures import BentSlurm
from slurm_flows import POLICY, SlurmFlow

pytestmark = pytest.mark.slurm

ASKING = ("squeue", "sacct", "scontrol", "sinfo", "sacctmgr", "scancel")
ALONE = POLICY.replace("{not_before", "{enabled: false, not_before")


def asked(bent: BentSlurm) -> Counter[str]:
    """Return how often each command was called."""
    return Counter(call["command"] for call in bent.calls())


def many(flow: SlurmFlow, count: int, command: str = "true") -> None:
    """Write a pipeline of steps that wait for nothing."""
    flow.write(*(flow.step(f"s{n}", command, after=[]) for n in range(count)))


@pytest.mark.slow
def test_status_of_a_hundred_elements_twice_asks_once(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow = slurm_flow
    flow.configure("min_poll_interval_s: 60", policy=ALONE)
    many(flow, 100, "sleep 5")
    flow.submit()
    before = asked(bent_slurm)
    assert before["sbatch"] == 1
    flow.whole_status()
    told = flow.whole_status()
    assert Counter(entry["status"] for entry in told["steps"].values()).total() == 100
    after = asked(bent_slurm) - before
    assert after["squeue"] + before["squeue"] <= 1 and after["sacct"] == 0
    assert set(after) <= {"squeue"}
    flow.cli("cancel", "flow-1")


@pytest.mark.slow
def test_elements_ask_nothing_when_all_goes_well(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow = slurm_flow
    flow.configure(policy=ALONE)
    many(flow, 20)
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    flow.cluster.wait(flow.jobs()["s0"].partition("_")[0])
    assert len(flow.executed()) == 20
    inside = Counter(call["command"] for call in bent_slurm.calls() if call["inside"])
    # The batch script of each element starts it by srun, through the same wrappers.
    assert inside["srun"] == 20
    assert not set(inside) & {*ASKING, "sbatch"}, inside
    assert asked(bent_slurm)["sacct"] == 0 and asked(bent_slurm)["sbatch"] == 1


@pytest.mark.slow
def test_following_polls_no_more_than_configured(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow = slurm_flow
    flow.configure("min_poll_interval_s: 4\npoll_interval_s: 4", policy=ALONE)
    flow.write(flow.step("a", "sleep 9"))
    flow.submit("--wait")
    times = [call["at"] for call in bent_slurm.calls("squeue")]
    assert times and all(later - earlier > 3.9 for earlier, later in itertools.pairwise(times))
    assert len(times) <= 5
    assert asked(bent_slurm)["sacct"] == 0
