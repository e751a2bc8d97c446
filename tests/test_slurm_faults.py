"""What goes wrong in the cluster, and what becomes of a run: nodes, daemons, what is forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_attempts import (
    Counting,
    assert_one_result,
    attempts,
    ends,
    slurm_state,
    unpause,
    wait_for_run,
)
from slurm_fixtures import BentSlurm, SlurmCluster, wait_until
from slurm_flows import SlurmFlow

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ALONE = {"exclusive": True}
HELD = {"slurm": {"extra": {"hold": True}}}


class Node:
    """The node that a job of ours has for itself: what is done to it is done to nobody else."""

    def __init__(self, cluster: SlurmCluster, job: str) -> None:
        self.cluster = cluster
        self.name = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()

    def down(self) -> None:
        """Have slurmctld take it for dead."""
        asked = (f"NodeName={self.name}", "State=DOWN", "Reason=a test")
        self.cluster.ask("scontrol", "update", *asked)

    def up(self) -> None:
        """Put it back."""
        asked = (f"NodeName={self.name}", "State=RESUME")
        subprocess.run(["scontrol", "update", *asked], capture_output=True)
        wait_until(lambda: self._state() in ("idle", "mixed", "allocated"), 60, self.name)

    def _state(self) -> str:
        return self.cluster.ask("sinfo", "-h", "-n", self.name, "-p", "main", "-o", "%T").strip()


def kill_job_processes(job: str) -> None:
    """Kill -9 all of a job on this machine, its slurmstepd included."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_of_job = file.read_text().startswith(f"slurmstepd: [{job}.")
            environment = (file.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_of_job or f"SLURM_JOB_ID={job}".encode() in environment:
            os.kill(int(file.parent.name), signal.SIGKILL)


def begin_alone(flow: SlurmFlow, counting: Counting) -> tuple[str, Node]:
    """Have a node to itself count; return job and node when a checkpoint is there."""
    flow.write(counting.step(resources=ALONE))
    flow.submit()
    job = wait_for_run(flow, "count")
    counting.wait_for_checkpoint()
    return job, Node(flow.cluster, job)


def hold_back(flow: SlurmFlow, id_: str, **fields: object) -> dict:
    """Return a step whose job waits until it is released."""
    return flow.step(id_, resources=HELD, **fields)


def test_a_step_on_a_node_that_is_taken_for_dead_goes_on_elsewhere_from_its_checkpoint(
    slurm_flow: SlurmFlow,
) -> None:
    # Nobody on the node ends what runs there: the new start does, as this is one machine.
    counting = Counting(slurm_flow, 30, starts=2)
    job, node = begin_alone(slurm_flow, counting)
    try:
        with slurm_flow.cluster.without("node", node.name[1:]):
            node.down()
            unpause(slurm_flow, job)
            assert slurm_flow.settle(180) == {"count": "COMPLETED"}
    finally:
        node.up()
    counting.assert_went_on(2)
    hosts = [attempt.start["host"] for attempt in attempts(slurm_flow, "count") if attempt.start]
    assert hosts[0] == node.name != hosts[1]


def test_what_a_failed_node_took_along_is_tried_again_away_from_it(slurm_flow: SlurmFlow) -> None:
    slurm_flow.configure(cluster="requeue: false")
    counting = Counting(slurm_flow, 30)
    job, node = begin_alone(slurm_flow, counting)
    try:
        with slurm_flow.cluster.without("node", node.name[1:]):
            kill_job_processes(job)
            node.down()
            wait_until(lambda: slurm_state(slurm_flow, job) == "NODE_FAIL", 30, "its end")
    finally:
        node.up()
    assert slurm_flow.settle() == {"count": "COMPLETED"}
    counting.assert_went_on(2)
    assert ends(slurm_flow, "count") == [("FAILED", "node_fail"), ("COMPLETED", None)]
    second = attempts(slurm_flow, "count")[1]
    assert second.start is not None and second.start["host"] != node.name
    scripts = slurm_flow.project.glob(".nexa_state/flow/runs/flow-1/slurm/*/*_submission.sh")
    assert any(f"#SBATCH --exclude={node.name}" in file.read_text() for file in scripts)


def test_a_word_of_slurm_that_nobody_knows_is_no_end(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    strange = {r"\|(RUNNING|COMPLETED|FAILED)\|": "|ENCHANTED|"}
    bent_slurm.bend(replace={"squeue": strange, "sacct": strange})
    slurm_flow.write(slurm_flow.step("a", "sleep 5; date > $OUT/x", out="out/a"))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "a")
    entry = slurm_flow.status()["a"]
    assert (entry["status"], entry["message"]) == ("RUNNING", "Slurm says ENCHANTED")
    slurm_flow.cli("advance", "flow-1")
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert_one_result(slurm_flow, "a")
    assert slurm_flow.status()["a"]["job"] == job


def test_while_slurmctld_is_away_nothing_is_concluded_and_all_goes_on(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    slurm_flow.write(
        slurm_flow.step("short", "sleep 5; date > $OUT/x", out="out/short"),
        slurm_flow.step("long", "sleep 25; date > $OUT/x", after=[], out="out/long"),
        hold_back(slurm_flow, "waits", after=[]),
    )
    slurm_flow.submit()
    wait_for_run(slurm_flow, "long")
    wait_for_run(slurm_flow, "short")
    bent_slurm.bend(controller_away=True)
    # An answer of before is shown as such for as long as the site has it.
    wait_until(lambda: "not answer" in slurm_flow.status()["waits"]["message"], 30, "silence")
    began = time.monotonic()
    told = slurm_flow.status()
    assert time.monotonic() - began < 15
    assert told["waits"]["status"] == "SUBMITTED"
    assert told["waits"]["message"].startswith("Slurm does not answer; last heard: ")
    assert told["long"]["status"] == "RUNNING"
    slurm_flow.cli("advance", "flow-1", expect=None)
    slurm_flow.until(lambda now: now["short"] == "COMPLETED")
    bent_slurm.bend()
    slurm_flow.cluster.ask("scontrol", "release", slurm_flow.jobs()["waits"])
    assert set(slurm_flow.settle().values()) == {"COMPLETED"}
    assert sorted(slurm_flow.executed()) == ["long", "short", "waits"]


def test_elements_end_while_slurmctld_is_down_and_what_follows_runs(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(
        slurm_flow.step("a", "sleep 4; date > $OUT/x", out="out/a"),
        slurm_flow.step("b", "date > $OUT/x", out="out/b", resources={"cpus_per_task": 2}),
    )
    slurm_flow.submit()
    wait_for_run(slurm_flow, "a")
    with slurm_flow.cluster.without("ctld"):
        made = slurm_flow.project / "artifacts/.store"
        wait_until(lambda: list(made.glob("*/*/COMPLETE")), 30, "a result")
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert slurm_flow.executed() == ["a", "b"]


def test_a_run_begun_while_slurmctld_is_away_is_recorded_and_goes_on_later(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    slurm_flow.write(
        slurm_flow.step("a"),
        *(slurm_flow.step(f"s{n}", resources={"cpus_per_task": n + 1}) for n in range(4)),
    )
    bent_slurm.bend(controller_away=True)
    told = slurm_flow.submit(expect=None)
    assert "Unable to contact slurm controller" in told
    assert set(slurm_flow.now("flow-1").values()) == {"PENDING"}
    # Each call may hang for ten seconds: not every job of the run is tried.
    assert len(bent_slurm.calls("sbatch")) <= 8
    bent_slurm.bend()
    slurm_flow.cli("advance", "flow-1")
    assert set(slurm_flow.settle().values()) == {"COMPLETED"}
    assert len(slurm_flow.executed()) == 5


@pytest.mark.parametrize("bend", ["database_away", "no_accounting"])
def test_all_goes_on_without_accounting(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm, bend: str
) -> None:
    if bend == "no_accounting":
        slurm_flow.configure(cluster="accounting: false")
    bent_slurm.bend(**{bend: True})
    flag = slurm_flow.project / "mended"
    slurm_flow.write(
        slurm_flow.step("a", f"test -e {flag}", retry={"exception": 1}),
        slurm_flow.step("b", "exit 1", after=[]),
        slurm_flow.step("c", "date > $OUT/x", after=["a"], out="out/c"),
    )
    slurm_flow.submit()
    slurm_flow.until(lambda now: now["b"] == "FAILED")
    flag.touch()
    slurm_flow.cli("resume", "flow-1")
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "FAILED", "c": "COMPLETED"}
    assert_one_result(slurm_flow, "c")


def test_a_job_that_slurm_has_forgotten_is_not_lost_while_accounting_lags(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    # squeue forgets a job of this cluster after half a minute; sacct is to know, and does not yet.
    slurm_flow.configure(policy="advance_job: {enabled: false}\n")
    slurm_flow.write(slurm_flow.step("a", "sleep 60"))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "a")
    bent_slurm.bend(replace={"squeue": {rf"^{job}\|.*\n": ""}, "sacct": {rf"^{job}\|.*\n": ""}})
    slurm_flow.cluster.ask("scancel", job)
    ended = time.monotonic() + 34
    slurm_flow.until(lambda now: now["a"] != "RUNNING" or time.monotonic() > ended, 60)
    slurm_flow.cli("advance", "flow-1")
    entry = slurm_flow.status()["a"]
    assert (entry["status"], "says nothing of its job" in entry["message"]) == ("RUNNING", True)
    bent_slurm.bend()
    slurm_flow.cli("advance", "flow-1")
    assert slurm_flow.now() == {"a": "CANCELLED"}
    assert slurm_flow.count("a") == 1


def test_a_child_runs_after_a_parent_that_slurm_has_forgotten(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(
        slurm_flow.step("a", "echo made > $OUT/x", out="out/a"),
        hold_back(slurm_flow, "b", **{"in": {"x": "out/a"}}),
    )
    slurm_flow.submit()
    slurm_flow.until(lambda now: now["a"] == "COMPLETED")
    jobs = slurm_flow.jobs()
    wait_until(lambda: is_forgotten(jobs["a"]), 90, "slurmctld to forget the parent")
    slurm_flow.cluster.ask("scontrol", "release", jobs["b"])
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    assert slurm_flow.executed() == ["a", "b"]


def test_a_child_of_a_failed_parent_that_slurm_has_forgotten_gives_back(
    slurm_flow: SlurmFlow,
) -> None:
    slurm_flow.configure(policy="advance_job: {enabled: false}\ndefaults: {timeout_min: 10}\n")
    slurm_flow.write(slurm_flow.step("a", "exit 3"), hold_back(slurm_flow, "b"))
    slurm_flow.submit()
    jobs = slurm_flow.jobs()
    # What Slurm would do by itself, where a parent is gone: no dependency is left.
    slurm_flow.cluster.ask("scontrol", "update", f"JobId={jobs['b']}", "Dependency=")
    slurm_flow.until(lambda now: now["a"] == "FAILED")
    wait_until(lambda: is_forgotten(jobs["a"]), 90, "slurmctld to forget the parent")
    slurm_flow.cluster.ask("scontrol", "release", jobs["b"])
    slurm_flow.cluster.wait(jobs["b"])
    code = slurm_flow.cluster.ask("scontrol", "show", "job", jobs["b"])
    assert "ExitCode=75:0" in code
    assert slurm_flow.now() == {"a": "FAILED", "b": "BLOCKED"}
    assert slurm_flow.executed() == ["a"]
    assert ends(slurm_flow, "b") == [("PENDING", None)]


def test_of_forty_points_with_a_throttle_exactly_the_child_of_the_failed_one_is_blocked(
    slurm_flow: SlurmFlow,
) -> None:
    steps = []
    for n in range(40):
        command = "false" if n == 30 else "true"
        steps.append(slurm_flow.step(f"p{n}", command, after=[]))
        throttled = {"cpus_per_task": 2, "array_parallelism": 2}
        steps.append(slurm_flow.step(f"c{n}", after=[f"p{n}"], resources=throttled))
    slurm_flow.write(*steps)
    slurm_flow.submit()
    now = slurm_flow.settle(240)
    assert now.pop("p30") == "FAILED" and now.pop("c30") == "BLOCKED"
    assert set(now.values()) == {"COMPLETED"}
    executed = slurm_flow.executed()
    assert len(executed) == len(set(executed)) == 79


def test_an_element_that_comes_back_after_another_attempt_was_claimed_does_nothing(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    # Without accounting, absence from the queue for half a minute means that a job is lost.
    slurm_flow.configure(cluster="accounting: false")
    slurm_flow.write(hold_back(slurm_flow, "a", out="out/a"))
    slurm_flow.submit()
    first = slurm_flow.jobs()["a"]
    bent_slurm.bend(replace={"squeue": {rf"^{first}\|.*\n": ""}})

    def has_successor() -> bool:
        slurm_flow.cli("advance", "flow-1")
        return len(attempts(slurm_flow, "a")) == 2

    wait_until(has_successor, 120, "the job to be taken for lost")
    assert ends(slurm_flow, "a") == [("FAILED", "lost")]
    slurm_flow.cluster.ask("scontrol", "release", first)
    slurm_flow.cluster.wait(first)
    assert slurm_flow.executed() == []
    assert attempts(slurm_flow, "a")[1].start is None
    slurm_flow.cluster.ask("scontrol", "release", slurm_flow.jobs()["a"])
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert slurm_flow.executed() == ["a"]
    assert ends(slurm_flow, "a") == [("FAILED", "lost"), ("COMPLETED", None)]


def is_forgotten(job: str) -> bool:
    """Return whether slurmctld knows a job no more."""
    done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return "Invalid job id" in done.stderr
