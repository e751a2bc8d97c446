"""Local steps on a login node: warned of, refused or let through, as the cluster's file says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import RunCli
from slurm_fixtures import BentSlurm, SlurmCluster

TRAIN = planned.command("train", 'echo "{\\"loss\\": 1}" > $OUT/metrics.json')
REGISTER = {
    "id": "register",
    "uses": "core.registry.register",
    "params": {"name": "m", "uri": "train"},
}


@pytest.fixture
def ask(project: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> RunCli:
    """The command line in a project of two steps, outside of any job."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    text = json.dumps({"pipeline": {"name": "p", "steps": [TRAIN, REGISTER]}})
    (project / "p.yaml").write_text(text)
    return run_cli


def policy(project: Path, word: str) -> None:
    (project / "configs/cluster").mkdir(parents=True, exist_ok=True)
    (project / "configs/cluster/mini.yaml").write_text(f"login_policy: {word}\n")


def warnings(told: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in told.stderr.splitlines() if line.startswith("warning: running")]


def files(project: Path) -> list[str]:
    return sorted(str(path.relative_to(project)) for path in project.rglob("*"))


@pytest.mark.slurm
def test_without_a_word_from_the_cluster_it_warns_in_one_line(
    bent_slurm: BentSlurm, ask: RunCli
) -> None:
    told = ask("run", "p.yaml")
    (line,) = warnings(told)
    assert "on this login node: 'train'; `--scheduler slurm`" in line
    assert bent_slurm.calls() == []
    assert warnings(ask("run", "p.yaml")) == []


@pytest.mark.slurm
def test_refuse_ends_with_two_and_nothing_written(
    slurm_cluster: SlurmCluster, project: Path, ask: RunCli
) -> None:
    policy(project, "refuse")
    before = files(project)
    told = ask("run", "p.yaml", expect=2)
    assert "no step may run on this login node" in told.stderr
    assert "login_policy: refuse in configs/cluster/mini.yaml" in told.stderr
    assert "--scheduler slurm" in told.stderr
    assert "salloc" in told.stderr
    assert files(project) == before
    assert "train" in ask("plan", "p.yaml").stdout


@pytest.mark.slurm
def test_refuse_lets_through_what_slurm_is_to_run(
    slurm_cluster: SlurmCluster, project: Path, ask: RunCli
) -> None:
    policy(project, "refuse")
    told = ask("run", "p.yaml", "--scheduler", "slurm", "--wait")
    assert warnings(told) == []


@pytest.mark.slurm
def test_allow_says_nothing(slurm_cluster: SlurmCluster, project: Path, ask: RunCli) -> None:
    policy(project, "allow")
    assert warnings(ask("run", "p.yaml")) == []


@pytest.mark.slurm
def test_within_a_job_and_without_slurm_nothing_is_asked_or_said(
    bent_slurm: BentSlurm, project: Path, ask: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(project, "refuse")
    assert warnings(ask("run", "p.yaml", env={"SLURM_JOB_ID": "7"})) == []
    assert bent_slurm.calls() == []
    (project / "configs/cluster/mini.yaml").write_text("not: [valid\n")
    bare = project / "bin"
    bare.mkdir()
    for name in ("bash", "sh"):
        (bare / name).symlink_to(f"/bin/{name}")
    ask("rerun", "p.yaml", "--from", "train", env={"PATH": str(bare)})


@pytest.mark.slurm
def test_what_is_cached_and_what_is_light_may_run_anywhere(
    slurm_cluster: SlurmCluster, project: Path, ask: RunCli
) -> None:
    ask("run", "p.yaml")
    policy(project, "refuse")
    text = (project / "p.yaml").read_text().replace('"name": "m"', '"name": "other"')
    (project / "p.yaml").write_text(text)
    told = ask("run", "p.yaml")
    assert warnings(told) == []
    assert "other" in ask("models", "list").stdout


@pytest.mark.slurm
def test_resume_obeys_it_for_what_is_left(
    slurm_cluster: SlurmCluster, project: Path, ask: RunCli
) -> None:
    failing: dict[str, Any] = planned.command("late", "test -e go && cp go $OUT", after=["train"])
    text = json.dumps({"pipeline": {"name": "p", "steps": [TRAIN, failing]}})
    (project / "p.yaml").write_text(text)
    ask("run", "p.yaml", expect=1)
    (project / "go").touch()
    policy(project, "refuse")
    rounds = project / ".nexa_state/p/runs/p-1/rounds"
    before = files(rounds)
    assert "login node (cluster mini" in ask("resume", expect=2).stderr
    assert files(rounds) == before
    policy(project, "warn")
    (line,) = warnings(ask("resume"))
    assert "'late';" in line
    assert warnings(ask("resume")) == []
