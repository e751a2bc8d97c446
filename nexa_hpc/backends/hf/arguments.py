"""TrainingArguments from a step's params: our defaults, what the hardware has, the global batch.

Called by training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from nexa_hpc.backends.hf import installed
from nexa_hpc.core.handlers import Task
from nexa_hpc.errors import StepError, UserError

DEFAULT_SEED = 13
LOG_FRACTION = 0.02
SAVE_FRACTION = 0.1
"""A killed training loses a tenth of its steps at most."""


def training_arguments(task: Task, settings: Mapping[str, Any], *, validates: bool) -> Any:
    """Return the TrainingArguments for `task`; `validates` says that there are rows to evaluate on.

    Raises UserError for values that transformers refuses, and for a global batch that the devices
    cannot share equally.
    """
    known = installed.training_arguments()
    given = {name: value for name, value in settings.items() if name in known}
    defaults: dict[str, Any] = {
        "seed": DEFAULT_SEED,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": LOG_FRACTION,
        "eval_strategy": "epoch" if validates else "no",
        "save_steps": SAVE_FRACTION,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Without a word, accelerate would train each process by itself where there is no GPU.
        "use_cpu": process_count() > 1 and not torch.accelerator.is_available(),
        "bf16": has_bf16() and not given.get("fp16") and not given.get("use_cpu"),
    }
    if given.get("load_best_model_at_end"):
        # transformers compares checkpoints it has evaluated: both have to happen at the same steps.
        defaults["save_strategy"] = given.get("eval_strategy", defaults["eval_strategy"])
        defaults["save_steps"] = given.get("eval_steps", SAVE_FRACTION)
    merged = {**defaults, **given, "output_dir": str(task.work_dir)}
    merged.pop("save_total_limit", None)  # Sealed checkpoints are pruned by callbacks.py.
    merged.update(_batch(settings))
    try:
        arguments = transformers.TrainingArguments(**merged)
    except (ValueError, TypeError) as error:
        raise UserError(f"transformers refuses these params: {error}") from error
    if process_count() > 1 and arguments.world_size != process_count():
        raise StepError(f"{process_count()} processes were started, and do not train together")
    if arguments.device == torch.device("cpu", 0):
        # accelerate numbers it where several processes train, and torch.load cannot restore to a
        # numbered one what a checkpoint holds of the optimizer.
        arguments.distributed_state.device = torch.device("cpu")
        vars(arguments)["_setup_devices"] = torch.device("cpu")
    return arguments


def has_bf16() -> bool:
    """Say whether there is a GPU that computes in bfloat16."""
    return bool(
        torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def process_count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_count(*, use_cpu: bool = False) -> int:
    """Return on how many devices each step's batch is spread, over all processes."""
    if process_count() > 1 or use_cpu:
        return process_count()
    # One process that sees several GPUs splits its batch among them (torch's DataParallel).
    return max(1, int(torch.cuda.device_count()))


def _batch(settings: Mapping[str, Any]) -> dict[str, int]:
    devices = device_count(use_cpu=bool(settings.get("use_cpu")))
    _check_world_size(settings, devices)
    wanted = settings.get("global_batch_size")
    if wanted is None:
        return {}
    share, rest = divmod(wanted, devices)
    if rest:
        raise UserError(f"global_batch_size {wanted} is not divisible by {devices} devices")
    per_device = settings.get("per_device_train_batch_size") or _largest_divisor(share, 8)
    if share % per_device:
        raise UserError(
            f"global_batch_size {wanted} is not divisible by {devices * per_device} "
            f"({devices} devices x {per_device} rows on each)"
        )
    return {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": share // per_device,
    }


def _largest_divisor(number: int, limit: int) -> int:
    return next(n for n in range(min(number, limit), 0, -1) if number % n == 0)


def _check_world_size(settings: Mapping[str, Any], devices: int) -> None:
    planned = settings.get("world_size")
    if planned is not None and planned != devices:
        raise StepError(
            f"planned for {planned} devices, started on {devices}: batches would differ",
            hint="ask for as many processes as devices, or fix the batch with `global_batch_size`",
        )
