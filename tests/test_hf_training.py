"""`runners.train` with real tiny models: what it leaves behind, and what it refuses."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import (
    make_task,
    one_thread,
    read_json,
    run_task,
    save_bert,
    save_llama,
    write_jsonl,
    write_splits,
)

from nexa_hpc.core.handlers import Progress
from nexa_hpc.errors import StepError, UserError

pytestmark = pytest.mark.slow

one_thread()

QUICK: dict[str, Any] = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "learning_rate": 5e-3,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, bert: Path, reviews: Path
) -> tuple[Path, list[Progress]]:
    """A checkpoint, and what was told while it was trained."""
    project = tmp_path_factory.mktemp("project")
    told: list[Progress] = []
    inputs = {"model": bert, "dataset": reviews}
    out = run_task(
        make_task("runners.train", project, project / "out", QUICK, inputs, on_progress=told.append)
    )
    return out, told


def train(project: Path, inputs: dict[str, Path], **params: Any) -> Path:
    return run_task(
        make_task("runners.train", project, project / "out", {**QUICK, **params}, inputs)
    )


def test_a_checkpoint_holds_model_tokenizer_state_metrics_curve_and_card(
    trained: tuple[Path, list[Progress]],
) -> None:
    out, _ = trained
    assert {file.name for file in out.iterdir()} >= {
        "model.safetensors", "config.json", "tokenizer.json", "trainer_state.json",
        "training.json", "metrics.json", "curve.png", "README.md",
    }  # fmt: skip
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_holds_no_pickle_and_no_path_of_this_machine(
    trained: tuple[Path, list[Progress]],
) -> None:
    out, _ = trained
    assert not [f for f in out.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    for file in out.iterdir():
        assert str(out.parent).encode() not in file.read_bytes(), file.name


def test_metrics_are_flat_numbers_and_the_model_has_learnt(
    trained: tuple[Path, list[Progress]],
) -> None:
    metrics = read_json(trained[0] / "metrics.json")
    assert all(type(value) in (int, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["train_rows"] == 160
    assert metrics["train_steps"] == 40
    assert metrics["eval_rows"] == 40
    assert metrics["eval_accuracy"] >= 0.9
    assert metrics["train_loss"] < 0.6


def test_transformers_loads_a_checkpoint_with_its_labels(
    trained: tuple[Path, list[Progress]],
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(trained[0])
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_progress_is_told_step_by_step_with_the_loss(
    trained: tuple[Path, list[Progress]],
) -> None:
    _, told = trained
    assert [progress.done for progress in told] == list(range(1, 41))
    assert all(progress.total == 40 for progress in told)
    assert "loss" in told[-1].metrics


def test_the_card_names_model_data_settings_and_results(
    trained: tuple[Path, list[Progress]],
) -> None:
    card = (trained[0] / "README.md").read_text()
    assert "| learning_rate | 0.005 |" in card
    assert "eval_accuracy" in card
    assert "AutoModelForSequenceClassification" in card


def test_the_same_seed_gives_the_same_model(
    trained: tuple[Path, list[Progress]], tmp_path: Path, bert: Path, reviews: Path
) -> None:
    again = train(tmp_path, {"model": bert, "dataset": reviews})
    assert (again / "model.safetensors").read_bytes() == (
        trained[0] / "model.safetensors"
    ).read_bytes()


def test_a_config_file_gives_params_and_those_of_the_step_win(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("max_train_rows: 64\nmax_steps: 7\nlearning_rate: 1e-3\n")
    inputs = {"model": bert, "dataset": reviews, "config": config}
    out = train(tmp_path, inputs, max_steps=2)
    assert read_json(out / "metrics.json")["train_steps"] == 2
    assert read_json(out / "training.json")["max_train_rows"] == 64


def test_a_global_batch_is_reached_by_accumulating_gradients(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    out = train(
        tmp_path,
        {"model": bert, "dataset": reviews},
        global_batch_size=32,
        per_device_train_batch_size=4,
        num_train_epochs=1,
    )
    assert read_json(out / "metrics.json")["train_steps"] == 160 / 32


def test_a_global_batch_that_devices_cannot_share_is_refused(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    with pytest.raises(UserError, match="30 is not divisible by 4"):
        train(
            tmp_path,
            {"model": bert, "dataset": reviews},
            global_batch_size=30,
            per_device_train_batch_size=4,
        )


def test_another_number_of_devices_than_planned_is_refused(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    with pytest.raises(StepError, match="planned for 4 devices, started on 1"):
        train(tmp_path, {"model": bert, "dataset": reviews}, world_size=4)


def test_a_model_with_another_hash_is_refused_before_training(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    with pytest.raises(StepError, match=r"has SHA-256 .* as `model_sha256` says"):
        train(tmp_path, {"model": bert, "dataset": reviews}, model_sha256="0" * 64)


def test_a_model_in_a_pickle_is_refused_unless_allowed(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    import safetensors.torch
    import torch

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in bert.iterdir():
        if file.name != "model.safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(
        safetensors.torch.load_file(bert / "model.safetensors"), pickled / "pytorch_model.bin"
    )
    inputs = {"model": pickled, "dataset": reviews}
    with pytest.raises(StepError) as refused:
        train(tmp_path, inputs, max_steps=1)
    assert "allow_pickle" in str(refused.value.hint)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    assert train(allowed, inputs, max_steps=1, allow_pickle=True).is_dir()


def test_values_that_transformers_refuses_are_told_in_its_words(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    with pytest.raises(UserError, match=r"refuses these params: .*SchedulerType"):
        train(tmp_path, {"model": bert, "dataset": reviews}, lr_scheduler_type="zigzag")


def test_a_diverged_training_fails_and_says_so(tmp_path: Path, bert: Path, reviews: Path) -> None:
    with pytest.raises(StepError, match="diverged"):
        train(
            tmp_path,
            {"model": bert, "dataset": reviews},
            learning_rate=1e30,
            max_grad_norm=0.0,
            logging_nan_inf_filter=False,
            eval_strategy="no",
        )


def test_a_dataset_without_validation_rows_is_trained_on_without_evaluation(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    inputs = {"model": bert, "dataset": reviews / "train.jsonl"}
    metrics = read_json(train(tmp_path, inputs, max_steps=2) / "metrics.json")
    assert not [name for name in metrics if name.startswith("eval")]


def test_the_best_model_can_be_kept(tmp_path: Path, bert: Path, reviews: Path) -> None:
    out = train(
        tmp_path,
        {"model": bert, "dataset": reviews},
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        num_train_epochs=3,
        save_total_limit=1,
    )
    assert read_json(out / "trainer_state.json")["best_model_checkpoint"] is None
    assert read_json(out / "metrics.json")["eval_accuracy"] >= 0.9


def test_a_language_model_trains_on_text_without_labels(
    tmp_path: Path, llama: Path, reviews: Path
) -> None:
    from hf_tiny import read_jsonl
    from transformers import AutoModelForCausalLM

    for split in ("train", "validation"):
        rows = [{"text": row["text"]} for row in read_jsonl(reviews / f"{split}.jsonl")]
        write_jsonl(tmp_path / "texts" / f"{split}.jsonl", rows)
    out = train(tmp_path, {"model": llama, "dataset": tmp_path / "texts"}, num_train_epochs=6)
    metrics = read_json(out / "metrics.json")
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["eval_perplexity"] < 20
    assert read_json(out / "training.json")["task"] == "causal_lm"
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 23


def test_a_lora_training_saves_an_adapter_that_names_its_base(
    tmp_path: Path, bert: Path, reviews: Path
) -> None:
    pytest.importorskip("peft", reason="needs the extra [hf]")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    out = train(tmp_path, {"model": bert, "dataset": reviews}, lora=lora)
    names = {file.name for file in out.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    base = read_json(out / "base_model.json")
    assert re.fullmatch("[0-9a-f]{64}", base["sha256"])


def test_a_merged_lora_is_a_model_of_its_own(tmp_path: Path, bert: Path, reviews: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra [hf]")
    from transformers import AutoModelForSequenceClassification

    lora = {"r": 4, "target_modules": ["query", "value"], "merge": True}
    out = train(tmp_path, {"model": bert, "dataset": reviews}, lora=lora)
    assert not (out / "adapter_config.json").exists()
    names = set(AutoModelForSequenceClassification.from_pretrained(out).state_dict())
    assert not [name for name in names if "lora" in name]
