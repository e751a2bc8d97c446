"""`runners.train` in several processes: the training of one, stopped and resumed together."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from ensembles import Ensemble
from flows import Flow, until
from hf_tiny import make_task, read_json, run_task, save_bert, write_splits
from slurm_fixtures import SlurmCluster

from nexa_hpc.core.checkpoints import newest

pytestmark = pytest.mark.slow

TRAINING: dict[str, Any] = {
    "num_train_epochs": 3,
    "global_batch_size": 32,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "use_cpu": True,
}
"""160 rows: five whole batches in each epoch, whoever shares them."""


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def training(flow: Flow, nodes: int, each: int, **params: Any) -> dict[str, Any]:
    model = save_bert(flow.project / "bert")
    config = read_json(model / "config.json")
    # What is dropped is drawn by each process for itself.
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    write_splits(flow.project / "rows")
    return {
        "id": "train",
        "uses": "runners.train",
        "params": {**TRAINING, "model": "bert", "dataset": "rows", **params},
        "resources": {"nodes": nodes, "tasks_per_node": each},
    }


def losses(folder: Path) -> list[float]:
    history = read_json(folder / "trainer_state.json")["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def alone(flow: Flow, tmp_path: Path) -> Path:
    inputs = {"model": flow.project / "bert", "dataset": flow.project / "rows"}
    return run_task(make_task("runners.train", tmp_path, tmp_path / "alone", TRAINING, inputs))


def check_same(ensemble: Ensemble, one: Path) -> None:
    many = ensemble.result()
    assert len(losses(one)) == 15
    assert losses(one)[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses(many) == pytest.approx(losses(one), abs=1e-3)
    metrics = [read_json(folder / "metrics.json") for folder in (one, many)]
    assert metrics[1]["eval_loss"] == pytest.approx(metrics[0]["eval_loss"], abs=1e-3)
    assert (many / "COMPLETE").exists()
    assert not [file for file in many.iterdir() if "rank" in file.name or file.suffix == ".pth"]


def test_two_nodes_of_two_processes_train_as_one_does(flow: Flow, tmp_path: Path) -> None:
    ensemble = Ensemble(flow, training(flow, 2, 2))
    assert ensemble.wait(240) == [0] * 4, ensemble.said
    assert "x 4" in ensemble.said[0]
    check_same(ensemble, alone(flow, tmp_path))


@pytest.mark.slurm
def test_two_nodes_of_a_cluster_train_as_one_process_does(
    flow: Flow, tmp_path: Path, slurm_cluster: SlurmCluster
) -> None:
    ensemble = Ensemble(flow, training(flow, 2, 2), by_srun=True)
    assert ensemble.wait(300) == [0], ensemble.said
    check_same(ensemble, alone(flow, tmp_path))


def test_sigterm_at_one_rank_stops_all_at_the_same_step_and_they_resume_together(
    flow: Flow, tmp_path: Path
) -> None:
    made = training(flow, 1, 2, num_train_epochs=60)
    ensemble = Ensemble(flow, made)
    work = ensemble.run.paths.work_of(ensemble.instance.key) / "1"
    until(lambda: newest([work]) is not None, "a first checkpoint")
    ensemble.processes[1].send_signal(signal.SIGTERM)
    assert ensemble.wait(120) == [130, 130], ensemble.said
    assert ensemble.end()["state"] == "CANCELLED"
    sealed = newest([work])
    assert sealed is not None
    assert {f.name for f in sealed.path.glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    again = Ensemble(flow, made, attempt=2)
    assert again.wait(240) == [0, 0], again.said
    assert f"from {sealed.path.name}" in again.said[0]
    assert len(losses(again.result())) == 300


def test_a_sigterm_that_comes_while_the_ranks_agree_is_heeded_after_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    import transformers

    from nexa_hpc.backends.hf.callbacks import StopOnRequest

    stop, control = StopOnRequest(), transformers.TrainerControl()
    stop._group = "all of them"
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: stop.request())
    stop.on_step_end(None, None, control)
    assert not control.should_training_stop
    stop.on_step_end(None, None, control)
    assert control.should_training_stop and control.should_save and stop.stopping


def test_a_rank_that_fails_in_training_is_named(flow: Flow) -> None:
    made = training(flow, 1, 2, num_train_epochs=60)
    (flow.project / "steps.py").write_text(
        "from nexa_hpc.runners.train import handler\n"
        "import os\n"
        "def work(task, ranks):\n"
        "    import transformers\n"
        "    class Fails(transformers.TrainerCallback):\n"
        "        def on_step_end(self, args, state, control, **_):\n"
        "            if ranks.rank == 1 and state.global_step == 3: raise ValueError('odd')\n"
        "    from nexa_hpc.backends.hf import callbacks\n"
        "    callbacks.Report.on_step_end = lambda self, *a, **k: Fails().on_step_end(*a, **k)\n"
        "    handler.run(task)\n"
        "work.input_params = {'model': 'path', 'dataset': 'path'}\n"
    )
    ensemble = Ensemble(flow, {**made, "uses": "steps:work"})
    assert ensemble.wait(120)[1] == 1
    end = ensemble.end()
    assert end["state"] == "FAILED"
    assert end["message"].endswith(": ValueError: odd")
    assert end["message"].startswith("rank 1 on ")
