"""Axolotl itself, on a tiny model: trained, merged, stopped and resumed, also by Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axolotl_stand_in import REAL, needs_axolotl
from conftest import RunCli

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from flows import Process, alive
from hf_tiny import read_json, save_llama, sentences, write_jsonl

if TYPE_CHECKING:
    from slurm_flows import SlurmFlow

pytestmark = [pytest.mark.slow, needs_axolotl]

PARAMS: dict[str, Any] = {
    "datasets": [{"type": "completion", "field": "text"}],
    "test_datasets": [{"type": "completion", "field": "text"}],
    "sequence_len": 32,
    "sample_packing": False,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_mlp_kernel": False,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 6,
    "save_steps": 3,
    "eval_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "attn_implementation": "sdpa",
    "gradient_checkpointing": False,
    "dataset_num_proc": 1,
    "seed": 13,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(project: Path, **params: Any) -> Path:
    save_llama(project / "model")
    write_jsonl(project / "data/train.jsonl", sentences(60, 1))
    write_jsonl(project / "data/validation.jsonl", sentences(10, 2))
    step = {
        "id": "train",
        "uses": "runners.train",
        "backend": "axolotl",
        "in": {"model": "model", "dataset": "data"},
        "out": "artifacts/trained",
        "env": {"venv": REAL},
        "params": {**PARAMS, **params},
    }
    file = project / "flow.yaml"
    file.write_text(json.dumps({"pipeline": {"name": "flow", "steps": [step]}}))
    return file


def steps_logged(project: Path) -> list[int]:
    lines = (project / "artifacts/trained/curve.csv").read_text().splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines if line.split(",")[2]]


def test_a_tiny_training_gives_an_adapter_and_its_figures(project: Path, run_cli: RunCli) -> None:
    run_cli("run", write(project))
    out = project / "artifacts/trained"
    assert (out / "adapter_model.safetensors").is_file()
    assert (out / "tokenizer.json").is_file()
    metrics = read_json(out / "metrics.json")
    assert metrics["train_steps"] == 6
    assert metrics["eval_loss"] < 4
    assert steps_logged(project) == [1, 2, 3, 4, 5, 6]
    for file in out.iterdir():
        if file.suffix in (".json", ".yaml", ".csv") and file.name != "tokenizer.json":
            assert str(project) not in file.read_text(), file.name


def test_merged_weights_are_those_of_a_whole_model(project: Path, run_cli: RunCli) -> None:
    from transformers import AutoModelForCausalLM

    run_cli("run", write(project, merge=True))
    out = project / "artifacts/trained"
    assert not (out / "adapter_config.json").exists()
    trained, base = (AutoModelForCausalLM.from_pretrained(at) for at in (out, project / "model"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not trained.state_dict()[name].equal(base.state_dict()[name])


def test_axolotls_own_schema_is_asked_at_planning(project: Path, run_cli: RunCli) -> None:
    told = run_cli("plan", write(project, learning_rte=1, sample_packing="no way"), expect=2).stderr
    assert "did you mean 'learning_rate'?" in told
    assert "params.sample_packing" in told


def test_a_training_stopped_by_ctrl_c_goes_on_where_it_was(project: Path, run_cli: RunCli) -> None:
    running = Process(project, "run", write(project, max_steps=4000, save_steps=4000))
    log = project / ".nexa_state/flow/runs/flow-1/logs/train.1.log"
    wait_for(lambda: log.exists() and "'loss'" in log.read_text())
    running.interrupt()
    running._process.wait(120)
    assert "is sealed" in log.read_text()
    assert axolotls(project) == []
    resumed = Process(project, "resume", "flow-1")
    second = project / ".nexa_state/flow/runs/flow-1/logs/train.2.log"
    wait_for(lambda: second.exists() and "'loss'" in second.read_text())
    assert "resuming from step" in second.read_text()
    resumed.interrupt()
    resumed._process.wait(120)
    assert axolotls(project) == []


def wait_for(holds: Any, seconds: float = 240) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def axolotls(project: Path) -> list[int]:
    """Return the processes of axolotl that train in `project`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"axolotl.cli" in words and str(project).encode() in words:
            found.append(int(folder.name))
    return alive(found)


@pytest.mark.slurm
@pytest.mark.parametrize("how", ["requeued", "killed"])
def test_a_training_in_slurm_goes_on_from_its_checkpoint(slurm_flow: SlurmFlow, how: str) -> None:
    project = slurm_flow.project
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    slurm_flow.configure(policy="retry: {exception: 1, out_of_memory: {times: 1, mem_factor: 1}}\n")
    slurm_flow.named("flow")
    write(project, max_steps=600, save_steps=50, logging_steps=10)
    slurm_flow.submit()
    work = project / ".nexa_state/work"
    wait_for(lambda: any(work.glob("*/*/1/sealed/*.json")))
    (pid, *_) = axolotls(project)
    job = slurm_flow.jobs()["train"]
    if how == "requeued":
        slurm_flow.cluster.ask("scontrol", "requeue", job)
    else:
        os.kill(pid, signal.SIGKILL)
    assert slurm_flow.settle(400) == {"train": "COMPLETED"}
    assert axolotls(project) == []
    logs = "".join(p.read_text() for p in project.glob(".nexa_state/flow/runs/*/logs/train.*.log"))
    assert "resuming from step" in logs
    assert steps_logged(project) == list(range(10, 601, 10))
    shutil.rmtree(project / "model")
