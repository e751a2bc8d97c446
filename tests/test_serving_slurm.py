"""Servers as jobs of the real cluster: started, requeued, killed, cancelled, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import child_environment
from served import Site, processes_of, site
from slurm_fixtures import SlurmCluster, wait_until

from nexa_hpc.core.servers import Servers

__all__ = ["site"]

pytestmark = pytest.mark.slurm

IN_SLURM = ("--scheduler", "slurm", "--sbatch", "time=10", "-O", "threads=1")


def job_of(cluster: SlurmCluster, site: Site, name: str) -> str:
    """Return the id of the job that holds the server `name`."""
    tag = Servers(site.root / ".nexa_state/serve").get(name).tag
    return cluster.ask("squeue", "-h", "-o", "%A", f"--name=nexa-serve-{tag}").strip()


def status_of(url: str, token: str) -> int:
    """Return how a server answers whoever shows `token`."""
    asked = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_a_server_in_a_job_is_reached_with_its_token_and_stopped_by_another_session(
    slurm_cluster: SlurmCluster, site: Site
) -> None:
    url = site.serve("start", "tiny", "--name", "job", *IN_SLURM).stdout.strip()
    job = job_of(slurm_cluster, site, "job")
    assert site.serve("url", "job").stdout.strip() == url
    token = site.serve("url", "job", "--token").stdout.strip()
    assert status_of(url, token) == 200
    assert status_of(url, "another") == 401
    site.serve("stop", "job")
    assert site.state("job")["state"] == "ABSENT"
    slurm_cluster.wait(job)
    assert not processes_of("job")
    assert "serving tiny" in site.serve("logs", "job").stdout


@pytest.mark.slow
def test_a_requeued_server_is_announced_anew_and_its_old_url_is_never_handed_out(
    slurm_cluster: SlurmCluster, site: Site
) -> None:
    site.serve("start", "tiny", "--name", "job-again", *IN_SLURM)
    job = job_of(slurm_cluster, site, "job-again")
    slurm_cluster.ask("scontrol", "requeue", job)
    assert site.serve("url", "job-again", expect=1).stdout == ""
    assert site.state("job-again")["state"] == "STARTING"
    wait_until(lambda: not processes_of("job-again"), 60, "the first server to end")
    pending = ["squeue", "-h", "-t", "pending", "-j", job]
    wait_until(lambda: slurm_cluster.ask(*pending), 60, "the job to wait")
    assert "STARTING" in site.serve("url", "job-again", expect=1).stderr
    slurm_cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: site.state("job-again")["state"] == "HEALTHY", 90, "it to answer again")
    assert Servers(site.root / ".nexa_state/serve").get("job-again").restarts == 1
    after = site.serve("url", "job-again").stdout.strip()
    assert status_of(after, site.serve("url", "job-again", "--token").stdout.strip()) == 200
    site.serve("stop", "job-again")
    assert not processes_of("job-again")


@pytest.mark.slow
def test_a_server_that_is_killed_in_its_job_is_listed_as_crashed_and_its_job_ends(
    slurm_cluster: SlurmCluster, site: Site
) -> None:
    site.serve("start", "tiny", "--name", "job-killed", *IN_SLURM)
    job = job_of(slurm_cluster, site, "job-killed")
    supervisor = Servers(site.root / ".nexa_state/serve").get("job-killed").supervisor
    assert supervisor is not None
    for pid in processes_of("job-killed"):
        if pid != supervisor["pid"]:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: site.state("job-killed")["state"] == "CRASHED", 30, "the crash to be seen")
    assert "SIGKILL" in site.state("job-killed")["note"]
    slurm_cluster.wait(job)
    assert not processes_of("job-killed")
    state = ["sacct", "-X", "-n", "-P", "-o", "State", "-j", job]
    wait_until(lambda: slurm_cluster.ask(*state) == "FAILED\n", 30, "accounting to know")
    site.serve("stop", "job-killed")


@pytest.mark.slow
def test_a_server_ends_with_its_job(slurm_cluster: SlurmCluster, site: Site) -> None:
    site.serve("start", "tiny", "--name", "job-cancelled", *IN_SLURM)
    slurm_cluster.ask("scancel", job_of(slurm_cluster, site, "job-cancelled"))
    wait_until(lambda: site.state("job-cancelled")["state"] == "STOPPED", 60, "the end to be seen")
    wait_until(lambda: not processes_of("job-cancelled"), 30, "its processes to end")
    site.serve("stop", "job-cancelled")


def test_one_that_waits_for_nodes_says_why_and_can_be_stopped(
    slurm_cluster: SlurmCluster, site: Site
) -> None:
    later = ("--sbatch", "begin=now+1hour", "--no-wait")
    told = site.serve("start", "tiny", "--name", "job-later", *IN_SLURM, *later).stderr
    assert "submitted job" in told and "serve url job-later" in told
    job = job_of(slurm_cluster, site, "job-later")
    shown = site.state("job-later")
    assert shown["state"] == "STARTING"
    assert "waits for its time to begin" in shown["note"]
    assert "there already" in site.serve("start", "tiny", "--name", "job-later", expect=2).stderr
    site.serve("stop", "job-later")
    assert site.state("job-later")["state"] == "ABSENT"
    assert slurm_cluster.ask("squeue", "-h", "-j", job, "-t", "pending,running") == ""


def test_ctrl_c_while_it_waits_leaves_no_job(slurm_cluster: SlurmCluster, site: Site) -> None:
    command = ["serve", "start", "tiny", "--name", "job-begun", *IN_SLURM]
    command += ["--sbatch", "begin=now+1hour"]
    starting = subprocess.Popen(
        [sys.executable, "-m", "nexa_hpc", *command],
        cwd=site.root, env=child_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert starting.stderr is not None
    lines = iter(starting.stderr.readline, "")
    job = next(line for line in lines if "submitted job" in line).split()[-1]
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert slurm_cluster.ask("squeue", "-h", "-j", job, "-t", "pending,running") == ""
    assert site.state("job-begun")["state"] == "ABSENT"


def test_what_sbatch_refuses_leaves_no_handle(slurm_cluster: SlurmCluster, site: Site) -> None:
    wrong = ("--sbatch", "partition=nowhere")
    told = site.serve("start", "tiny", "--name", "job-refused", *IN_SLURM, *wrong, expect=4).stderr
    assert "nowhere" in told or "partition" in told
    assert site.state("job-refused")["state"] == "ABSENT"
