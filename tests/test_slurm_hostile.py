"""Names, paths and values that a shell or sbatch would take for more: refused, or inert."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from slurm_fixtures import BentSlurm, SlurmCluster
from slurm_flows import SlurmFlow

pytestmark = pytest.mark.slurm

CANARY = "CANARY_WAS_HERE"
TOUCH = f"touch {CANARY}"
HOSTILE = (
    f"x\n#SBATCH --partition=high\n{TOUCH}",
    f"x\r{TOUCH}",
    f"$({TOUCH})",
    f"`{TOUCH}`",
    f"x; {TOUCH}",
    f"x' ; {TOUCH} '",
    f'x" ; {TOUCH} "',
    "x --partition=high",
)


def no_canary(tmp_path: Path) -> None:
    """Assert that nothing created the canary, wherever a job or we could have been."""
    places = [tmp_path, Path.cwd(), Path.home(), Path("/"), Path("/tmp")]
    assert not any((place / CANARY).exists() for place in places)
    assert list(tmp_path.rglob(CANARY)) == []


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", ["step", "pipeline", "label", "extra", "constraint", "option"])
def test_hostile_names_and_options_are_refused(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm, tmp_path: Path, where: str, text: str
) -> None:
    flow = slurm_flow
    step = flow.step("a")
    if where == "step":
        step["id"] = text
    if where == "extra":
        step["resources"] = {"slurm": {"extra": {"mail-user": text}}}
    if where == "option":
        step["resources"] = {"slurm": {"extra": {text: "1"}}}
    if where == "constraint":
        step["resources"] = {"constraint": text}
    if where == "label":
        step["labels"] = {"owner": text}
    flow.write(step, name=text if where == "pipeline" else None)
    done = flow.cli("run", flow.file, "--scheduler", "slurm", expect=None)
    assert done.returncode in (0, 2, 4), done.stdout + done.stderr
    if done.returncode == 0:
        # One word of one option, whatever is in it.
        assert where in ("label", "extra")
        assert flow.settle() == {"a": "COMPLETED"}
        told = flow.cluster.ask("squeue", "-h", "-t", "all", "-j", flow.jobs()["a"], "-o", "%P")
        assert told.strip() == "main"
    else:
        assert [call for call in bent_slurm.calls("sbatch") if call.get("job")] == []
    no_canary(tmp_path)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_params_reach_the_command_as_they_are(
    slurm_flow: SlurmFlow, tmp_path: Path, text: str
) -> None:
    flow = slurm_flow
    command = 'printf %s "$PARAM_text" > "$OUT/text"'
    flow.write(flow.step("a", command, out="out/a", params={"text": text}))
    flow.submit()
    assert flow.settle() == {"a": "COMPLETED"}
    assert (flow.project / "out/a/text").read_bytes() == text.encode()
    no_canary(tmp_path)


FOLDERS = (
    "with spaces in it",
    "it's",
    'a "quoted" one',
    f"$({TOUCH})",
    f"`{TOUCH}`",
    f"semi; {TOUCH}; colon",
    "50%job %j %A",
    "back\\slash",
    "hash # and & amp",
    "ünï-çødé",
    "-dash",
    "star*",
)


def elsewhere(folder: Path, run_cli: RunCli, cluster: SlurmCluster) -> SlurmFlow:
    """Return a flow in the project at `folder`."""
    folder.mkdir()
    (folder / "nexa.yaml").write_text("{}\n")
    return SlurmFlow(folder, partial(run_cli, cwd=folder), cluster)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_project_in_a_folder_with_a_hostile_name_runs_or_is_refused(
    slurm_flow: SlurmFlow,
    bent_slurm: BentSlurm,
    run_cli: RunCli,
    slurm_cluster: SlurmCluster,
    tmp_path: Path,
    name: str,
) -> None:
    flow = elsewhere(tmp_path / name, run_cli, slurm_cluster)
    steps = [flow.step(f"s{n}", 'echo 1 > "$OUT/x"', after=[], out=f"out/{n}") for n in range(2)]
    flow.write(*steps, flow.step("last", "sleep 0", resources={"cpus_per_task": 2}))
    told = flow.submit(expect=None)
    if not bent_slurm.calls("sbatch"):
        assert "cannot be handed to Slurm" in told, told
        assert "%" in name or "\\" in name, told
    else:
        assert set(flow.settle().values()) == {"COMPLETED"}, told
        assert sorted(flow.executed()) == ["last", "s0", "s1"]
        assert (flow.project / "out/1/x").read_text() == "1\n"
    no_canary(tmp_path)


def test_an_interpreter_with_a_hostile_name_is_one_word(
    slurm_flow: SlurmFlow, tmp_path: Path
) -> None:
    slurm_flow.configure(f'python: "/nowhere; {TOUCH}"')
    slurm_flow.write(slurm_flow.step("a"))
    script = slurm_flow.submit("--dry-run")
    assert f"'/nowhere; {TOUCH}' -u -c" in script


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_job_folder_that_others_can_write_is_refused(
    slurm_flow: SlurmFlow, bent_slurm: BentSlurm, mode: int
) -> None:
    flow = slurm_flow
    flow.write(flow.step("a", "exit 1"))
    flow.submit()
    flow.settle()
    flow.executed()
    calls = len(bent_slurm.calls("sbatch"))
    folder = flow.project / ".nexa_state/flow/runs/flow-1"
    os.chmod(folder, mode)
    done = flow.cli("resume", "flow-1", expect=2)
    assert "can be changed by" in done.stderr and "chmod" in done.stderr
    assert len(bent_slurm.calls("sbatch")) == calls
    os.chmod(folder, 0o700)
    flow.write(flow.step("a"))
    assert flow.executed() == []


def test_comment_and_job_name_are_ours(slurm_flow: SlurmFlow, bent_slurm: BentSlurm) -> None:
    flow = slurm_flow
    for option in ("comment", "job-name", "job_name", "--comment", "wrap", "export", "array"):
        extra: dict[str, Any] = {"slurm": {"extra": {option: "x"}}}
        flow.write(flow.step("a", resources=extra))
        told = flow.submit(expect=2)
        assert "is not yours to set" in told
    assert bent_slurm.calls("sbatch") == []
    flow.write(flow.step("a"))
    flow.submit()
    told = flow.cluster.ask("scontrol", "show", "job", flow.jobs()["a"])
    assert "Comment=nexa_hpc flow-1" in told and "JobName=a.flow-1." in told
    flow.settle()
