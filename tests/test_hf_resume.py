"""A training that is killed or stopped goes on from its sealed checkpoint, to the same end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import make_task, one_thread, read_json, run_task, save_bert, write_splits

from nexa_hpc.core.checkpoints import Checkpoint, newest
from nexa_hpc.core.handlers import Progress
from nexa_hpc.errors import Interrupted

pytestmark = pytest.mark.slow

one_thread()

PARAMS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "use_cpu": True,
}
STEPS = 40


class Killed(BaseException):
    """Ends a training as abruptly as a killed process, for what it leaves on disk."""


class Trainings:
    """Trainings of one model on one dataset, in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = {
            "model": save_bert(folder / "bert"),
            "dataset": write_splits(folder / "data"),
        }

    def run(
        self,
        name: str,
        resume: Checkpoint | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        **params: Any,
    ) -> Path:
        task = make_task(
            "runners.train",
            self.folder,
            self.folder / name,
            {**PARAMS, **params},
            self.inputs,
            resume=resume,
            on_progress=on_progress,
        )
        return run_task(task)

    def work_dir(self, name: str) -> Path:
        return self.folder / f"{name}.work"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="module")
def uninterrupted(trainings: Trainings) -> Path:
    return trainings.run("uninterrupted")


def at_step(step: int, action: Callable[[], None]) -> Callable[[Progress], None]:
    def act(progress: Progress) -> None:
        if progress.done == step:
            action()

    return act


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def losses(out: Path) -> dict[int, float]:
    history = read_json(out / "trainer_state.json")["log_history"]
    return {log["step"]: log["loss"] for log in history if "loss" in log}


def assert_same_result(out: Path, expected: Path) -> None:
    same = pytest.approx(read_json(expected / "metrics.json"), abs=1e-4)
    measured = read_json(out / "metrics.json")
    measured["train_runtime_s"] = read_json(expected / "metrics.json")["train_runtime_s"]
    assert measured == same
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_a_killed_training_resumes_to_the_same_model_and_the_same_losses(
    trainings: Trainings, uninterrupted: Path
) -> None:
    with pytest.raises(Killed):
        trainings.run("killed", on_progress=at_step(27, kill))
    checkpoint = newest([trainings.work_dir("killed")])
    assert checkpoint is not None
    assert checkpoint.path.name == "checkpoint-24"
    told: list[Progress] = []
    out = trainings.run("resumed", resume=checkpoint, on_progress=told.append)
    assert told[0].done == 25
    assert losses(out) == pytest.approx(losses(uninterrupted), abs=1e-4)
    assert_same_result(out, uninterrupted)


@pytest.mark.parametrize("killed_at", [13, 27])
def test_batches_of_like_lengths_resume_to_the_same_model(
    trainings: Trainings, killed_at: int
) -> None:
    grouped = {"train_sampling_strategy": "group_by_length"}
    whole = trainings.run(f"grouped_{killed_at}", **grouped)
    with pytest.raises(Killed):
        trainings.run(
            f"grouped_killed_{killed_at}", on_progress=at_step(killed_at, kill), **grouped
        )
    checkpoint = newest([trainings.work_dir(f"grouped_killed_{killed_at}")])
    out = trainings.run(f"grouped_resumed_{killed_at}", resume=checkpoint, **grouped)
    assert_same_result(out, whole)


def test_sigterm_seals_the_step_at_hand_and_ends_as_interrupted(
    trainings: Trainings, uninterrupted: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"at step 14 of 40"):
        trainings.run("terminated", on_progress=at_step(13, terminate))
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoint = newest([trainings.work_dir("terminated")])
    assert checkpoint is not None
    assert checkpoint.path.name == "checkpoint-14"
    assert not any((trainings.folder / "terminated").iterdir())
    assert_same_result(trainings.run("after_sigterm", resume=checkpoint), uninterrupted)


def test_a_training_killed_before_it_published_has_nothing_left_to_train(
    trainings: Trainings, uninterrupted: Path
) -> None:
    checkpoint = newest([trainings.work_dir("uninterrupted")])
    assert checkpoint is not None
    assert checkpoint.path.name == f"checkpoint-{STEPS}"
    told: list[Progress] = []
    out = trainings.run("published_late", resume=checkpoint, on_progress=told.append)
    assert told == []
    assert_same_result(out, uninterrupted)


def test_two_sealed_checkpoints_are_kept(trainings: Trainings, uninterrupted: Path) -> None:
    kept = {path.name for path in trainings.work_dir("uninterrupted").glob("checkpoint-*")}
    assert kept == {"checkpoint-36", "checkpoint-40"}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trainings: Trainings, uninterrupted: Path
) -> None:
    damaged = trainings.folder / "damaged.work"
    shutil.copytree(trainings.work_dir("uninterrupted"), damaged)
    (damaged / "checkpoint-40" / "model.safetensors").write_bytes(b"short")
    checkpoint = newest([damaged])
    assert checkpoint is not None
    assert checkpoint.path.name == "checkpoint-36"
    out = trainings.run("after_damage", resume=checkpoint)
    assert_same_result(out, uninterrupted)


def test_ctrl_c_passes_through(trainings: Trainings) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainings.run("pressed", on_progress=at_step(6, press))
    checkpoint = newest([trainings.work_dir("pressed")])
    assert checkpoint is not None
    assert checkpoint.path.name == "checkpoint-4"


def test_checkpoints_can_be_spaced_as_the_user_likes(trainings: Trainings) -> None:
    trainings.run("spaced", save_steps=16, save_total_limit=3, max_steps=50)
    kept = {path.name for path in trainings.work_dir("spaced").glob("checkpoint-*")}
    assert kept == {"checkpoint-32", "checkpoint-48", "checkpoint-50"}


def test_checkpoints_can_be_switched_off(trainings: Trainings) -> None:
    trainings.run("without", save_strategy="no", max_steps=3)
    assert not list(trainings.work_dir("without").glob("checkpoint-*"))
