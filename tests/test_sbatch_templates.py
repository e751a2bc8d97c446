"""`nexa-hpc sbatch`: each template really run on the cluster, and what stands in its header."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import REPOSITORY, RunCli
from slurm_fixtures import SlurmCluster, wait_until

COUNT = "echo x >> $PARAM_seen"
METRICS = "echo '{\"loss\": 1}' > $OUT/metrics.json"


@pytest.fixture(autouse=True)
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nexa-hpc` on PATH, as an installation has it: this checkout's."""
    script = tmp_path / "bin/nexa-hpc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nexa_hpc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def write(project: Path, *steps: dict[str, Any], file: str = "p.yaml") -> None:
    text = json.dumps({"pipeline": {"name": "p", "steps": list(steps)}})
    (project / file).write_text(text)


def submitted(told: subprocess.CompletedProcess[str]) -> str:
    (job,) = [line.split()[-1] for line in told.stdout.splitlines() if "submitted job" in line]
    return job


def log(project: Path, job: str) -> str:
    return "".join(file.read_text() for file in project.glob(f"nexa-*-{job}.log"))


def header(script: str) -> dict[str, str]:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def statuses(project: Path) -> dict[str, str]:
    state = json.loads((project / ".nexa_state/p/pipeline_state.json").read_text())
    return {step: told["status"] for step, told in state["steps"].items()}


# --------------------------------------------------------------------------------------- allocation


