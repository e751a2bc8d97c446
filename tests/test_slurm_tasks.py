"""Steps of several tasks and of environments of their own, handed over to a real cluster."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_attempts import settle_unpaused
from slurm_fixtures import wait_until
from slurm_flows import SlurmFlow
from test_launchers import ALL_REDUCE, check_two_nodes, told

pytestmark = pytest.mark.slurm

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the extra [hf]"
)
FOUR_TASKS = {"nodes": 2, "tasks_per_node": 2, "cpus_per_task": 1}


def test_a_step_runs_in_its_environment_on_a_node(slurm_flow: SlurmFlow, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    tell = '"$PYTHON" -c "import sys; print(sys.prefix)" > $OUT/x; echo $GREETING >> $OUT/x'
    env = {
        "venv": str(venv),
        "setup": 'unset PYTHONPATH; test -n "$SLURM_JOB_ID"; export GREETING="$WORD you"',
        "variables": {"WORD": "hello"},
    }
    bad = slurm_flow.step("b", env={"setup": "test -e /nowhere"}, after=[])
    slurm_flow.write(slurm_flow.step("a", tell, out="out/a", env=env), bad)
    slurm_flow.submit()
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "FAILED"}
    assert (slurm_flow.project / "out/a/x").read_text() == f"{venv}\nhello you\n"
    assert slurm_flow.status()["b"]["message"] == (
        "its environment could not be entered: env.setup: exit code 1 from: test -e /nowhere"
    )


def test_an_environment_that_the_login_node_lacks_is_warned_of(slurm_flow: SlurmFlow) -> None:
    step = slurm_flow.step("a", env={"venv": "/scratch/of/nodes/venv"})
    step["scheduler"] = "slurm"
    told_ = slurm_flow.cli("plan", slurm_flow.write(step)).stderr
    assert "env.venv: there is no interpreter /scratch/of/nodes/venv/bin/python" in told_


def test_each_of_four_tasks_runs_the_command_and_one_result_is_published(
    slurm_flow: SlurmFlow,
) -> None:
    command = "echo $SLURMD_NODENAME $RANK $LOCAL_RANK $WORLD_SIZE > $OUT/$RANK"
    step = slurm_flow.step(
        "a", command, out="out/a", params={"launcher": "srun"}, resources=FOUR_TASKS
    )
    below = slurm_flow.step("b", "cat $IN_a/*", **{"in": {"a": "out/a"}})
    slurm_flow.write(step, below)
    slurm_flow.submit()
    assert slurm_flow.settle() == {"a": "COMPLETED", "b": "COMPLETED"}
    lines = [(slurm_flow.project / f"out/a/{rank}").read_text().split() for rank in range(4)]
    assert [line[1:] for line in lines] == [[str(rank), str(rank % 2), "4"] for rank in range(4)]
    assert lines[0][0] == lines[1][0] != lines[2][0] == lines[3][0]


def test_a_task_that_fails_fails_the_step_in_its_own_words(slurm_flow: SlurmFlow) -> None:
    step = slurm_flow.step(
        "a", "test $RANK != 3 || exit 9", params={"launcher": "srun"}, resources=FOUR_TASKS
    )
    slurm_flow.write(step)
    slurm_flow.submit()
    assert slurm_flow.settle() == {"a": "FAILED"}
    message = slurm_flow.status()["a"]["message"]
    assert message.startswith("rank 3 on n")
    assert message.endswith(": the command exited with 9")


@needs_torch
@pytest.mark.slow
def test_a_plain_script_under_torchrun_on_two_nodes(slurm_flow: SlurmFlow) -> None:
    (slurm_flow.project / "script.py").write_text(ALL_REDUCE)
    params = {"code": ["script.py"], "launcher": "torchrun", "rate": 0.5}
    step = slurm_flow.step(
        "a", '"$PYTHON" script.py', out="out/a", params=params, resources=FOUR_TASKS
    )
    slurm_flow.write(step)
    slurm_flow.submit()
    assert slurm_flow.settle(180) == {"a": "COMPLETED"}
    check_two_nodes(told(slurm_flow.project / "out/a"))


@needs_torch
@pytest.mark.slow
def test_a_training_on_two_nodes_ends_at_its_time_limit_and_goes_on(slurm_flow: SlurmFlow) -> None:
    pytest.importorskip("transformers", reason="needs the extra [hf]")
    from hf_tiny import save_bert, write_splits

    save_bert(slurm_flow.project / "bert")
    write_splits(slurm_flow.project / "rows")
    params: dict[str, Any] = {
        "model": "bert",
        "dataset": "rows",
        "global_batch_size": 32,
        "num_train_epochs": 100,
        "eval_strategy": "no",
        "use_cpu": True,
    }
    step = {
        "id": "train",
        "uses": "runners.train",
        "out": "out/train",
        "params": params,
        "resources": {**FOUR_TASKS, "timeout_min": 10},
    }
    slurm_flow.write(step)
    slurm_flow.submit()
    work = slurm_flow.project / ".nexa_state/work"
    job = slurm_flow.jobs()["train"]
    wait_until(lambda: bool(list(work.glob("*/*/1/sealed/*.json"))), 180, "a checkpoint")
    # What Slurm sends when the limit is near.
    slurm_flow.cluster.ask("scancel", "--signal=USR2", job)
    assert settle_unpaused(slurm_flow, "train", 240) == {"train": "COMPLETED"}
    assert "from checkpoint-" in slurm_flow.cli("logs", "train").stdout
    state = json.loads((slurm_flow.project / "out/train/trainer_state.json").read_text())
    assert state["global_step"] == 500
