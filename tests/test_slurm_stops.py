"""What stops a step in Slurm, and how it goes on: requeues, preemption, time limits, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_attempts import (
    Counting,
    assert_one_result,
    attempts,
    ends,
    preempt,
    settle_unpaused,
    unpause,
    wait_for_run,
)
from slurm_fixtures import BentSlurm, wait_until
from slurm_flows import SlurmFlow

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ALONE = {"exclusive": True}
SHORT = {"timeout_min": 1, "signal_delay_s": 20}


def scripts(flow: SlurmFlow) -> list[str]:
    """Return the sbatch scripts of the steps' jobs."""
    files = flow.project.glob(".nexa_state/flow/runs/flow-1/slurm/*/*_submission.sh")
    texts = [file.read_text() for file in sorted(files, key=_job_of)]
    return [text for text in texts if "--job-name=advance." not in text]


def _job_of(script: Path) -> int:
    return int(script.name.partition("_")[0])


def asked(flow: SlurmFlow, option: str) -> list[str]:
    """Return what the steps' jobs asked for with an option of sbatch, oldest job first."""
    lines = [line for text in scripts(flow) for line in text.splitlines()]
    start = f"#SBATCH --{option}="
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_a_job_requeued_by_somebody_goes_on_from_its_checkpoint(slurm_flow: SlurmFlow) -> None:
    counting = Counting(slurm_flow, 30)
    slurm_flow.write(counting.step(), slurm_flow.step("after"))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "count")
    counting.wait_for_checkpoint()
    slurm_flow.cluster.ask("scontrol", "requeue", job)
    unpause(slurm_flow, job)
    assert slurm_flow.settle() == {"count": "COMPLETED", "after": "COMPLETED"}
    counting.assert_went_on(2)
    assert ends(slurm_flow, "count") == [("PENDING", "node_fail"), ("COMPLETED", None)]
    assert slurm_flow.executed() == ["count", "count", "after"]


def test_a_requeue_costs_nothing_of_what_may_be_tried_again(slurm_flow: SlurmFlow) -> None:
    flag = slurm_flow.project / "mended"
    command = f"if [ ! -e {flag} ]; then sleep 60; fi"
    never = {"node_fail": 0, "exception": 0, "timeout": 0, "out_of_memory": 0}
    slurm_flow.write(slurm_flow.step("a", command, out="out/a", retry=never))
    slurm_flow.submit()
    for number in (1, 2):
        job = wait_for_run(slurm_flow, "a", number)
        slurm_flow.cluster.ask("scontrol", "requeue", job)
        if number == 2:
            flag.touch()
        unpause(slurm_flow, job)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert len(attempts(slurm_flow, "a")) == 3
    assert_one_result(slurm_flow, "a")


def test_a_preempted_command_goes_on_from_its_checkpoint(slurm_flow: SlurmFlow) -> None:
    counting = Counting(slurm_flow, 30)
    never = {"node_fail": 0, "exception": 0}
    slurm_flow.write(counting.step(resources=ALONE, retry=never))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "count")
    counting.wait_for_checkpoint()
    preempt(slurm_flow, job)
    assert slurm_flow.settle() == {"count": "COMPLETED"}
    counting.assert_went_on(2)
    assert ends(slurm_flow, "count") == [("PENDING", "node_fail"), ("COMPLETED", None)]
    assert slurm_flow.status()["count"]["job"] == job


def test_a_command_that_reaches_its_time_limit_twice_finishes(slurm_flow: SlurmFlow) -> None:
    # Of its limit of one minute Slurm tells it after 15 to 40 s.
    counting = Counting(slurm_flow, 420)
    slurm_flow.write(counting.step(resources=SHORT), slurm_flow.step("after"))
    slurm_flow.submit()
    done = settle_unpaused(slurm_flow, "count")
    assert done == {"count": "COMPLETED", "after": "COMPLETED"}
    made = ends(slurm_flow, "count")
    assert len(made) >= 3
    assert set(made[:-1]) == {("PENDING", "timeout")}
    counting.assert_went_on(len(made))


