"""Handing over to a real Slurm when it hesitates, is full, or has narrow limits."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import pytest
from slurm_fixtures import BentSlurm
from slurm_flows import SlurmFlow

pytestmark = pytest.mark.slurm


@pytest.fixture
def flow(slurm_flow: SlurmFlow) -> SlurmFlow:
    """A flow under a name that no other test's jobs have."""
    return slurm_flow.named(f"flow{os.urandom(3).hex()}")


def alone(flow: SlurmFlow) -> dict[str, Any]:
    """Return the bend under which squeue tells of this flow's jobs alone: others share the user."""
    return {"replace": {"squeue": {rf"^(?!.*{flow.name}).*\n?": ""}}}


def accepted(bent: BentSlurm) -> list[str]:
    """Return the names of all jobs that Slurm has accepted."""
    return [call["name"] for call in bent.calls("sbatch") if call.get("job")]


def independent(flow: SlurmFlow, count: int, command: str = "true", **fields: Any) -> list[Any]:
    """Return steps that wait for nothing."""
    return [flow.step(f"s{n}", command, after=[], **fields) for n in range(count)]


def test_a_submission_whose_reply_is_lost_is_found_and_not_repeated(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.write(flow.step("a"), flow.step("b", resources={"cpus_per_task": 2}))
    bent_slurm.bend(lose_replies=2)
    assert flow.submit().count("submitted job") == 2
    assert flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert flow.executed() == ["a", "b"]
    names = accepted(bent_slurm)
    assert len(names) == len(set(names))
    assert [call["bent"] for call in bent_slurm.calls("sbatch")].count("lose_replies") == 2


def test_a_passing_fault_is_waited_out_with_jitter(flow: SlurmFlow, bent_slurm: BentSlurm) -> None:
    flow.write(flow.step("a"))
    bent_slurm.bend(refuse_submissions=2)
    flow.submit()
    assert flow.settle() == {"a": "COMPLETED"}
    assert flow.executed() == ["a"]
    times = [call["at"] for call in bent_slurm.calls("sbatch")[:3]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(2 <= pause < 7 for pause in pauses) and len(pauses) == 2
    assert abs(pauses[0] - pauses[1]) > 0.001


def test_a_fault_that_does_not_pass_gives_the_steps_back_and_is_told(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    bad = {"slurm": {"extra": {"licenses": "nosuch:1"}}}
    flow.write(flow.step("a", resources=bad), flow.step("b"))
    told = flow.submit(expect=4)
    assert "nvalid license" in told and f"nexa-hpc resume {flow.name}-1" in told
    assert flow.now() == {"a": "PENDING", "b": "PENDING"}
    assert accepted(bent_slurm) == []
    flow.write(flow.step("a"), flow.step("b"))
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert flow.executed() == ["a", "b"]


def test_of_two_jobs_that_one_submission_made_only_one_works(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    # The reply is lost, and the job is not listed yet when it is looked for.
    flow.write(*independent(flow, 3, "sleep 1"))
    bent_slurm.bend(lose_replies=1, replace={"squeue": {r"^.*\n?": ""}})
    flow.submit()
    bent_slurm.bend()
    assert set(flow.settle().values()) == {"COMPLETED"}
    twice = [name for name, count in Counter(accepted(bent_slurm)).items() if count > 1]
    assert len(twice) == 1
    for call in bent_slurm.calls("sbatch"):
        flow.cluster.wait(call["job"])
    assert sorted(flow.executed()) == ["s0", "s1", "s2"]


@pytest.mark.slow
def test_what_a_full_queue_refuses_waits_and_is_submitted_bit_by_bit(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    bent_slurm.bend(submit_limit=5, limit_counts=flow.name)
    flow.write(*independent(flow, 12, "sleep 1"))
    told = flow.submit()
    assert "steps wait for room in the queue" in told
    first = flow.now()
    assert 6 <= Counter(first.values())["PENDING"] <= 11
    # One slot was kept for the advance job, which goes on by itself.
    assert sum(".advance" in name or name.startswith("advance.") for name in accepted(bent_slurm))
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert sorted(flow.executed()) == sorted(first)
    refused = [c for c in bent_slurm.calls("sbatch") if c["bent"] == "submit_limit"]
    assert len(refused) < 12, "what is full is not asked again and again"


@pytest.mark.slow
def test_under_a_known_limit_nothing_is_refused_and_a_slot_is_kept(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.configure("max_submit: 5")
    bent_slurm.bend(submit_limit=5, limit_counts=flow.name, **alone(flow))
    flow.write(*independent(flow, 11, "sleep 1"))
    assert "7 steps wait for room in the queue" in flow.submit()
    assert Counter(flow.now().values())["PENDING"] == 7
    assert len(accepted(bent_slurm)) == 2, "an array of four, and the advance job"
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert sorted(flow.executed()) == sorted(flow.now())
    assert [c for c in bent_slurm.calls("sbatch") if c["rc"]] == []


@pytest.mark.slow
def test_chains_that_do_not_fit_into_the_queue_are_finished_all_the_same(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    bent_slurm.bend(submit_limit=6, limit_counts=flow.name)
    steps = []
    for n in range(4):
        steps.append(flow.step(f"a{n}", after=[]))
        steps.append(flow.step(f"b{n}", after=[f"a{n}"], resources={"cpus_per_task": 2}))
    flow.write(*steps)
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    executed = flow.executed()
    assert sorted(executed) == sorted(step["id"] for step in steps)
    assert all(executed.index(f"a{n}") < executed.index(f"b{n}") for n in range(4))


def test_more_elements_than_an_array_may_have_become_several_arrays(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.configure("max_array_size: 5")
    flow.write(*independent(flow, 12))
    assert flow.submit().count("submitted job") == 3
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert sorted(flow.executed()) == sorted(f"s{n}" for n in range(12))


@pytest.mark.slow
def test_more_elements_than_the_clusters_own_limit_are_accepted(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    held = {"slurm": {"extra": {"hold": True}}}
    flow.configure("max_array_size: 1001")
    flow.write(*independent(flow, 1500, resources=held))
    told = flow.submit("--dry-run")
    arrays = [line for line in told.splitlines() if line.startswith("#SBATCH --array=")]
    assert arrays == ["#SBATCH --array=0-749%750"] * 2
    assert bent_slurm.calls("sbatch") == []
    assert flow.submit().count("submitted job") == 2
    try:
        assert Counter(flow.now().values()) == {"SUBMITTED": 1500}
    finally:
        flow.cli("cancel", f"{flow.name}-1")
    assert set(flow.settle().values()) == {"CANCELLED"}
    assert flow.executed() == []
