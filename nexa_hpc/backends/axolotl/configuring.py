"""The config that axolotl is given for a task, and the variables it is started with.

Called by the step, in axolotl's environment; planning has checked the same config but for paths.
Where no hub is asked, names that axolotl would not find by themselves are given as the folders that
`fetch` has brought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nexa_hpc.backends.axolotl import checkpoints, settings
from nexa_hpc.backends.hf import hub
from nexa_hpc.backends.hf.sources import Source, find_source
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.hub_cache import is_hub_name
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
    """With the names of a hub, where `file` may have the folders."""
    model: Source
    file: Path
    out: Path
    """Where axolotl writes."""


def prepare(task: Task) -> Prepared:
    """Write the config for `task` into its scratch, where other nodes write theirs."""
    values = settings.of_task(task)
    name = next((n for n in settings.MODEL_NAMES if n in task.inputs or n in values), "model")
    model = _model(task, values, name)
    dataset = _rows(task, values, "dataset")
    # A folder of splits is both: the rows to train on, and those to test on.
    test = _rows(task, values, "test_dataset") or _rows(task, values, "dataset", "test_dataset")
    config = _as_planned(task, values, settings.filled(values, model.where, dataset, test))
    places = _places(config, task.project)
    if not _is_alone(config | places, task.project):
        # Axolotl takes the newest: which one that was, nobody tells.
        model = replace(model, revision=settings.model_revision(values))
    elif model.revision is not None:
        config = {n: v for n, v in config.items() if n not in settings.REVISION_NAMES}
        config[settings.REVISION] = model.revision
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
    file.write_text(as_yaml(config | places), encoding="utf-8")
    out.mkdir(exist_ok=True)
    return Prepared(values, config, model, file, out)


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return `config` as YAML, as axolotl reads it."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _model(task: Task, values: Mapping[str, Any], name: str) -> Source:
    model = find_source(task, values, name)
    if model is None:
        raise UserError(f"step '{task.step_id}' names no model")
    if model.path is not None:
        return model
    return replace(model, revision=task.revisions.get(name) or settings.model_revision(values))


def _is_alone(config: Mapping[str, Any], project: Path) -> bool:
    """Return whether the revision of the base model can be named: axolotl would ask a hub for its
    tokenizer, if that is another model's, at the same one.
    """
    named = {config.get(name) for name in settings.MODELS_BESIDE} - {config["base_model"]}
    return not any(is_hub_name(name, project) for name in named)


def _as_planned(task: Task, values: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with the rows that are inputs at the revision in the key, not a later one."""
    found = dict(config)
    for name in _SPLITS:
        source, entries = find_source(task, values, name), values.get(f"{name}s")
        if source is None or source.path is not None or not source.revision:
            continue
        if isinstance(entries, list):
            found[f"{name}s"] = [
                {**filled, "revision": source.revision} if "path" not in entry else filled
                for entry, filled in zip(entries, config[f"{name}s"], strict=True)
            ]
    return found


def _places(config: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return the keys of `config` whose values differ for an axolotl that asks no hub.

    The base model and an adapter are found by their names.
    """
    found: dict[str, Any] = {}
    for name in settings.ROWS:
        value = config.get(name)
        if isinstance(value, list):
            found[name] = [_rows_place(entry, config, project) for entry in value]
        elif value is not None:
            found[name] = _rows_place(value, config, project)
    for name in settings.MODELS_BESIDE:
        text = config.get(name)
        if text != config["base_model"] and is_hub_name(text, project):
            revision = settings.model_revision(config)
            found[name] = str(hub.offline_snapshot("model", str(text), revision) or text)
    return found


def _rows_place(entry: Any, config: Mapping[str, Any], project: Path) -> Any:
    path = entry.get("path") if isinstance(entry, Mapping) else entry
    if not settings.is_hub_rows(path, project):
        return entry
    revision = None if entry is path else entry.get("revision")
    folder = hub.offline_snapshot("dataset", str(path), revision)
    if folder is None:
        return entry
    if entry is path:
        return str(folder)
    files = _files_place(entry, folder, typed=settings.takes_type(config))
    return {**entry, "path": str(folder), **files}


def _files_place(entry: Mapping[str, Any], folder: Path, *, typed: bool) -> dict[str, Any]:
    """Return what says the same of `data_files`, which axolotl looks for beside a folder's name."""
    files = entry.get("data_files")
    if not files:
        return {}
    listed = files if isinstance(files, list) else [files]
    placed = [str(file) if "://" in str(file) else str(folder / str(file)) for file in listed]
    suffixes = Path(str(listed[0])).suffixes
    kind = next((settings.FORMATS[s] for s in suffixes if s in settings.FORMATS), None)
    found: dict[str, Any] = {"data_files": placed if isinstance(files, list) else placed[0]}
    # By the name of a folder axolotl would take them for JSON.
    return {"ds_type": kind, **found} if kind and typed and "ds_type" not in entry else found


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