def test_where_requeues_are_forbidden_a_successor_job_goes_on(slurm_flow: SlurmFlow) -> None:
    slurm_flow.configure(cluster="requeue: false")
    counting = Counting(slurm_flow, 210)
    slurm_flow.write(counting.step(resources=SHORT), slurm_flow.step("after"))
    slurm_flow.submit()
    first = wait_for_run(slurm_flow, "count")
    assert slurm_flow.settle(150) == {"count": "COMPLETED", "after": "COMPLETED"}
    made = ends(slurm_flow, "count")
    assert len(made) >= 2 and set(made[:-1]) == {("PENDING", "timeout")}
    counting.assert_went_on(len(made))
    assert attempts(slurm_flow, "count")[1].job != first
    assert all("#SBATCH --no-requeue" in script for script in scripts(slurm_flow))
    assert slurm_flow.count("after") == 1


def test_all_attempts_together_take_no_longer_than_total_time_min(slurm_flow: SlurmFlow) -> None:
    counting = Counting(slurm_flow, 5000)
    retry = {"total_time_min": 1, "timeout": 5}
    slurm_flow.write(counting.step(resources=SHORT, retry=retry), slurm_flow.step("after"))
    slurm_flow.submit()
    done = settle_unpaused(slurm_flow, "count")
    assert done == {"count": "FAILED", "after": "BLOCKED"}
    made = ends(slurm_flow, "count")
    assert set(made[:-1]) == {("PENDING", "timeout")} and made[-1] == ("FAILED", "timeout")
    assert "1 min together" in slurm_flow.status()["count"]["message"]
    slurm_flow.cli("advance", "flow-1")
    assert len(attempts(slurm_flow, "count")) == len(made)


def test_a_step_that_saved_nothing_by_its_time_limit_has_failed(slurm_flow: SlurmFlow) -> None:
    params = {"checkpoint": {"glob": "n"}}
    step = slurm_flow.step("a", "sleep 300", params=params, resources=SHORT, retry={"timeout": 0})
    slurm_flow.write(step, slurm_flow.step("after"))
    slurm_flow.submit()
    assert slurm_flow.settle(120) == {"a": "FAILED", "after": "BLOCKED"}
    assert ends(slurm_flow, "a") == [("FAILED", "timeout")]
    assert slurm_flow.executed() == ["a"]


def test_a_step_ended_at_its_time_limit_is_tried_again_with_more_time(
    slurm_flow: SlurmFlow,
) -> None:
    flag = slurm_flow.project / "quicker"
    command = f"if [ ! -e {flag} ]; then touch {flag}; sleep 300; fi; echo x > $OUT/x"
    retry = {"timeout": {"times": 1, "time_factor": 2}}
    step = slurm_flow.step("a", command, out="out/a", resources={"timeout_min": 1}, retry=retry)
    slurm_flow.write(step)
    slurm_flow.submit()
    assert slurm_flow.settle(180) == {"a": "COMPLETED"}
    assert ends(slurm_flow, "a") == [("FAILED", "timeout"), ("COMPLETED", None)]
    assert_one_result(slurm_flow, "a")
    assert asked(slurm_flow, "time") == ["1", "2"]


def test_a_step_killed_for_memory_gets_half_as_much_again_until_it_may_no_more(
    slurm_flow: SlurmFlow,
) -> None:
    tries = slurm_flow.project / "tries"
    hungry = f"echo >> {tries}; if [ $(wc -l < {tries}) -lt 3 ]; then kill -9 $$; fi; date > $OUT/x"
    slurm_flow.write(
        slurm_flow.step("hungry", hungry, out="out/hungry", resources={"mem_gb": 1}),
        slurm_flow.step(
            "insatiable",
            "kill -9 $$",
            after=[],
            resources={"mem_gb": 2},
            retry={"out_of_memory": {"times": 1}},
        ),
        slurm_flow.step("below", after=["insatiable"]),
    )
    slurm_flow.submit()
    done = slurm_flow.settle()
    assert done == {"hungry": "COMPLETED", "insatiable": "FAILED", "below": "BLOCKED"}
    killed = ("FAILED", "out_of_memory")
    assert ends(slurm_flow, "hungry") == [killed, killed, ("COMPLETED", None)]
    assert ends(slurm_flow, "insatiable") == [killed, killed]
    assert_one_result(slurm_flow, "hungry")
    assert sorted(asked(slurm_flow, "mem")) == ["1024M", "1536M", "2048M", "2304M", "3072M"]
    assert slurm_flow.count("insatiable") == 2


