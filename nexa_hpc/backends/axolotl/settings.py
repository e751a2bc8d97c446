"""The params of a training with axolotl: a few of ours, and every key of an axolotl config.

Called by planning and by the step. Light.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.backends.hf import checks, sources
from nexa_hpc.core.document import read_document
from nexa_hpc.core.handlers import StepView, Task

LAUNCHERS = ("python", "torchrun", "accelerate")

OWN_PARAMS: Mapping[str, checks.Kind] = {
    "model": checks.TEXT,
    "dataset": checks.TEXT,
    "test_dataset": checks.TEXT,
    "merge": checks.FLAG,
    "launcher": checks.one_of(*LAUNCHERS),
    "world_size": checks.COUNT,
}
"""The params that axolotl is not given."""

INPUTS = ("model", "dataset", "test_dataset", "config")
MODEL_NAMES = ("model", "base_model")
"""`base_model` is what axolotl calls it; either may name the model."""

DECIDED_HERE = {
    "output_dir": "the step's `out` says where the result goes",
    "resume_from_checkpoint": "an interrupted step resumes by itself",
    "auto_resume_from_checkpoints": "an interrupted step resumes by itself",
    "dataset_prepared_path": "the rows are prepared in the step's scratch",
    "dynamic_checkpoint": "it is how a step that is asked to stop saves",
    "use_ray": "the step's `resources` say where it runs",
    "merge_lora": "say `merge: true`",
    "save_only_model": "a checkpoint without the optimizer cannot be resumed from",
}


def declared(step: StepView) -> dict[str, Any]:
    """Return the params of `step` over those of its config file; raises SpecError for a bad file.

    What `in` names is left out: it wins over both.
    """
    config = sources.declared_config(step)
    below = read_document(config).value if config is not None else {}
    return {**{k: v for k, v in below.items() if k not in step.inputs}, **step.params}


def of_task(task: Task) -> dict[str, Any]:
    """Return the params of `task` over those of its config file."""
    config = task.inputs.get("config")
    below = read_document(config).value if config is not None else {}
    return {**below, **task.params}


def filled(
    settings: Mapping[str, Any], model: str | None, dataset: str | None, test_dataset: str | None
) -> dict[str, Any]:
    """Return the axolotl config of `settings`, with what is given for the model and the rows.

    An entry of `datasets` that has no `path` gets that of `dataset`, and `test_datasets` likewise.
    """
    config = {k: v for k, v in settings.items() if k not in OWN_PARAMS and k != "config"}
    if model is not None:
        config["base_model"] = model
    for name, path in (("datasets", dataset), ("test_datasets", test_dataset)):
        if path is not None and isinstance(config.get(name), list):
            config[name] = [_with_path(entry, path) for entry in config[name]]
    return config


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def _with_path(entry: Any, path: str) -> Any:
    if not isinstance(entry, Mapping) or "path" in entry:
        return entry
    suffix = path[path.rfind(".") :]
    if suffix not in _FORMATS:
        return {"path": path, **entry}
    # A file has one split, which datasets calls train, also for rows to test on.
    return {"path": path, "ds_type": _FORMATS[suffix], "split": "train", **entry}


def local_files(settings: Mapping[str, Any], step: StepView) -> Iterator[str]:
    """Yield the project's files that the config names where the key does not notice a change."""
    named = [str(settings.get("base_model") or "")] if "base_model" not in step.params else []
    for name in ("datasets", "test_datasets"):
        entries = settings.get(name)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
                named.append(entry["path"])
    yield from (name for name in named if name and (step.project / name).exists())
