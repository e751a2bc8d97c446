"""The params of a training with axolotl: a few of ours, and every key of an axolotl config.

Called by planning and by the step. Light.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.backends.hf import checks, sources
from nexa_hpc.core.document import read_document
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.hub_cache import is_hub_name

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

REVISION = "revision_of_model"
REVISION_NAMES = (REVISION, "model_revision")
"""Axolotl takes the second as another name of the first."""
ROWS = ("datasets", "test_datasets", "pretraining_dataset")
MODELS_BESIDE = ("base_model_config", "tokenizer_config")
"""What may come from another model, and is asked for at the revision of the first nevertheless."""
_ADAPTER = "lora_model_dir"
_NO_NAMES = ("json", "csv", "parquet", "arrow", "text", "synthetic")
"""What may stand for a `path`, and is the library's own."""

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
            typed = takes_type(config)
            config[name] = [_with_path(entry, path, typed=typed) for entry in config[name]]
    return config


FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def takes_type(settings: Mapping[str, Any]) -> bool:
    """Return whether entries of `datasets` may say their `ds_type`; the others go by suffixes."""
    return settings.get("rl") not in ("dpo", "ipo", "simpo", "kto")


def _with_path(entry: Any, path: str, *, typed: bool) -> Any:
    if not isinstance(entry, Mapping) or "path" in entry:
        return entry
    suffix = path[path.rfind(".") :]
    if suffix not in FORMATS:
        return {"path": path, **entry}
    # A file has one split, which datasets calls train, also for rows to test on.
    kind = {"ds_type": FORMATS[suffix]} if typed else {}
    return {"path": path, **kind, "split": "train", **entry}


def model_revision(settings: Mapping[str, Any]) -> str | None:
    """Return the revision that the base model is pinned to."""
    return next((v for n in REVISION_NAMES if (v := _text(settings.get(n)))), None)


def row_revisions(settings: Mapping[str, Any], name: str) -> dict[int, str | None]:
    """Return entry of `datasets` -> its revision, for those that get the rows of `name`."""
    listed = settings.get(f"{name}s")
    return {
        number: _text(entry.get("revision"))
        for number, entry in enumerate(listed if isinstance(listed, list) else ())
        if isinstance(entry, Mapping) and "path" not in entry
    }


def hub_pin(settings: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    """Return which key pins the input `name` where it is a hub's name, and to what."""
    if name in MODEL_NAMES:
        return REVISION, model_revision(settings)
    number, revision = next(iter(row_revisions(settings, name).items()), (0, None))
    return f"{name}s.{number}.revision", revision


def hub_names(settings: Mapping[str, Any], project: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield (kind, name, revision) of what is on a hub and no input of the step."""
    for entry in _entries(settings):
        path = entry.get("path")
        if is_hub_rows(path, project):
            yield "dataset", str(path), _text(entry.get("revision"))
    for name in (*MODELS_BESIDE, _ADAPTER):
        if is_hub_name(settings.get(name), project):
            # An adapter is always loaded as it is now.
            revision = model_revision(settings) if name != _ADAPTER else None
            yield "model", settings[name], revision


def is_hub_rows(path: object, project: Path) -> bool:
    """Return whether the `path` of an entry of `datasets` is a name on a hub."""
    return path not in _NO_NAMES and is_hub_name(path, project)


def local_files(settings: Mapping[str, Any], step: StepView) -> Iterator[str]:
    """Yield the project's files that the config names where the key does not notice a change."""
    named = [entry.get("path") for entry in _entries(settings)]
    named += [settings.get(name) for name in (*MODELS_BESIDE, _ADAPTER)]
    texts = (text for text in named if isinstance(text, str) and text)
    yield from (text for text in texts if (step.project / text).exists())


def _entries(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows that are trained or tested on; one alone need not be in a list."""
    for name in ROWS:
        value = settings.get(name)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, (Mapping, str)):
                yield {"path": entry} if isinstance(entry, str) else entry


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
