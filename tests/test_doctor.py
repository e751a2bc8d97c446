"""`doctor`: what it looks at, what it says of what is amiss, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import RunCli, child_environment
from slurm_fixtures import BentSlurm, SlurmCluster

from nexa_hpc.core import exchange
from nexa_hpc.core.disk_checks import check_disk, filesystem_of
from nexa_hpc.core.findings import Level
from nexa_hpc.schedulers.slurm.node_trial import JOB_NAME

NO_SLURM = {"PATH": "/nonexistent"}


def findings(told: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(told.stdout)["findings"]}


def cluster_file(project: Path, text: str) -> None:
    folder = project / "configs/cluster"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mini.yaml").write_text(text)


def test_without_slurm_all_is_well_and_nothing_is_left_behind(
    project: Path, run_cli: RunCli
) -> None:
    told = run_cli("doctor", env=NO_SLURM)
    assert "slurm" in told.stdout
    assert "not on this machine" in told.stdout
    assert "--deep" not in told.stdout
    assert told.stdout.splitlines()[-1].endswith(" ok")
    assert [path.name for path in project.iterdir()] == ["nexa.yaml"]


def test_versions_and_interpreter_are_told(project: Path, run_cli: RunCli) -> None:
    found = findings(run_cli("doctor", "--json", env=NO_SLURM))
    assert sys.executable in found["python"]["message"]
    assert "pydantic" in found["libraries"]["message"]


# ------------------------------------------------------------------------------------------- disks


def test_a_disk_without_hard_links_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (found,) = check_disk("store", tmp_path / "deep/store", None)
    assert found.level is Level.PROBLEM
    assert "hard links" in found.message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_keeps_no_modes_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, mode=0o777: mkdir(path, 0o755))
    (found,) = check_disk("state", tmp_path, None)
    assert "asked for 0700 and 0600, got 0755" in found.message


def test_a_disk_that_cannot_exchange_names_and_a_clock_that_is_off_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "exchange", lambda *_: False)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 100)
    found = check_disk("state", tmp_path, None)
    assert {finding.level for finding in found} == {Level.WARNING}
    assert "as on every NFS" in found[0].message
    assert "+100 s off" in found[1].message


def test_little_room_is_a_warning(full_disk: Path) -> None:
    found = check_disk("state", full_disk / "state", None)
    assert [finding.level for finding in found] == [Level.OK, Level.WARNING, Level.WARNING][
        : len(found)
    ]
    assert "GB left" in found[1].message
    assert filesystem_of(full_disk / "state") == "tmpfs"


def test_a_disk_that_cannot_be_written_is_a_problem(full_disk: Path, project: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(full_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    (found,) = check_disk("store", full_disk / "store", None)
    assert found.level is Level.PROBLEM
    assert "Read-only" in found.message


def test_a_shared_store_is_tried_with_its_group(project: Path, run_cli: RunCli) -> None:
    group = os.getgid()
    (project / "nexa.yaml").write_text(f"paths: {{group: '{group}'}}\n")
    found = findings(run_cli("doctor", "--json", env=NO_SLURM))
    assert found["store: filesystem"]["level"] == "ok"
    (project / "nexa.yaml").write_text("paths: {group: no-such-group}\n")
    found = findings(run_cli("doctor", "--json", env=NO_SLURM, expect=1))
    assert "no group 'no-such-group'" in found["project"]["message"]


# ------------------------------------------------------------------------------------------- Slurm


@pytest.mark.slurm
def test_a_login_node_is_checked_without_submitting_anything(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    told = run_cli("doctor").stdout
    assert "warning slurm: cluster file" in told
    assert "→ nexa-hpc cluster probe" in told
    assert "`nexa-hpc doctor --deep` submits one tiny job to find out" in told
    assert [call["args"] for call in bent_slurm.calls("sbatch")] == [["--version"]]
    assert len(bent_slurm.calls()) <= 8
    run_cli("cluster", "probe")
    assert "warning" not in run_cli("doctor").stdout
    text = (project / "configs/cluster/mini.yaml").read_text()
    cluster_file(project, text.replace("max_array_size: 1001", "max_array_size: 55"))
    assert "is out of date: max_array_size" in run_cli("doctor").stdout


@pytest.mark.slurm
def test_a_controller_that_is_away_is_a_problem_and_no_traceback(
    bent_slurm: BentSlurm, run_cli: RunCli
) -> None:
    bent_slurm.bend(controller_away=True)
    done = run_cli("doctor", expect=1)
    assert "problem slurm: slurmctld" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slurm
def test_accounting_that_is_away_or_not_there_is_a_warning(
    bent_slurm: BentSlurm, run_cli: RunCli
) -> None:
    bent_slurm.bend(database_away=True)
    away = findings(run_cli("doctor", "--json"))["slurm: accounting"]
    assert (away["level"], "does not answer now" in away["message"]) == ("warning", True)
    bent_slurm.bend(no_accounting=True)
    none = findings(run_cli("doctor", "--json"))["slurm: accounting"]
    assert (none["level"], none["message"]) == ("warning", "this cluster keeps no accounting")


@pytest.mark.slurm
def test_a_missing_command_is_a_problem(
    slurm_cluster: SlurmCluster, run_cli: RunCli, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for name in ("scontrol", "squeue", "sinfo", "scancel"):
        (some / name).symlink_to(str(shutil.which(name)))
    done = run_cli("doctor", env={"PATH": str(some)}, expect=1)
    assert "there is no sbatch on PATH" in done.stdout


# ----------------------------------------------------------------------------------- a compute node


@pytest.mark.slurm
def test_a_tiny_job_finds_out_what_a_node_can_do(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    found = findings(run_cli("doctor", "--deep", "--json"))
    named = {name: told["level"] for name, told in found.items() if name.startswith("node")}
    assert named == dict.fromkeys(
        ["node: job", "node: python", "node: state", "node: store", "node: clock", "node: sbatch"],
        "ok",
    )
    assert "nexa_hpc" in found["node: python"]["message"]
    submitted = [call for call in bent_slurm.calls("sbatch") if call.get("job")]
    assert [call["name"] for call in submitted] == [JOB_NAME]
    assert any(arg.startswith("--deadline=now+") for arg in submitted[0]["args"])
    assert [path.name for path in project.iterdir()] == ["nexa.yaml"]


@pytest.mark.slurm
def test_nodes_that_may_not_submit_are_a_warning_until_the_cluster_file_says_so(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    bent_slurm.bend(refuse_on_nodes=True)
    told = findings(run_cli("doctor", "--deep", "--json"))["node: sbatch"]
    assert told["level"] == "warning"
    assert "sbatch_on_nodes: false" in told["remedy"]
    cluster_file(project, "sbatch_on_nodes: false\n")
    assert findings(run_cli("doctor", "--deep", "--json"))["node: sbatch"]["level"] == "ok"


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "does not work on a node"),
        (
            '#!/bin/sh\nunset PYTHONPATH\nexec /usr/bin/python3 -S -I "$@"\n',
            "nexa_hpc: ModuleNotFoundError",
        ),
    ],
    ids=["no interpreter", "without nexa_hpc"],
)
def test_a_node_s_python_that_will_not_do_is_a_problem(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli, script: str | None, said: str
) -> None:
    python = project / "bin/python"
    if script is not None:
        python.parent.mkdir()
        python.write_text(script)
        python.chmod(0o755)
    cluster_file(project, f"python: {python}\n")
    told = findings(run_cli("doctor", "--deep", "--json", expect=1))["node: python"]
    assert said in told["message"]
    assert "`python` in the cluster's file" in told["remedy"]


@pytest.mark.slurm
def test_a_folder_that_no_node_sees_is_a_problem(
    slurm_cluster: SlurmCluster, project: Path
) -> None:
    # In a mount namespace of its own, the login node has a disk that slurmd does not have.
    program = 'mount -t tmpfs tmpfs "$PWD" && echo > nexa.yaml && exec "$@"'
    command = [sys.executable, "-m", "nexa_hpc", "--project", str(project), "doctor"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", program, "sh", *command, "--deep", "--json"],
        cwd=project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr:
        pytest.skip("needs the right to a mount namespace")
    assert done.returncode == 1, done.stderr
    told = findings(done)["node: job"]
    assert f"its node does not see {project}" in told["message"]


@pytest.mark.slurm
def test_a_job_that_takes_too_long_is_given_up_and_cancelled(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    python = project / "slow"
    python.write_text("#!/bin/sh\nsleep 60\n")
    python.chmod(0o755)
    cluster_file(project, f"python: {python}\n")
    told = findings(run_cli("doctor", "--deep", "--wait-s", "3", "--json"))["node: job"]
    assert (told["level"], "not done within 3 s" in told["message"]) == ("warning", True)
    job = told["message"].split()[1]
    slurm_cluster.wait(job, timeout_s=15)


@pytest.mark.slurm
def test_a_partition_that_is_not_there_is_told_in_slurm_s_words(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    cluster_file(project, "defaults: {partition: nope}\n")
    told = findings(run_cli("doctor", "--deep", "--json", expect=1))["node: job"]
    assert "invalid partition specified: nope" in told["message"]


# -------------------------------------------------------------------------------------- the archive

CANARIES = {
    "A_VARIABLE": "canary-of-a-variable",
    "A_SECRET": "canary-of-a-secret",
    "SOME_API_KEY": "canary-of-a-key",
}


def members(archive: Path) -> Mapping[str, bytes]:
    with tarfile.open(archive) as packed:
        files = {entry.name: packed.extractfile(entry) for entry in packed.getmembers()}
        return {name.partition("/")[2]: stream.read() for name, stream in files.items() if stream}


@pytest.mark.parametrize(
    "scheduler", ["local", pytest.param("slurm", marks=pytest.mark.slurm)], ids=str
)
def test_the_archive_for_support_holds_no_secret_and_no_value_of_a_variable(
    project: Path, run_cli: RunCli, scheduler: str, request: pytest.FixtureRequest
) -> None:
    if scheduler == "slurm":
        request.getfixturevalue("slurm_cluster")
    token = "hf_" + "Q" * 30
    step = planned.command(
        "talks",
        f'echo "$A_VARIABLE $A_SECRET {token}"; echo https://kim:canary-of-a-url@host/x; '
        'echo "$SOME_API_KEY"; echo seen; exit 3',
    )
    step["env"] = {
        "variables": {"A_VARIABLE": CANARIES["A_VARIABLE"], "SHORT": "ab"},
        "secrets": ["A_SECRET"],
    }
    (project / "p.yaml").write_text(json.dumps({"pipeline": {"name": "p", "steps": [step]}}))
    run_cli("run", "p.yaml", "--scheduler", scheduler, "--wait", env=CANARIES, expect=1)
    log = next((project / ".nexa_state/p/runs/p-1/logs").glob("*.log"))
    assert CANARIES["A_VARIABLE"] in log.read_text()
    run_cli("doctor", "--bundle", "b.tar.gz", env={**CANARIES, **NO_SLURM})
    packed = members(project / "b.tar.gz")
    assert {"doctor.json", "run/run.json", "run/plan.json", "run/state.json"} <= set(packed)
    assert b"seen" in packed[f"run/logs/{log.name}"]
    assert b"A_VARIABLE" in packed["run/plan.json"]
    assert b"SHORT" not in packed["run/run.json"]
    assert json.loads(packed["run/plan.json"])["instances"][0]["env"]["variables"]["SHORT"] == "***"
    for name, content in packed.items():
        for canary in [*CANARIES.values(), token, "canary-of-a-url"]:
            assert canary.encode() not in content, name


def test_the_archive_holds_what_the_project_says_and_the_ends_of_long_logs(
    project: Path, run_cli: RunCli
) -> None:
    cluster_file(project, "login_policy: allow\n")
    lines = "for i in $(seq 20000); do echo line-$i; done"
    text = json.dumps({"pipeline": {"name": "p", "steps": [planned.command("long", lines)]}})
    (project / "p.yaml").write_text(text)
    run_cli("run", "p.yaml")
    copied = project / ".nexa_state/p/runs/p-1/source/data/patients.json"
    copied.parent.mkdir(parents=True)
    copied.write_text("{}")
    run_cli("doctor", "--bundle", "b.tar.gz", env=NO_SLURM)
    packed = members(project / "b.tar.gz")
    assert not any("patients" in name for name in packed)
    assert packed["project/configs/cluster/mini.yaml"] == b"login_policy: allow\n"
    (log,) = (content for name, content in packed.items() if name.startswith("run/logs/"))
    assert log.endswith(b"line-20000\n")
    assert len(log) < 1 << 16
    assert log.startswith(b"line-")
    assert (project / "b.tar.gz").stat().st_mode & 0o077 == 0