def test_what_slurm_calls_out_of_memory_is_tried_again_with_more(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm
) -> None:
    bent_slurm.bend(out_of_memory=r"^a\.flow-1\.")
    flag = slurm_flow.project / "killed"
    element = "$(ps -o ppid= -p $PPID)"
    command = f"if [ ! -e {flag} ]; then touch {flag}; kill -9 {element}; sleep 60; fi"
    slurm_flow.write(slurm_flow.step("a", command, resources={"mem_gb": 1}))
    slurm_flow.submit()
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert ends(slurm_flow, "a") == [("FAILED", "out_of_memory"), ("COMPLETED", None)]
    assert asked(slurm_flow, "mem") == ["1024M", "1536M"]


def test_a_job_cancelled_while_it_waits_for_another_does_not_come_back(
    slurm_flow: SlurmFlow,
) -> None:
    slurm_flow.write(
        slurm_flow.step("first", "sleep 4"),
        slurm_flow.step("second", resources={"cpus_per_task": 2}),
        slurm_flow.step("third", resources={"cpus_per_task": 3}),
    )
    slurm_flow.submit()
    wait_for_run(slurm_flow, "first")
    slurm_flow.cluster.ask("scancel", slurm_flow.jobs()["second"])
    done = slurm_flow.settle()
    assert done == {"first": "COMPLETED", "second": "CANCELLED", "third": "BLOCKED"}
    slurm_flow.cli("advance", "flow-1")
    assert slurm_flow.now() == done
    assert slurm_flow.executed() == ["first"]


def test_what_a_command_started_does_not_die_of_the_signal_before_the_time_limit(
    slurm_flow: SlurmFlow,
) -> None:
    command = "sleep 3 && echo lives > $OUT/x"
    slurm_flow.write(slurm_flow.step("a", command, out="out/a"))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "a")
    slurm_flow.cluster.ask("scancel", "--signal=USR2", job)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert (assert_one_result(slurm_flow, "a") / "x").read_text() == "lives\n"


SLOW_TO_SAVE = """\
import os, pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
pathlib.Path(sys.argv[1]).touch()
if os.environ["RESUME"]:
    sys.exit(os.replace(pathlib.Path(os.environ["RESUME"], "n"), os.environ["OUT"] + "/n"))
while not asked:
    time.sleep(0.05)
deadline = time.monotonic() + 2.5
while time.monotonic() < deadline:
    time.sleep(0.05)
new = pathlib.Path(os.environ["WORK"], "new")
new.write_text("saved at leisure")
new.rename(new.with_name("n"))
"""


def test_a_command_that_is_asked_twice_to_stop_saves_in_peace(slurm_flow: SlurmFlow) -> None:
    program = slurm_flow.project / "slow.py"
    program.write_text(SLOW_TO_SAVE)
    ready = slurm_flow.project / "ready"
    command = f'"$PYTHON" {program.name} {ready}'
    params = {"checkpoint": {"glob": "n"}, "code": [program.name]}
    slurm_flow.write(slurm_flow.step("a", command, params=params, out="out/a"))
    slurm_flow.submit()
    job = wait_for_run(slurm_flow, "a")
    wait_until(ready.exists, 30, "the command to heed signals")
    slurm_flow.cluster.ask("scancel", "--signal=TERM", job)
    slurm_flow.cluster.ask("scontrol", "requeue", job)
    unpause(slurm_flow, job)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert (assert_one_result(slurm_flow, "a") / "n").read_text() == "saved at leisure"
    assert slurm_flow.count("a") == 2
