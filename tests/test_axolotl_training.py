"""A training with `backend: axolotl`: started, followed, stopped, resumed, published.

Axolotl is a stand-in here; `test_axolotl_real.py` has the real one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import axolotl_stand_in
import pytest
import yaml
from flows import alive, until
from hf_tiny import make_task, read_json, run_task, write_jsonl

from nexa_hpc.core.checkpoints import newest
from nexa_hpc.core.handlers import Progress, Task
from nexa_hpc.errors import CommandError, StepError
from nexa_hpc.worker import stop_on_sigterm

PARAMS: dict[str, Any] = {"datasets": [{"type": "x"}], "max_steps": 4, "save_steps": 2}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    for name, value in axolotl_stand_in.install(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def task(tmp_path: Path, name: str = "out", **params: Any) -> Task:
    model = tmp_path / "models/base"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.safetensors").write_text("base")
    write_jsonl(tmp_path / "data/train.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "data/validation.jsonl", [{"text": "b"}])
    inputs = {"model": model, "dataset": tmp_path / "data"}
    made = make_task("runners.train", tmp_path, tmp_path / name, {**PARAMS, **params}, inputs)
    return replace(made, backend="axolotl")


def test_axolotl_is_given_the_inputs_and_no_telemetry(tmp_path: Path, stand_in: Path) -> None:
    run_task(task(tmp_path, test_datasets=[{"type": "x"}]))
    seen: Any = axolotl_stand_in.seen(stand_in)
    assert seen["argv"][2:] == ["--launcher", "python"]
    assert seen["track"] == "1"
    config = seen["config"]
    assert config["base_model"] == str(tmp_path / "models/base")
    assert config["datasets"][0]["path"] == str(tmp_path / "data/train.jsonl")
    assert config["test_datasets"][0]["path"] == str(tmp_path / "data/validation.jsonl")
    assert config["dynamic_checkpoint"]["enabled"] is True
    assert "resume_from_checkpoint" not in config


def fetched(hub: Path, kind: str, name: str, commit: str, *refs: str) -> Path:
    """Put a snapshot into `hub`, and return its folder."""
    place = hub / f"{kind}s--{name.replace('/', '--')}"
    folder = place / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (place / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (place / "refs" / ref).write_text(commit)
    return folder


ROWS: dict[str, Any] = {
    "model": "org/base",
    "dataset": "org/rows",
    "test_dataset": "org/tests",
    "tokenizer_config": "org/tok",
    "lora_model_dir": "org/lora",
    "datasets": [
        {"type": "x"},
        {"type": "x", "path": "org/more", "revision": "v1", "data_files": ["a.csv"]},
        {"type": "x", "path": "org/away"},
    ],
    "test_datasets": [{"type": "x", "revision": "v1"}],
    "pretraining_dataset": "org/rows",
}


def from_hub(tmp_path: Path, **params: Any) -> Task:
    made = task(tmp_path, **{**ROWS, **params})
    revisions = {"model": "1" * 40, "dataset": "2" * 40}
    return replace(made, inputs={}, revisions=revisions)


def test_axolotl_without_a_hub_is_given_the_folders_of_what_it_would_not_find_by_its_name(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    rows = fetched(hub, "dataset", "org/rows", "2" * 40)
    newer = fetched(hub, "dataset", "org/rows", "3" * 40, "main")
    tests = fetched(hub, "dataset", "org/tests", "4" * 40, "v1")
    more = fetched(hub, "dataset", "org/more", "5" * 40, "v1")
    tokens = fetched(hub, "model", "org/tok", "6" * 40, "main")
    out = run_task(from_hub(tmp_path))
    config: Any = axolotl_stand_in.seen(stand_in)["config"]
    paths = [entry["path"] for entry in config["datasets"] + config["test_datasets"]]
    assert paths == [str(rows), str(more), "org/away", str(tests)]
    assert config["datasets"][1]["data_files"] == [str(more / "a.csv")]
    assert config["datasets"][1]["ds_type"] == "csv"
    assert config["pretraining_dataset"] == str(newer)
    assert config["tokenizer_config"] == str(tokens)
    # Found in the hub's cache by their names.
    assert (config["base_model"], config["revision_of_model"]) == ("org/base", "1" * 40)
    assert config["lora_model_dir"] == "org/lora"
    shown = yaml.safe_load((out / "axolotl.yaml").read_text())
    assert str(hub) not in str(shown)
    assert [entry["path"] for entry in shown["datasets"]] == ["org/rows", "org/more", "org/away"]


def test_axolotl_with_a_hub_is_given_names_at_the_revisions_of_the_plan(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    out = run_task(from_hub(tmp_path, tokenizer_config="org/base"))
    config: Any = axolotl_stand_in.seen(stand_in)["config"]
    assert config["datasets"][0] == {"path": "org/rows", "revision": "2" * 40, "type": "x"}
    assert config["test_datasets"] == [{"path": "org/tests", "revision": "v1", "type": "x"}]
    assert config["revision_of_model"] == "1" * 40
    assert read_json(out / "training.json")["model_revision"] == "1" * 40


@pytest.mark.parametrize("pin", [{}, {"revision_of_model": "v1"}, {"model_revision": "v1"}])
def test_only_a_declared_revision_is_asked_for_the_tokenizer_of_another_model(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, pin: dict[str, str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    out = run_task(from_hub(tmp_path, **pin))
    config: Any = axolotl_stand_in.seen(stand_in)["config"]
    declared = {n: v for n, v in config.items() if n in ("revision_of_model", "model_revision")}
    assert declared == pin
    told = read_json(out / "training.json")["model_revision"]
    assert told == ("v1" if pin else None)  # It takes the newest.


def test_the_artifact_holds_weights_figures_and_no_path_of_the_machine(
    tmp_path: Path, stand_in: Path
) -> None:
    out = run_task(task(tmp_path, adapter="lora"))
    names = {file.name for file in out.iterdir()}
    assert {"adapter_model.safetensors", "axolotl.yaml", "curve.csv", "tokenizer.json"} <= names
    assert not names & {"training_args.bin", "debug.log", "README.md", "optimizer.pt"}
    metrics = read_json(out / "metrics.json")
    assert metrics["train_steps"] == 4
    assert metrics["train_loss"] == pytest.approx(7.5)
    assert read_json(out / "base_model.json")["model"] == "models/base"
    assert len((out / "curve.csv").read_text().splitlines()) == 5
    for file in out.glob("*.*"):
        if file.suffix != ".png":
            assert str(tmp_path) not in file.read_text(), file.name
            assert "/machine" not in file.read_text(), file.name


def test_merge_publishes_the_merged_weights(tmp_path: Path, stand_in: Path) -> None:
    out = run_task(task(tmp_path, adapter="lora", merge=True))
    assert (out / "model.safetensors").read_text() == "merged"
    assert (out / "config.json").exists()
    left_out = ("adapter_config.json", "meta.json", "COMPLETE", "base_model.json")
    assert not any((out / name).exists() for name in left_out)
    assert "merge" not in axolotl_stand_in.seen(stand_in, "merge-lora")["config"]  # type: ignore[operator]


def test_steps_and_loss_are_told_while_it_trains(
    tmp_path: Path, stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[Progress] = []
    run_task(replace(task(tmp_path), on_progress=told.append))
    assert (told[-1].done, told[-1].total) == (4, 4)
    assert told[-1].metrics["loss"] == 6.0
    printed = capfd.readouterr().out
    assert "'loss': '6.0'" in printed
    assert "4/4 [" not in printed


def test_a_failure_is_told_with_its_exit_code(tmp_path: Path, stand_in: Path) -> None:
    with pytest.raises(CommandError, match="axolotl exited with 3"):
        run_task(task(tmp_path, fail_at=2))


def test_a_diverged_training_is_no_result(tmp_path: Path, stand_in: Path) -> None:
    main = stand_in / "axolotl/cli/main.py"
    main.write_text(main.read_text().replace("10.0 - step", "float('nan')"))
    with pytest.raises(StepError, match="diverged"):
        run_task(task(tmp_path))


def at_step(step: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    done = threading.Event()

    def look(progress: Progress) -> None:
        if progress.done >= step and not done.is_set():
            done.set()
            act()

    return look


def test_asked_to_stop_it_saves_the_step_at_hand_and_the_next_attempt_goes_on(
    tmp_path: Path, stand_in: Path
) -> None:
    stopped = task(tmp_path, "stopped", max_steps=500, step_s=0.02)
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm(once=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_task(
                replace(
                    stopped, on_progress=at_step(20, lambda: os.kill(os.getpid(), signal.SIGTERM))
                )
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    until(lambda: not alive([int((stand_in / "pid").read_text())]), "axolotl ends")
    sealed = newest([stopped.work_dir])
    assert sealed is not None
    resumed = replace(task(tmp_path, "resumed", max_steps=500), resume=sealed)
    out = run_task(resumed)
    config: Any = axolotl_stand_in.seen(stand_in)["config"]
    assert int(config["resume_from_checkpoint"].rpartition("-")[2]) >= 20
    assert read_json(out / "metrics.json")["train_steps"] == 500
    assert len((out / "curve.csv").read_text().splitlines()) == 501


def test_one_resumed_from_its_last_step_has_the_figures_of_all(
    tmp_path: Path, stand_in: Path
) -> None:
    first = task(tmp_path)
    run_task(first)
    again = replace(task(tmp_path, "again"), resume=newest([first.work_dir]))
    assert read_json(run_task(again) / "metrics.json")["train_loss"] == pytest.approx(7.5)


def test_a_checkpoint_with_no_step_left_is_not_resumed_from(tmp_path: Path, stand_in: Path) -> None:
    main = stand_in / "axolotl/cli/main.py"
    main.write_text(
        main.read_text().replace('"global_step": step,', '"global_step": step, "max_steps": total,')
    )
    first = task(tmp_path)
    run_task(first)
    again = replace(task(tmp_path, "again"), resume=newest([first.work_dir]))
    run_task(again)
    config: Any = axolotl_stand_in.seen(stand_in)["config"]
    assert config["resume_from_checkpoint"].endswith("checkpoint-2")


def test_sigterm_for_every_process_of_a_job_does_not_end_axolotl_before_it_has_saved(
    tmp_path: Path, stand_in: Path
) -> None:
    def hit() -> None:
        os.kill(int((stand_in / "pid").read_text()), signal.SIGTERM)

    out = run_task(replace(task(tmp_path, step_s=0.05), on_progress=at_step(2, hit)))
    assert read_json(out / "metrics.json")["train_steps"] == 4


def test_a_config_that_another_step_made_is_checked_before_anything_starts(
    tmp_path: Path, stand_in: Path
) -> None:
    (tmp_path / "axo.yml").write_text("datasets: [{type: x}]\nmax_stpes: 4\noutput_dir: x\n")
    made = task(tmp_path)
    made = replace(made, params={}, inputs={**made.inputs, "config": tmp_path / "axo.yml"})
    with pytest.raises(StepError) as error:
        run_task(made)
    assert "did you mean 'max_steps'?" in str(error.value)
    assert "output_dir: cannot be set" in str(error.value)
    assert not (stand_in / "train.json").exists()


def test_one_task_on_a_node_starts_a_process_for_each_gpu(tmp_path: Path, stand_in: Path) -> None:
    run_task(replace(task(tmp_path), resources={"tasks_per_node": 1, "gpus_per_node": 2}))
    assert "--nproc-per-node=2" in axolotl_stand_in.seen(stand_in)["argv"]  # type: ignore[operator]


def test_several_processes_are_started_by_torchrun(tmp_path: Path, stand_in: Path) -> None:
    made = replace(task(tmp_path), resources={"gpus_per_node": 2})
    run_task(made)
    argv: Any = axolotl_stand_in.seen(stand_in)["argv"]
    assert argv[2:5] == ["--launcher", "torchrun", "--"]
    assert "--nproc-per-node=2" in argv
    assert "--no-python" not in argv
