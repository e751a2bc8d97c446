"""Runs handed over to a real Slurm: what gets where, what is said of it, what becomes of it."""

from __future__ import annotations

import time

import pytest
from slurm_flows import POLICY, SlurmFlow

pytestmark = pytest.mark.slurm


def points(flow: SlurmFlow, count: int, *, fails: int | None = None) -> list[dict]:
    """Return `count` chains of three steps; the middle one of chain `fails` fails."""
    steps = []
    for n in range(count):
        bad = "false" if n == fails else "true"
        steps += [
            flow.step(f"prep{n}", "echo $RANDOM > $OUT/x", after=[], out=f"out/prep{n}"),
            flow.step(f"train{n}", bad, **{"in": {"x": f"out/prep{n}"}}, after=[]),
            flow.step(f"eval{n}", "true", after=[f"train{n}"]),
        ]
    return steps


def test_a_pipeline_is_handed_over_and_the_command_returns(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(
        slurm_flow.step("a", "echo made > $OUT/made", out="out/a"),
        slurm_flow.step("b", "cat $IN_x/made; cp $IN_x/made $OUT", **{"in": {"x": "out/a"}}),
        slurm_flow.step("c", "sleep 1", resources={"cpus_per_task": 2}),
    )
    told = slurm_flow.submit()
    assert "submitted job" in told and "run flow-1" in told
    assert set(slurm_flow.settle().values()) == {"COMPLETED"}
    assert sorted(slurm_flow.executed()) == ["a", "b", "c"]
    assert slurm_flow.jobs()["a"] == slurm_flow.jobs()["b"] != slurm_flow.jobs()["c"]
    assert slurm_flow.cli("logs", "b", "flow-1").stdout == "made\n"
    assert (slurm_flow.project / "out/a/made").read_text() == "made\n"
    slurm_flow.submit()
    assert set(slurm_flow.now().values()) == {"SKIPPED"}
    assert slurm_flow.executed() == []


def test_a_failed_element_blocks_only_what_is_below_it(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(*points(slurm_flow, 4, fails=2))
    slurm_flow.submit()
    now = slurm_flow.settle()
    assert now.pop("train2") == "FAILED" and now.pop("eval2") == "BLOCKED"
    assert set(now.values()) == {"COMPLETED"}
    executed = slurm_flow.executed()
    assert len(executed) == len(set(executed)) == 11


def test_unfused_chains_go_element_by_element_in_chunks(slurm_flow: SlurmFlow) -> None:
    steps = points(slurm_flow, 13, fails=5)
    for step in steps:
        if step["id"].startswith("train"):
            step["resources"] = {"cpus_per_task": 2}
    slurm_flow.write(*steps)
    told = slurm_flow.submit()
    assert told.count("submitted job") == 6, told
    now = slurm_flow.settle()
    assert now.pop("train5") == "FAILED" and now.pop("eval5") == "BLOCKED"
    assert set(now.values()) == {"COMPLETED"}
    executed = slurm_flow.executed()
    assert len(executed) == len(set(executed)) == 38


def test_a_failed_step_is_told_with_reason_log_and_next_command(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(slurm_flow.step("a", "echo the reason; exit 3"))
    slurm_flow.submit()
    slurm_flow.settle()
    shown = slurm_flow.cli("status", slurm_flow.file).stdout
    assert "exception: the command exited with 3" in shown
    assert "nexa-hpc logs a flow-1" in shown and "nexa-hpc resume flow-1" in shown
    log = slurm_flow.cli("logs", "a").stdout
    assert log == "the reason\nerror: the command exited with 3\n"


def test_resume_tries_again_what_failed_and_nothing_else(slurm_flow: SlurmFlow) -> None:
    flag = slurm_flow.project / "mended"
    slurm_flow.write(
        slurm_flow.step("a"),
        slurm_flow.step("b", f"test -e {flag}"),
        slurm_flow.step("c"),
    )
    slurm_flow.submit()
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "FAILED", "c": "BLOCKED"}
    slurm_flow.executed()
    flag.touch()
    slurm_flow.cli("resume", "flow-1")
    assert slurm_flow.settle() == dict.fromkeys("abc", "COMPLETED")
    assert sorted(slurm_flow.executed()) == ["b", "c"]


def test_wait_follows_to_the_end_and_exits_by_it(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(slurm_flow.step("a"), slurm_flow.step("b", "exit 1"))
    told = slurm_flow.submit("--wait", expect=1)
    assert "a: COMPLETED" in told and "step 'b' FAILED (exception)" in told


def test_the_dry_run_prints_the_very_scripts_and_writes_nothing(slurm_flow: SlurmFlow) -> None:
    asked = {"mem_gb": 1.5, "slurm": {"extra": {"nice": 5}}}
    slurm_flow.write(slurm_flow.step("a", resources=asked))
    told = slurm_flow.submit("--dry-run")
    assert "#SBATCH --mem=1536M" in told and "#SBATCH --nice=5" in told
    assert not (slurm_flow.project / ".nexa_state").exists()
    slurm_flow.submit()
    slurm_flow.settle()
    job = slurm_flow.jobs()["a"]
    folder = slurm_flow.project / ".nexa_state/flow/runs/flow-1/slurm"
    (script,) = folder.glob(f"*/{job}_submission.sh")
    lines = [line for line in script.read_text().splitlines() if "SBATCH" in line]
    same = [line for line in lines if "flow-1" not in line]
    assert same and all(line in told for line in same)


def test_an_element_cancelled_in_slurm_does_not_come_back(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(*(slurm_flow.step(f"s{n}", "sleep 30", after=[]) for n in range(3)))
    slurm_flow.submit()
    slurm_flow.until(lambda now: slurm_flow.count("s1") == 1)
    slurm_flow.cluster.ask("scancel", slurm_flow.jobs()["s1"])
    assert slurm_flow.until(lambda now: now["s1"] == "CANCELLED")
    time.sleep(4)
    slurm_flow.cli("advance", "flow-1")
    assert slurm_flow.now()["s1"] == "CANCELLED"
    assert slurm_flow.count("s1") == 1
    slurm_flow.cli("cancel", "flow-1")
    assert set(slurm_flow.settle().values()) == {"CANCELLED"}


def test_a_cancelled_run_leaves_nothing_in_the_queue(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(
        slurm_flow.step("held", "sleep 60", resources={"slurm": {"extra": {"hold": True}}}),
        slurm_flow.step("after", "true", resources={"cpus_per_task": 2}),
    )
    slurm_flow.submit()
    assert "is held" in slurm_flow.status()["held"]["message"]
    jobs = slurm_flow.jobs()
    slurm_flow.cli("cancel", "flow-1")
    now = slurm_flow.settle()
    assert now["held"] == "CANCELLED" and now["after"] in ("BLOCKED", "CANCELLED")
    ids = ",".join(jobs.values())
    live = slurm_flow.cluster.ask("squeue", "-h", "-j", ids, "-t", "pending,running")
    assert live == ""
    time.sleep(3)
    assert slurm_flow.executed() == []
    slurm_flow.cli("resume", "flow-1", "--no-wait")
    assert slurm_flow.now()["held"] == "SUBMITTED"
    slurm_flow.cli("cancel", "flow-1")


def test_pending_reasons_and_jobs_are_told_in_words(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(
        slurm_flow.step("first", "sleep 20"),
        slurm_flow.step("second", "true", resources={"cpus_per_task": 2}),
    )
    slurm_flow.submit()
    slurm_flow.until(lambda now: now["first"] == "RUNNING")
    found = slurm_flow.whole_status()
    assert found["steps"]["second"]["message"] == "waits for the steps before it"
    assert found["scheduler_calls"].get("squeue", 0) <= 1
    assert set(found["scheduler_calls"]) <= {"squeue", "sacct"}
    slurm_flow.cli("cancel", "flow-1")


def test_canaries_run_first_and_one_that_fails_stops_the_run(slurm_flow: SlurmFlow) -> None:
    flag = slurm_flow.project / "mended"
    # The first fails when the other one has ended, which would be cancelled otherwise.
    ends = slurm_flow.project / ".nexa_state/records/*/*/1.end.json"
    fails = f"until grep -qs COMPLETED {ends}; do sleep 0.1; done; test -e {flag}"
    steps = [slurm_flow.step(f"s{n}", f"test -e {flag}", after=[]) for n in range(6)]
    slurm_flow.write(
        slurm_flow.step("s0", fails, after=[]), slurm_flow.step("s1", after=[]), *steps[2:]
    )
    slurm_flow.submit("--canary", "2", "--wait", expect=130)
    now = slurm_flow.now()
    assert [now["s0"], now["s1"]] == ["FAILED", "COMPLETED"]
    assert sorted(slurm_flow.executed()) == ["s0", "s1"]
    assert "canary 's0' failed" in slurm_flow.cli("status", slurm_flow.file).stdout
    flag.touch()
    slurm_flow.write(*steps)
    slurm_flow.submit("--canary", "2", "--wait")
    assert set(slurm_flow.now().values()) == {"COMPLETED"}
    executed = slurm_flow.executed()
    assert sorted(executed) == [f"s{n}" for n in range(6)]
    assert {*executed[:2]} == {"s0", "s1"}


def test_a_run_that_fails_all_alike_is_stopped(slurm_flow: SlurmFlow) -> None:
    steps = [slurm_flow.step("good", "sleep 60", after=[])]
    steps += [slurm_flow.step(f"bad{n}", "exit 7", after=[]) for n in range(4)]
    slurm_flow.write(*steps)
    slurm_flow.configure(policy=POLICY + "stop_after: {same_error: 3}\n")
    slurm_flow.submit("--wait", expect=None)  # 1 or 130: whichever it notices first
    now = slurm_flow.settle()
    assert now["good"] == "CANCELLED"
    told = slurm_flow.cli("status", slurm_flow.file).stdout
    assert "steps failed alike: the command exited with 7" in told


def test_what_slurm_refuses_is_told_with_its_words_and_exit_code_4(slurm_flow: SlurmFlow) -> None:
    slurm_flow.write(slurm_flow.step("a", resources={"constraint": "unobtainium"}))
    told = slurm_flow.submit(expect=4)
    assert "Invalid feature specification" in told and "nexa-hpc resume flow-1" in told
    assert slurm_flow.now() == {"a": "PENDING"}


def test_cancel_ends_a_run_that_would_come_back_by_itself(slurm_flow: SlurmFlow) -> None:
    slurm_flow.configure(policy=POLICY.replace("0.02", "5") + "retry: {exception: 1}\n")
    slurm_flow.write(slurm_flow.step("a", "exit 3"))
    slurm_flow.submit()
    slurm_flow.until(lambda now: slurm_flow.count("a") == 1 and now["a"] == "PENDING")
    assert "Slurm to end" in slurm_flow.cli("cancel", "flow-1").stdout
    time.sleep(3)
    slurm_flow.cli("advance", "flow-1")
    assert slurm_flow.count("a") == 1