@pytest.mark.slurm
def test_a_whole_pipeline_runs_in_one_allocation_and_a_second_time_skips(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    first = planned.command("first", f"{METRICS}; echo $SLURM_JOB_ID > $OUT/job")
    (project / "configs").mkdir(exist_ok=True)
    (project / "configs/config.yaml").write_text("defaults: [scheduler: slurm]\n")
    write(project, first, planned.command("second", METRICS, after=["first"]))
    job = submitted(run_cli("sbatch", "allocation", "p.yaml", "--jobs", "2", "-O", "time=5"))
    slurm_cluster.wait(job)
    assert statuses(project) == dict.fromkeys(["first", "second"], "COMPLETED"), log(project, job)
    assert next(project.glob("artifacts/.store/??/*/job")).read_text().strip() == job
    job = submitted(run_cli("sbatch", "allocation", "p.yaml", "-O", "time=5"))
    slurm_cluster.wait(job)
    assert statuses(project) == dict.fromkeys(["first", "second"], "SKIPPED"), log(project, job)


@pytest.mark.slurm
def test_an_allocation_that_ends_records_its_step_as_stopped_and_goes_on_when_submitted_again(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    seen = project / "seen"
    work = f'{COUNT}; test -n "$RESUME" || {{ touch $WORK/ckpt; sleep 100; }}; {METRICS}'
    params = {"seen": str(seen), "checkpoint": {"glob": "ckpt"}}
    write(project, planned.command("train", work, params=params))
    job = submitted(run_cli("sbatch", "allocation", "p.yaml", "-O", "time=5"))
    wait_until(seen.exists, 30, "the step to begin")
    wait_until(lambda: list(project.glob(".nexa_state/work/**/ckpt")), 30, "its checkpoint")
    slurm_cluster.ask("scancel", "--signal=TERM", "--batch", job)
    slurm_cluster.wait(job)
    assert statuses(project) == {"train": "CANCELLED"}, log(project, job)
    job = submitted(run_cli("sbatch", "allocation", "p.yaml", "-O", "time=5"))
    slurm_cluster.wait(job)
    assert statuses(project) == {"train": "COMPLETED"}, log(project, job)
    assert seen.read_text() == "x\nx\n"


# ----------------------------------------------------------------------------------------- pipeline


@pytest.mark.slurm
def test_a_driver_in_a_job_waits_for_the_steps_that_it_submits(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("work", f"{METRICS}; echo $SLURM_JOB_ID > $OUT/job"))
    job = submitted(run_cli("sbatch", "pipeline", "p.yaml", "-O", "time=10"))
    slurm_cluster.wait(job, timeout_s=150)
    assert statuses(project) == {"work": "COMPLETED"}, log(project, job)
    assert next(project.glob("artifacts/.store/??/*/job")).read_text().strip() != job
    ended = ["sacct", "-X", "-n", "-P", "-o", "State", "-j", job]
    # The accounting hears of it later than the queue.
    wait_until(lambda: slurm_cluster.ask(*ended) == "COMPLETED\n", 30, "the driver's end")


@pytest.mark.slurm
def test_a_driver_near_its_time_limit_queues_itself_again_and_computes_nothing_twice(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    seen, go = project / "seen", project / "go"
    work = f"{COUNT}; until test -e {go}; do sleep 0.2; done; {METRICS}"
    write(project, planned.command("work", work, params={"seen": str(seen)}))
    job = submitted(run_cli("sbatch", "pipeline", "p.yaml", "-O", "time=10"))
    wait_until(seen.exists, 60, "the step to begin")
    slurm_cluster.ask("scancel", "--signal=USR1", "--batch", job)
    state = ["squeue", "-h", "-j", job, "-o", "%T"]
    wait_until(lambda: slurm_cluster.ask(*state) == "PENDING\n", 30, "the driver to be requeued")
    # Slurm itself leaves two minutes; within a second slurmd would still refuse the job as revoked.
    slurm_cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_until(lambda: slurm_cluster.ask(*state) == "RUNNING\n", 30, "the driver to run again")
    go.touch()
    slurm_cluster.wait(job, timeout_s=150)
    (status,) = statuses(project).values()
    # It may have ended before the driver came back, which then finds it in the store.
    assert status in ("COMPLETED", "SKIPPED"), log(project, job)
    assert seen.read_text() == "x\n"
    assert "no longer following run p-1" in log(project, job)


# ---------------------------------------------------------------------------------------- two nodes

RANKS = """
import json, os, pathlib
rank, size = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
told = [rank, size, os.environ["SLURMD_NODENAME"], os.environ["MASTER_ADDR"]]
pathlib.Path(os.environ["OUT"], f"rank-{rank}").write_text(" ".join(told))
"""
ALL_REDUCE = """
import json, os, pathlib
import torch, torch.distributed
torch.distributed.init_process_group("gloo")
total = torch.tensor([float(torch.distributed.get_rank() + 1)])
torch.distributed.all_reduce(total)
if torch.distributed.get_rank() == 0:
    told = {"total": total.item(), "world": torch.distributed.get_world_size()}
    pathlib.Path(os.environ["OUT"], "metrics.json").write_text(json.dumps(told))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slurm
def test_a_step_starts_itself_on_both_nodes_of_an_allocation(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    (project / "ranks.py").write_text(RANKS)
    write(
        project, planned.command("train", 'srun "$PYTHON" ranks.py', params={"code": ["ranks.py"]})
    )
    job = submitted(run_cli("sbatch", "multinode_train", "p.yaml", "-O", "time=5"))
    slurm_cluster.wait(job)
    told = [
        file.read_text().split() for file in sorted(project.glob("artifacts/.store/??/*/rank-*"))
    ]
    assert [(rank, size) for rank, size, *_ in told] == [("0", "2"), ("1", "2")], log(project, job)
    nodes = [node for _, _, node, _ in told]
    assert len(set(nodes)) == 2
    assert {master for *_, master in told} == {nodes[0]}


@pytest.mark.slow
@pytest.mark.slurm
def test_torchrun_trains_across_the_nodes_of_an_allocation(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    pytest.importorskip("torch")
    (project / "train.py").write_text(ALL_REDUCE)
    command = (
        'srun "$PYTHON" -m torch.distributed.run --nnodes=$SLURM_NNODES --nproc-per-node=1 '
        "--rdzv-id=$SLURM_JOB_ID --rdzv-backend=c10d "
        "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT train.py"
    )
    write(project, planned.command("train", command, params={"code": ["train.py"]}))
    job = submitted(run_cli("sbatch", "multinode_train", "p.yaml", "-O", "time=10"))
    slurm_cluster.wait(job, timeout_s=300)
    (metrics,) = project.glob("artifacts/.store/??/*/metrics.json")
    assert json.loads(metrics.read_text()) == {"total": 3.0, "world": 2}, log(project, job)


# --------------------------------------------------------------------------------------- the header


@pytest.mark.slurm
def test_the_header_is_filled_from_cluster_and_policy_under_the_template_s_own(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("a"))
    (project / "configs/cluster").mkdir(parents=True)
    (project / "configs/cluster/mini.yaml").write_text(
        "defaults: {account: nlp, partition: short, mem_gb: 3, timeout_min: 90}\n"
        "partitions: {short: {max_time_min: 2}, main: {default: true}}\n"
    )
    (project / "configs/scheduler").mkdir()
    (project / "configs/scheduler/slurm.yaml").write_text("defaults: {mem_gb: 4}\n")
    told = header(run_cli("sbatch", "allocation", "p.yaml", "--print").stdout)
    assert (told["account"], told["partition"], told["mem"]) == ("nlp", "short", "4096M")
    assert told["time"] == "2"
    told = header(run_cli("sbatch", "pipeline", "p.yaml", "--print").stdout)
    assert told["mem"] == "2G"
    options = ["-O", "partition=main", "-O", "mem=9G", "-O", "exclusive"]
    told = header(run_cli("sbatch", "pipeline", "p.yaml", *options, "--dry-run").stdout)
    assert (told["partition"], told["mem"], told["exclusive"]) == ("main", "9G", "")
    assert told["time"] == "90"


@pytest.mark.slurm
def test_what_is_printed_is_what_is_submitted(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("a"))
    asked = ["sbatch", "allocation", "p.yaml", "-O", "hold", "-O", "time=1"]
    printed = run_cli(*asked, "--print").stdout
    job = submitted(run_cli(*asked))
    script = slurm_cluster.ask("scontrol", "write", "batch_script", job, "-")
    slurm_cluster.ask("scancel", job)
    assert script.strip() == printed.strip()


HOSTILE = "it's $(touch PWNED) `touch PWNED`\n#SBATCH --comment=PWNED\n.yaml"


@pytest.mark.slurm
def test_what_stands_in_names_is_inert_and_headers_take_no_white_space(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("a", METRICS), file=HOSTILE)
    job = submitted(run_cli("sbatch", "allocation", HOSTILE, "-O", "time=5"))
    slurm_cluster.wait(job)
    assert statuses(project) == {"a": "COMPLETED"}, log(project, job)
    assert not (project / "PWNED").exists()
    assert "PWNED" not in slurm_cluster.ask("sacct", "-X", "-n", "-o", "Comment", "-j", job)
    for option in ("comment=a b", "comment=a\n#SBATCH --x", 'comment="', "Bad=1", "=1"):
        told = run_cli("sbatch", "allocation", HOSTILE, "-O", option, expect=2).stderr
        assert "header" in told or "expected an option of sbatch" in told


def test_a_project_s_own_template_is_found_and_an_unknown_one_named(
    project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("a"))
    (project / "sbatch_templates").mkdir()
    text = '#!/bin/sh\n#SBATCH --nodes=7\nexec nexa-hpc run "$@"\n'
    (project / "sbatch_templates/ours.sbatch").write_text(text)
    printed = run_cli("sbatch", "ours", "p.yaml", "-j", "2", "--print").stdout
    assert "#SBATCH --nodes=7" in printed
    assert "set -- p.yaml -j 2\n" in printed
    told = run_cli("sbatch", "our", "p.yaml", expect=2).stderr
    assert "did you mean 'ours'?" in told
    assert "no such pipeline file" in run_cli("sbatch", "ours", "q.yaml", expect=2).stderr


def test_without_slurm_the_script_is_printed_and_not_submitted(
    project: Path, run_cli: RunCli
) -> None:
    write(project, planned.command("a"))
    nowhere = {"PATH": "/nonexistent"}
    assert (
        "exec nexa-hpc" in run_cli("sbatch", "allocation", "p.yaml", "--print", env=nowhere).stdout
    )
    nowhere = {"PATH": os.environ["PATH"].partition(":")[0]}
    told = run_cli("sbatch", "allocation", "p.yaml", env=nowhere, expect=4).stderr
    assert "there is no sbatch on this machine" in told


@pytest.mark.parametrize("file", sorted((REPOSITORY / "sbatch_templates").iterdir()), ids=str)
def test_a_template_is_plain_shell_without_logic(file: Path) -> None:
    text = file.read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(commands) <= 8
    for word in ("if ", "for ", "while ", "case ", "&&", "||", "[[", "sed ", "awk "):
        assert not [line for line in commands if word in line]
    subprocess.run(["bash", "-n", file], check=True)
