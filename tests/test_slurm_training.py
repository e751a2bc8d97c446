"""A training in Slurm that is preempted, or reaches its time limit, goes on to the same model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import read_json, save_bert, write_splits
from slurm_attempts import (
    assert_one_result,
    attempts,
    ends,
    preempt,
    unpause,
    wait_for_start,
    work_of,
)
from slurm_fixtures import wait_until
from slurm_flows import SlurmFlow

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def training(flow: SlurmFlow, epochs: int, **fields: Any) -> dict[str, Any]:
    """Return a step that trains a tiny encoder, with 20 optimizer steps in an epoch."""
    inputs = {
        "model": save_bert(flow.project / "models/bert").relative_to(flow.project),
        "dataset": write_splits(flow.project / "data/reviews").relative_to(flow.project),
    }
    params = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "use_cpu": True,
    }
    step = {"id": "train", "uses": "runners.train", "backend": "hf", "out": "out/train"}
    return {**step, "in": {name: str(path) for name, path in inputs.items()}, "params": params} | (
        fields
    )


def wait_for_seal(flow: SlurmFlow, number: int) -> None:
    """Return when attempt `number` has sealed a checkpoint."""
    seals = work_of(flow, "train") / str(number) / "sealed"
    wait_until(lambda: list(seals.glob("*.json")), 90, f"a checkpoint in {seals}")


def assert_learned_without_a_gap(out: Path, epochs: int) -> None:
    """Assert that every epoch is in the history once, as if nobody had stopped the training."""
    history = read_json(out / "trainer_state.json")["log_history"]
    evaluated = [log["epoch"] for log in history if "eval_loss" in log]
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == epochs
    assert read_json(out / "trainer_state.json")["global_step"] == epochs * 20


def test_a_preempted_training_goes_on_from_its_checkpoint(slurm_flow: SlurmFlow) -> None:
    never = {"node_fail": 0, "exception": 0}
    slurm_flow.write(training(slurm_flow, 60, resources={"exclusive": True}, retry=never))
    slurm_flow.submit()
    job = wait_for_start(slurm_flow, "train")
    wait_for_seal(slurm_flow, 1)
    preempt(slurm_flow, job)
    assert slurm_flow.settle(180) == {"train": "COMPLETED"}
    assert ends(slurm_flow, "train") == [("PENDING", "node_fail"), ("COMPLETED", None)]
    assert_learned_without_a_gap(assert_one_result(slurm_flow, "train"), 60)
    log = slurm_flow.cli("logs", "train", "flow-1").stdout
    assert re.search(r"resum|going on|checkpoint-\d+", log, re.IGNORECASE), log


def test_a_training_that_is_told_of_its_time_limit_twice_finishes(slurm_flow: SlurmFlow) -> None:
    # By the signal that Slurm sends before the limit: a minute, the least one, is little to load
    # torch in on a busy machine.
    never = {"timeout": 0, "node_fail": 0, "exception": 0}
    slurm_flow.write(training(slurm_flow, 60, retry=never))
    slurm_flow.submit()
    for number in (1, 2):
        job = wait_for_start(slurm_flow, "train", number)
        wait_for_seal(slurm_flow, number)
        slurm_flow.cluster.ask("scancel", "--signal=USR2", job)
        unpause(slurm_flow, job)
    assert slurm_flow.settle(180) == {"train": "COMPLETED"}
    saved = ("PENDING", "timeout")
    assert ends(slurm_flow, "train") == [saved, saved, ("COMPLETED", None)]
    assert_learned_without_a_gap(assert_one_result(slurm_flow, "train"), 60)
    assert len({attempt.job for attempt in attempts(slurm_flow, "train")}) == 1
