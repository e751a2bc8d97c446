"""What happens while transformers trains: seal checkpoints, stop on SIGTERM, tell how far it is.

Called by training. A checkpoint is sealed only after transformers has written all of it, and older
ones are removed only after that. The loss is logged whenever a checkpoint is written, so that a
resumed training misses no part of it.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from nexa_hpc.core import checkpoints
from nexa_hpc.core.handlers import Task

KEPT = 2
"""Sealed checkpoints kept: the newest, and the one before it should that turn out damaged."""
MAX_STEPS_UNSAVED = 500
_PRINTED_FRACTION = 0.1


class StopOnRequest(transformers.TrainerCallback):
    """Ends the training after the step at hand, with a checkpoint, once that is asked for.

    With several ranks, all end after the same step, whichever of them was asked.
    """

    def __init__(self) -> None:
        self.stopping = False
        """Whether it ends before its last step."""
        self._asked = False
        self._group: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open a way to tell the other ranks that does not wait for what a GPU computes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo")

    def request(self, *_: object) -> None:
        """Ask for the end; a signal handler."""
        print("SIGTERM: saving after the step at hand, then stopping", flush=True)
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop here if that was asked for, on any rank."""
        self.stopping = self._asked
        if self._group is not None:
            # A request that comes meanwhile is for the ranks to agree on after the next step.
            asked = torch.tensor([int(self.stopping)])
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group)
            self.stopping = bool(asked.item())
        if self.stopping:
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True


@contextmanager
def sigterm_calls(stop: StopOnRequest) -> Iterator[None]:
    """Let SIGTERM request the end while this lasts; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop.request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SealCheckpoints(transformers.TrainerCallback):
    """Seals each checkpoint and removes older ones of this attempt."""

    def __init__(self, work_dir: Path, kept: int = KEPT, *, bounded: bool = True) -> None:
        self._work_dir = work_dir
        self._kept = kept
        self._bounded = bounded
        """Whether checkpoints are at most MAX_STEPS_UNSAVED steps apart."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bound the steps between checkpoints."""
        if self._bounded:
            state.save_steps = min(state.save_steps, MAX_STEPS_UNSAVED)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the loss so far before it is saved."""
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the loss so far before it is saved."""
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal what was just written, then remove what is no longer needed."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # Every rank writes its own random state.
        if not state.is_world_process_zero:
            return
        checkpoints.seal(self._work_dir, self._work_dir / f"checkpoint-{state.global_step}")
        best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
        for folder in self._oldest_first()[: -self._kept]:
            if folder.name != best:
                shutil.rmtree(folder)

    def _oldest_first(self) -> list[Path]:
        found = self._work_dir.glob("checkpoint-*")
        return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


class Report(transformers.TrainerCallback):
    """Tells the task how far the training is, and prints a line every tenth of the way."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._started = time.monotonic()
        self._printed = 0.0
        self._latest: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the step."""
        self._task.progress(state.global_step, state.max_steps, metrics=self._latest)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the figures; print them when there is something new to say."""
        if not state.is_world_process_zero or not logs:
            return
        figures = {name: value for name, value in logs.items() if name in _WORDS}
        self._latest.update(figures)
        done = state.global_step / max(1, state.max_steps)
        if "eval_loss" in logs or ("loss" in logs and self._is_due(done)):
            elapsed_s = time.monotonic() - self._started
            words = "  ".join(f"{_WORDS[name]} {value:.4g}" for name, value in figures.items())
            print(
                f"step {state.global_step}/{state.max_steps}  {words}  ({elapsed_s:.0f} s)",
                flush=True,
            )

    def _is_due(self, done: float) -> bool:
        if done < 1 and done - self._printed < _PRINTED_FRACTION:
            return False
        self._printed = done
        return True


_WORDS = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "eval_loss": "validation loss",
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro-F1",
}
