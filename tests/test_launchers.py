"""`launcher` of `runners.command`: srun, torchrun, accelerate, and what planning says of them."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from ensembles import Ensemble
from flows import Flow, Process, alive, pids_in, until
from planned import command, plan
from slurm_fixtures import SlurmCluster

from nexa_hpc.errors import SpecError

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the extra [hf]"
)

ALL_REDUCE = """\
import json, os, pathlib, sys
import torch
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
total = torch.tensor([1.0 + rank])
torch.distributed.all_reduce(total)
found = {name: os.environ[name] for name in (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NNODES", "NODE_RANK")}
found |= {"sum": total.item(), "rate": os.environ["PARAM_rate"]}
pathlib.Path(os.environ["OUT"], f"{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""
WITH_ACCELERATE = """\
import json, os, pathlib
import accelerate, torch
accelerator = accelerate.Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([1.0 + accelerator.process_index])).item()
found = {name: os.environ[name] for name in ("NNODES", "NODE_RANK", "WORLD_SIZE", "LOCAL_RANK")}
found |= {"sum": total, "rate": os.environ["PARAM_rate"]}
pathlib.Path(os.environ["OUT"], f"{accelerator.process_index}.json").write_text(json.dumps(found))
accelerator.end_training()
"""


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def step(flow: Flow, launcher: str, script: str, **resources: int) -> dict[str, Any]:
    (flow.project / "script.py").write_text(script)
    return {
        "id": "a",
        "uses": "runners.command",
        "out": "out/a",
        "params": {
            "command": '"$PYTHON" script.py',
            "code": ["script.py"],
            "launcher": launcher,
            "rate": 0.5,
        },
        "resources": resources,
    }


def told(folder: Path) -> list[dict[str, Any]]:
    files = [file for file in folder.glob("*.json") if file.stem.isdigit()]
    found = [json.loads(file.read_text()) for file in sorted(files)]
    return [{"world": int(f["WORLD_SIZE"]), **f} for f in found]


def check_two_nodes(found: list[dict[str, Any]]) -> None:
    """Four processes on two nodes have added up 1 + 2 + 3 + 4."""
    assert [f["sum"] for f in found] == [10.0] * 4
    assert [(f["NODE_RANK"], f["LOCAL_RANK"]) for f in found] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert {(f["WORLD_SIZE"], f["NNODES"], f["rate"]) for f in found} == {("4", "2", "0.5")}


# ----------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("params", "resources", "words"),
    [
        ({"launcher": "torchrum"}, {}, "params.launcher: expected one of none, srun, torchrun, "),
        ({"launcher": "torchrum"}, {}, "did you mean 'torchrun'?"),
        ({}, {"nodes": 2}, "2 tasks are asked for, and `launcher: none` runs the command in one"),
        ({"launcher": "none"}, {"tasks_per_node": 4}, "take srun"),
    ],
)
def test_contradictions_are_refused(
    project: Path, params: dict[str, Any], resources: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as found:
        plan(project, command("s", params=params, resources=resources))
    assert words in str(found.value)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_a_launcher_whose_library_is_missing_is_refused(project: Path) -> None:
    with pytest.raises(SpecError, match="torchrun needs torch, which is not installed here"):
        plan(project, command("s", params={"launcher": "torchrun"}))


def test_the_launcher_is_in_the_key_and_no_variable_of_the_command(
    flow: Flow, run_cli: RunCli
) -> None:
    made = flow.step("a", 'test -z "${PARAM_launcher+x}"', params={"launcher": "srun"})
    run_cli("run", flow.write(made))
    del made["params"]["launcher"]
    assert "a" in run_cli("plan", flow.write(made)).stdout
    run_cli("run", flow.file)
    assert flow.executed() == ["a", "a"]


def test_tasks_that_are_not_there_fail_the_step(flow: Flow, run_cli: RunCli) -> None:
    made = flow.step("a", params={"launcher": "srun"}, resources={"nodes": 2})
    run_cli("run", flow.write(made), expect=1)
    assert flow.steps()["a"]["message"].startswith("the step asks for 2 tasks, and runs in 1 (")
    assert flow.executed() == []


# ---------------------------------------------------------------------------------------- torchrun


@needs_torch
@pytest.mark.slow
def test_torchrun_on_this_machine_without_slurm(flow: Flow, run_cli: RunCli) -> None:
    made = step(flow, "torchrun", ALL_REDUCE, tasks_per_node=2)
    run_cli("run", flow.write(made), env={"OMP_NUM_THREADS": "1"})
    assert [f["sum"] for f in told(flow.project / "out/a")] == [3.0, 3.0]


@needs_torch
@pytest.mark.slow
def test_one_torchrun_for_each_node(flow: Flow) -> None:
    ensemble = Ensemble(flow, step(flow, "torchrun", ALL_REDUCE, nodes=2, tasks_per_node=2))
    assert ensemble.wait(120) == [0] * 4, ensemble.said
    check_two_nodes(told(ensemble.result()))


@needs_torch
@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_plain_script_on_two_nodes_of_a_cluster(
    flow: Flow, slurm_cluster: SlurmCluster, launcher: str
) -> None:
    made = step(flow, launcher, ALL_REDUCE, nodes=2, tasks_per_node=2)
    ensemble = Ensemble(flow, made, by_srun=True)
    assert ensemble.wait(180) == [0], ensemble.said
    check_two_nodes(told(ensemble.result()))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs the extra [hf]")
def test_one_accelerate_launch_for_each_node(flow: Flow) -> None:
    ensemble = Ensemble(flow, step(flow, "accelerate", WITH_ACCELERATE, nodes=2, tasks_per_node=2))
    assert ensemble.wait(180) == [0] * 4, ensemble.said
    check_two_nodes(told(ensemble.result()))


@needs_torch
@pytest.mark.slow
def test_a_process_of_torchrun_that_fails_fails_the_step(flow: Flow, run_cli: RunCli) -> None:
    script = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(60)\n"
    run_cli("run", flow.write(step(flow, "torchrun", script, tasks_per_node=2)), expect=1)
    assert flow.steps()["a"]["message"] == "the command exited with 1"


@needs_torch
@pytest.mark.slow
def test_nothing_that_torchrun_started_outlives_the_step(flow: Flow) -> None:
    pids = flow.project / "pids"
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(300)\n"
    )
    made = step(flow, "torchrun", script, tasks_per_node=2)
    driver = Process(flow.project, "run", flow.write(made))
    until(lambda: len(pids_in(pids)) == 2)
    driver.send(signal.SIGTERM)
    # torchrun gives its processes 30 s, and so do we.
    driver._process.wait(180)
    assert alive(pids_in(pids)) == []
    assert flow.states() == {"a": "CANCELLED"}


# --------------------------------------------------------------------------------------------- srun


@pytest.mark.slurm
def test_ranks_that_srun_starts_meet_and_publish_once(
    flow: Flow, slurm_cluster: SlurmCluster
) -> None:
    made = step(flow, "srun", "", nodes=2, tasks_per_node=2)
    made["params"]["command"] = "echo $SLURMD_NODENAME $RANK $NODE_RANK $MASTER_ADDR > $OUT/$RANK"
    ensemble = Ensemble(flow, made, by_srun=True)
    assert ensemble.wait(60) == [0], ensemble.said
    found = [(ensemble.result() / str(rank)).read_text().split() for rank in range(4)]
    assert [words[1:3] for words in found] == [["0", "0"], ["1", "0"], ["2", "1"], ["3", "1"]]
    assert found[0][0] == found[1][0] != found[2][0] == found[3][0]
    assert len({words[3] for words in found}) == 1


@pytest.mark.slurm
def test_a_rank_that_fails_under_srun_is_told_by_its_node(
    flow: Flow, slurm_cluster: SlurmCluster
) -> None:
    made = step(flow, "srun", "", nodes=2, tasks_per_node=1)
    made["params"]["command"] = "test $RANK = 0 || exit 5"
    ensemble = Ensemble(flow, made, by_srun=True)
    assert ensemble.wait(60) == [1], ensemble.said
    message = ensemble.end()["message"]
    assert re.fullmatch("rank 1 on n[1-4]: the command exited with 5", message)
