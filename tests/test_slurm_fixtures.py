"""The tests' own cluster is a real one, and its wrappers bend what they say they bend."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm_fixtures import BentSlurm, SlurmCluster, wait_until

pytestmark = pytest.mark.slurm


def said(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def submit(*options: str, command: str = "true") -> tuple[int, str]:
    return said("sbatch", "--parsable", "-o", "/dev/null", *options, f"--wrap={command}")


def test_a_job_runs_on_a_node_of_the_cluster(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = slurm_cluster.ask("sbatch", "--parsable", "-o", str(out), "--wrap", "echo $SLURM_JOB_ID")
    slurm_cluster.wait(job.strip())
    assert out.read_text() == job
    partitions = slurm_cluster.ask("sinfo", "-h", "-o", "%P").split()
    assert partitions == ["main*", "high", "short"]


def test_the_database_and_a_node_go_and_come_back(slurm_cluster: SlurmCluster) -> None:
    with slurm_cluster.without("dbd"):
        assert "Connection refused" in said("sacct")[1]
    assert said("sacct", "-X", "-n")[0] == 0
    with slurm_cluster.without("node", "4"):
        assert said("pgrep", "-f", "slurmd -N n3")[0] == 0
    wait_until(lambda: "idle*" not in said("sinfo", "-h")[1], 30, "node 4")


def test_every_call_is_counted_with_the_job_that_it_made(bent_slurm: BentSlurm) -> None:
    code, job = submit("--job-name=counted")
    assert code == 0
    said("squeue", "-h")
    (call,) = bent_slurm.calls("sbatch")
    assert (call["job"], call["name"], call["rc"]) == (job.strip(), "counted", 0)
    assert [c["command"] for c in bent_slurm.calls()] == ["sbatch", "squeue"]


def test_a_lost_reply_leaves_the_job_and_a_refused_submission_does_not(
    bent_slurm: BentSlurm, slurm_cluster: SlurmCluster
) -> None:
    bent_slurm.bend(lose_replies=1)
    code, told = submit("--job-name=lost", command="sleep 1")
    assert code == 1
    assert "Socket timed out" in told
    (call,) = bent_slurm.calls("sbatch")
    assert call["bent"] == "lose_replies"
    slurm_cluster.ask("scontrol", "show", "job", call["job"])
    assert submit()[0] == 0
    bent_slurm.bend(refuse_submissions=1)
    assert submit()[0] == 1
    assert "job" not in bent_slurm.calls("sbatch")[-1]
    assert submit()[0] == 0


def test_a_submit_limit_counts_the_elements_of_arrays(
    bent_slurm: BentSlurm, slurm_cluster: SlurmCluster
) -> None:
    bent_slurm.bend(submit_limit=100_000)
    code, held = submit("--array=0-10:2,11%2", "--hold")
    assert code == 0
    bent_slurm.bend(submit_limit=10)
    code, told = submit("--array=0-3")
    slurm_cluster.ask("scancel", held.strip())
    assert code == 1
    assert "AssocMaxSubmitJobLimit" in told
    assert "Job violates accounting/QOS policy" in told


def test_a_script_from_standard_input_is_passed_on(
    bent_slurm: BentSlurm, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    script = f"#!/bin/sh\n#SBATCH --job-name='by stdin'\n#SBATCH -o {tmp_path}/o\necho hello\n"
    subprocess.run(["sbatch"], input=script, text=True, check=True, capture_output=True)
    (call,) = bent_slurm.calls("sbatch")
    assert call["name"] == "by stdin"
    slurm_cluster.wait(call["job"])
    assert (tmp_path / "o").read_text() == "hello\n"


def test_accounting_lags_dies_or_is_not_there(bent_slurm: BentSlurm) -> None:
    bent_slurm.bend(sacct_empty_s=60)
    assert said("sacct", "-X") == (0, "")
    bent_slurm.bend(database_away=True)
    code, told = said("sacct", "-X")
    assert (code, "Connection refused" in told) == (1, True)
    assert said("squeue")[0] == 0
    bent_slurm.bend(no_accounting=True)
    assert said("sacct", "-X") == (1, "Slurm accounting storage is disabled\n")
    assert "accounting_storage/none" in said("scontrol", "show", "config")[1]
    bent_slurm.bend()
    assert said("sacct", "-X", "-n")[1]


def test_the_controller_is_away_for_us_alone(bent_slurm: BentSlurm) -> None:
    bent_slurm.bend(controller_away=True)
    code, told = said("squeue")
    assert (code, "Unable to contact slurm controller" in told) == (1, True)
    assert submit()[0] == 1
    bent_slurm.bend()
    assert said("squeue")[0] == 0


def test_a_failed_job_of_a_given_name_shows_as_out_of_memory(
    bent_slurm: BentSlurm, slurm_cluster: SlurmCluster
) -> None:
    bent_slurm.bend(out_of_memory="hungry")
    jobs = [
        submit(f"--job-name={name}", command="exit 1")[1].strip() for name in ("hungry", "wrong")
    ]
    for job in jobs:
        slurm_cluster.wait(job)

    def states() -> list[str]:
        lines = said("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(jobs))[1]
        return [line.partition("|")[2] for line in lines.splitlines()]

    wait_until(lambda: states() == ["OUT_OF_MEMORY", "FAILED"], 20, "sacct to know")


def test_nodes_may_be_refused_to_submit(
    bent_slurm: BentSlurm, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    bent_slurm.bend(refuse_on_nodes=True)
    command = f"env -u SLURM_JOB_ID sbatch --wrap=true > {tmp_path}/told 2>&1"
    code, job = submit(command=command)
    assert code == 0
    slurm_cluster.wait(job.strip())
    assert "Access/permission denied" in (tmp_path / "told").read_text()
