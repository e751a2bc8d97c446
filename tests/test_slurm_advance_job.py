"""The advance job of a run on a real Slurm: armed once, wakes, goes on, and is not left behind."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from slurm_fixtures import BentSlurm, wait_until
from slurm_flows import POLICY, SlurmFlow

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def flow(slurm_flow: SlurmFlow) -> SlurmFlow:
    """A flow under a name that no other test's jobs have."""
    return slurm_flow.named(f"flow{os.urandom(3).hex()}")


def queued(flow: SlurmFlow, states: str = "pending,running") -> list[str]:
    """Return the ids of the run's advance jobs in the queue."""
    lines = flow.cluster.ask("squeue", "-h", "-t", states, "-o", "%i %j").splitlines()
    mine = (line.split() for line in lines if f"advance.{flow.name}-" in line)
    return [job for job, _ in mine]


def ended(flow: SlurmFlow) -> bool:
    """Return whether no advance job of the flow is left in the queue."""
    return not queued(flow, "pending,running,completing")


def test_it_runs_light_local_steps_links_and_is_gone_at_the_end(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.write(
        flow.step("a", "echo 1 > $OUT/x", out="out/a"),
        flow.step("note", "cat $IN_x/x > $OUT/y", out="out/n", light=True, scheduler="local")
        | {"in": {"x": "out/a"}},
        flow.step("b", "sleep 1", resources={"cpus_per_task": 2}, scheduler="slurm"),
    )
    document = flow.file.read_text().replace('"id": "a"', '"scheduler": "slurm", "id": "a"')
    flow.file.write_text(document)
    flow.cli("run", flow.file)
    assert len(queued(flow)) == 1
    assert flow.settle() == {"a": "COMPLETED", "note": "COMPLETED", "b": "COMPLETED"}
    assert flow.executed() == ["a", "note", "b"]
    assert (flow.project / "out/n/y").read_text() == "1\n"
    wait_until(lambda: ended(flow), 60, "the advance job to end")
    assert flow.states() == {"a": "COMPLETED", "note": "COMPLETED", "b": "COMPLETED"}


def test_it_is_armed_once_whoever_calls_and_ended_when_all_is_settled(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.configure(policy="advance_job: {not_before_min: 30}\n")
    flow.write(flow.step("a", "sleep 3"), flow.step("b", resources={"cpus_per_task": 2}))
    flow.submit()
    for _ in range(2):
        flow.cli("advance", f"{flow.name}-1")
    assert len(queued(flow)) == 1
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert len(queued(flow)) == 1, "it waits for its time"
    flow.cli("advance", f"{flow.name}-1")
    wait_until(lambda: ended(flow), 30, "the advance job to be cancelled")


def test_killed_or_rejected_the_next_call_repairs(flow: SlurmFlow, bent_slurm: BentSlurm) -> None:
    hold = {"slurm": {"extra": {"hold": True}}}
    flow.write(flow.step("a", resources=hold))
    flow.submit()
    (first,) = queued(flow)
    flow.cluster.ask("scancel", first)
    wait_until(lambda: ended(flow), 30, "the advance job to be cancelled")
    wait_until(lambda: flow.now() and _armed_anew(flow, first), 30, "another advance job")
    (second,) = queued(flow)
    flow.cluster.ask("scancel", second)
    bent_slurm.bend(replace={}, submit_limit=0, limit_counts=flow.name)
    wait_until(lambda: ended(flow), 30, "the advance job to be cancelled")
    wait_until(
        lambda: "was not submitted" in flow.cli("advance", f"{flow.name}-1").stderr, 30, "a note"
    )
    bent_slurm.bend()
    wait_until(lambda: _armed_anew(flow, second), 30, "another advance job")
    flow.cluster.ask("scontrol", "release", flow.jobs()["a"])
    assert flow.settle() == {"a": "COMPLETED"}
    assert flow.executed() == ["a"]


def _armed_anew(flow: SlurmFlow, before: str) -> bool:
    flow.cli("advance", f"{flow.name}-1")
    return bool(queued(flow)) and queued(flow) != [before]


def failing_once(flow: SlurmFlow) -> list[Any]:
    """Return a step that fails the first time, and one behind it."""
    flag = flow.project.parent / "failed-once"
    once = f"test -e {flag} || {{ touch {flag}; exit 1; }}"
    retry = {"retry": {"exception": 1}}
    return [flow.step("a", once, **retry), flow.step("b", resources={"cpus_per_task": 2})]


def test_it_retries_and_submits_what_follows(flow: SlurmFlow, bent_slurm: BentSlurm) -> None:
    flow.write(*failing_once(flow))
    flow.submit()
    flow.until(lambda now: set(now.values()) == {"COMPLETED"})
    assert flow.executed() == ["a", "a", "b"]
    wait_until(lambda: ended(flow), 60, "the advance job to end")


def test_where_nodes_cannot_submit_none_is_armed_and_advance_all_is_told(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.configure("sbatch_on_nodes: false")
    flow.write(*failing_once(flow))
    told = flow.submit()
    assert "cannot submit jobs" in told
    assert f"--project {flow.project} advance --all" in told
    assert queued(flow) == []

    def completed(now: dict[str, str]) -> bool:
        flow.cli("advance", "--all")  # as a line in scrontab does, again and again
        return set(now.values()) == {"COMPLETED"}

    flow.until(completed)
    assert flow.executed() == ["a", "a", "b"]
    assert queued(flow) == []


def test_where_the_node_turns_out_not_to_submit_the_next_call_goes_on(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    bent_slurm.bend(refuse_on_nodes=True)
    flow.write(*failing_once(flow))
    flow.submit()
    flow.until(lambda now: flow.count("a") == 1)
    wait_until(lambda: ended(flow), 60, "the advance job to end in vain")
    assert flow.count("a") == 1
    told = flow.cli("advance", "--all").stdout
    assert f"{flow.name}-1" in told
    assert flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert flow.executed() == ["a", "a", "b"]


def test_switched_off_none_is_armed_and_a_plain_call_does_its_work(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    flow.configure(policy=POLICY.replace("{not_before", "{enabled: false, not_before"))
    flow.write(*failing_once(flow))
    assert f"nexa-hpc advance {flow.name}-1" in flow.submit()
    flow.until(lambda now: now["a"] in ("FAILED", "PENDING"))
    assert queued(flow) == []
    flow.cli("advance", f"{flow.name}-1")
    assert flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert flow.executed() == ["a", "a", "b"]


def test_while_nothing_happens_it_waits_twice_as_long_each_time(
    flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    # There is no room for the step, so that nothing ends, and it wakes on time alone.
    bent_slurm.bend(submit_limit=0, limit_counts=rf"^a\.{flow.name}")
    flow.write(flow.step("a"))
    flow.submit()
    wait_until(lambda: len(pauses_min(flow)) >= 4, 90, "the fourth advance job")
    first, *rest = pauses_min(flow)[:4]
    assert (first == 0.02 and rest == [0.02, 0.04, 0.08]) or rest == [0.04, 0.08, 0.16]
    bent_slurm.bend()
    flow.cli("advance", f"{flow.name}-1")
    assert flow.settle() == {"a": "COMPLETED"}
    assert flow.executed() == ["a"]


def pauses_min(flow: SlurmFlow) -> list[float]:
    """Return for each advance job so far how long it was to wait at least."""
    folder = flow.project / f".nexa_state/{flow.name}/runs/{flow.name}-1/batches"
    numbered = {int(file.name.split(".")[1]): file for file in folder.glob("advance.*.json")}
    tokens = [json.loads(numbered[n].read_text())["token"] for n in sorted(numbered)]
    intents = [json.loads((folder / f"{token}.json").read_text()) for token in tokens]
    return [intent["request"]["after_min"] for intent in intents]
