"""Where a step's model and dataset come from, and its settings: params over a config file.

Called by planning (`declared_config`) and by the backend's `train` and `evaluate`. Light.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core.artifacts import META
from nexa_hpc.core.document import read_document
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.inputs import PACKAGE_PREFIX, package_path
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import UserError

GLUE_DEFAULT_CONFIG = "sst2"
"""`dataset: glue` alone means SST-2, the sentence sentiment task among GLUE's nine."""

_FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Source:
    """A model or a dataset: a path, or a name on a hub with its revision."""

    path: Path | None
    hub_name: str | None
    revision: str | None
    title: str
    """How people name it, without a machine's paths."""

    @property
    def where(self) -> str:
        """What the libraries' loading functions take as the name."""
        return str(self.path or self.hub_name)


def declared_config(step: StepView) -> Path | None:
    """Return the file that a step's `config` names, where it can be read at planning."""
    declared = step.param_or_input("config")
    text = declared.get("path") if isinstance(declared, Mapping) else declared
    if not isinstance(text, str):
        return None
    path = step.project / text
    return path if path.is_file() else None


def declared_settings(step: StepView) -> dict[str, Any]:
    """Return the params of `step` over those of its config file; raises SpecError for a bad file.

    What `in` names is left out: it wins over both.
    """
    config = declared_config(step)
    below = read_document(config).value if config is not None else {}
    settings = {name: value for name, value in below.items() if name not in step.inputs}
    return with_dataset_config({**settings, **step.params})


def with_dataset_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with the configuration spelt out that a bare `dataset: glue` means."""
    if settings.get("dataset") == "glue" and "dataset_config" not in settings:
        return {**settings, "dataset_config": GLUE_DEFAULT_CONFIG}
    return dict(settings)


def task_settings(task: Task) -> dict[str, Any]:
    """Return the params of `task` over those of its config file."""
    config = task.inputs.get("config")
    below = read_document(config).value if config is not None else {}
    return with_dataset_config({**below, **task.params})


def find_source(task: Task, settings: Mapping[str, Any], name: str) -> Source | None:
    """Return the input, or else the setting, called `name` ("model" or "dataset"); None without.

    A path in a config file is relative to the project root, like every other.
    """
    text = settings.get(name)
    path = task.inputs.get(name)
    if path is None and isinstance(text, str):
        path = _local_path(task.project, text)
    if path is not None:
        return Source(path, None, None, _title(task, path, task.params.get(name)))
    if text is None:
        return None
    # Of what is pinned to a branch or tag, what that was at planning, as the key says.
    revision = task.revisions.get(name) or settings.get(f"{name}_revision")
    return Source(None, text, revision, text)


def _local_path(project: Path, text: str) -> Path | None:
    if text.startswith(PACKAGE_PREFIX):
        return package_path(text)
    path = project / text
    if path.exists():
        return path
    if looks_like_path(text) or Path(text).suffix in _FILE_SUFFIXES:
        raise UserError(f"no such file or folder: {text}")
    return None


def looks_like_path(text: str) -> bool:
    """Return whether `text` can be no name of a model on a hub."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1


def _title(task: Task, path: Path, declared: Any) -> str:
    if isinstance(declared, str):
        return declared
    meta = read_json_or_none(path / META)
    if isinstance(meta, Mapping) and "uri" in meta:
        path = Path(str(meta["uri"]))
    return os.path.relpath(path, task.project) if path.is_relative_to(task.project) else path.name
