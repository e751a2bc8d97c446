"""LoRA adapters as folders: whether one is, and which base it belongs on. Light.

A checkpoint with an adapter holds `base_model.json`, which names the base as the project sees it:
{"model": a path in the project, pkg://… or a hub name, "revision": …, "sha256": of its weights}.
Called where models are loaded, and before a server is started on one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from nexa_hpc.backends.hf.sources import Source
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.inputs import PACKAGE_PREFIX, package_path
from nexa_hpc.core.reading import read_json, read_json_or_none
from nexa_hpc.errors import StepError

ADAPTER_CONFIG = "adapter_config.json"
BASE_MODEL = "base_model.json"
WEIGHTS = "model.safetensors"


class Base(NamedTuple):
    """The model that an adapter belongs on."""

    source: Source
    sha256: str | None
    """Of its weights, where that was recorded."""


def is_adapter(folder: Path) -> bool:
    """Return whether `folder` holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path, project: Path) -> Base:
    """Return the base of the adapter in `folder`; an adapter of others' names a path or a hub's."""
    said = read_json_or_none(folder / BASE_MODEL)
    if said is None:
        named = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]
        said = {"model": named, "revision": None, "sha256": None}
    return Base(_source(str(said["model"]), said["revision"], project), said["sha256"])


def _source(name: str, revision: str | None, project: Path) -> Source:
    if name.startswith(PACKAGE_PREFIX):
        return Source(package_path(name), None, None, name)
    path = project / name
    if path.exists():
        return Source(path, None, None, name)
    return Source(None, name, revision, name)


def check_base(base: Base) -> None:
    """Raise StepError where the weights in a base's folder are not those that were recorded."""
    file = base.source.path / WEIGHTS if base.source.path is not None else None
    if file is None or base.sha256 is None or not file.is_file():
        return
    require_sha256(base.source, sha256_file(file), base.sha256)


def require_sha256(source: Source, found: str, expected: str) -> None:
    """Raise StepError where the weights at `source` are others than those that are expected."""
    if found != expected:
        raise StepError(
            f"{source.title}: {WEIGHTS} has SHA-256 {found}, not {expected} as `model_sha256` or "
            f"the adapter's {BASE_MODEL} says",
            hint="it is another model, or a damaged copy: fetch it again",
        )


def base_name(source: Source, declared: object, project: Path) -> str:
    """Return how `base_model.json` names the base at `source`, which the step `declared`."""
    if source.path is None or (isinstance(declared, str) and declared.startswith(PACKAGE_PREFIX)):
        return str(declared or source.hub_name)
    return os.path.relpath(source.path, project)


def rank_of(folder: Path) -> int:
    """Return the rank r of the adapter in `folder`."""
    return int(read_json(folder / ADAPTER_CONFIG)["r"])
