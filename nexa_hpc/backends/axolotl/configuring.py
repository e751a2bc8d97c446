"""The config that axolotl is given for a task, and the variables it is started with.

Called by the step, in axolotl's environment; planning has checked the same config but for paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nexa_hpc.backends.axolotl import checkpoints, settings
from nexa_hpc.backends.hf.sources import Source, find_source
from nexa_hpc.core.handlers import Task
from nexa_hpc.errors import UserError

VARIABLES: Mapping[str, str] = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_LOG_LEVEL": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
"""No telemetry; and what axolotl prints is read as it is printed."""

SAVES_KEPT = 2
_SPLITS = {"dataset": ("train",), "test_dataset": ("validation", "dev", "eval", "test")}
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Prepared:
    """What one attempt gives to axolotl."""

    settings: Mapping[str, Any]
    """The params over the config file."""
    config: Mapping[str, Any]
    model: Source
    file: Path
    out: Path
    """Where axolotl writes."""


def prepare(task: Task) -> Prepared:
    """Write the config for `task` into its scratch, where other nodes write theirs."""
    values = settings.of_task(task)
    name = next((n for n in settings.MODEL_NAMES if n in task.inputs or n in values), "model")
    model = find_source(task, values, name)
    if model is None:
        raise UserError(f"step '{task.step_id}' names no model")
    dataset = _rows(task, values, "dataset")
    # A folder of splits is both: the rows to train on, and those to test on.
    test = _rows(task, values, "test_dataset") or _rows(task, values, "dataset", "test_dataset")
    config = settings.filled(values, model.where, dataset, test)
    if model.revision is not None:
        config.setdefault("revision_of_model", model.revision)
    out = task.work_dir / "out"
    config.setdefault("save_total_limit", SAVES_KEPT)
    config |= {
        "output_dir": str(out),
        "dataset_prepared_path": str(task.work_dir / "prepared"),
        "dynamic_checkpoint": {"enabled": True, "check_interval": 1},
    }
    resumed = None if task.resume is None else checkpoints.to_resume(task.resume.path)
    if resumed is not None:
        config["resume_from_checkpoint"] = str(resumed)
    file = task.work_dir / f"axolotl-{task.ranks.node_rank}.yml"
    file.write_text(as_yaml(config), encoding="utf-8")
    out.mkdir(exist_ok=True)
    return Prepared(values, config, model, file, out)


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return `config` as YAML, as axolotl reads it."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _rows(task: Task, values: Mapping[str, Any], name: str, split: str | None = None) -> str | None:
    """Return the file or folder, or the hub's name, of the rows that `name` stands for."""
    source = find_source(task, values, name)
    if source is None:
        return None
    if source.path is None or not source.path.is_dir():
        return source.where if split is None else None
    found = _split_file(source.path, _SPLITS[split or name])
    if found is None and split is not None:
        return None
    return str(found or source.path)


def _split_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    files = (folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), None)
