"""LoRA adapters as folders: whether one is, and which base it belongs on. Light.

A checkpoint with an adapter holds `base_model.json`, which names the base as the project sees it:
{"model": a path in the project, pkg://… or a hub name, "revision": …, "sha256": of its weights}.
Called where models are loaded, and before a server is started on one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from nexa_hpc.backends.hf.sources import Source, looks_like_path
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.inputs import PACKAGE_PREFIX, package_path
from nexa_hpc.core.reading import read_json, read_json_or_none
from nexa_hpc.errors import StepError, UserError

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
    """Return the base of the adapter in `folder`; an adapter of others' names a path or a hub's.

    Raises UserError where none is named, or it is a path where nothing is.
    """
    said, file, key = read_json_or_none(folder / BASE_MODEL), BASE_MODEL, "model"
    if said is None:
        file, key = ADAPTER_CONFIG, "base_model_name_or_path"
        said = {"model": read_json(folder / ADAPTER_CONFIG).get(key)}
    named = said.get("model")
    if not isinstance(named, str) or not named:
        raise UserError(f"{folder / file} names no base: `{key}` is {named!r}")
    return Base(_source(named, said.get("revision"), project), said.get("sha256"))


def _source(name: str, revision: str | None, project: Path) -> Source:
    if name.startswith(PACKAGE_PREFIX):
        return Source(package_path(name), None, None, name)
    path = project / name
    if path.exists():
        return Source(path, None, None, name)
    if looks_like_path(name):
        raise UserError(f"the base of the adapter is not there: {name}")
    return Source(None, name, revision, name)


def check_base(base: Base) -> None:
    """Raise StepError where the weights in a base's folder are not those that were recorded."""
    if base.source.path is None or base.sha256 is None:
        return
    file = base.source.path / WEIGHTS
    found = sha256_file(file) if file.is_file() else None
    require_sha256(base.source, found, base.sha256, f"the adapter's {BASE_MODEL}")


def require_sha256(source: Source, found: str | None, expected: str, said_by: str) -> None:
    """Raise StepError where the weights at `source` are others than those that `said_by` expects;
    `found` is None where there are none.
    """
    if found is None:
        raise StepError(f"{source.title} has no {WEIGHTS} whose SHA-256 could be checked")
    if found != expected:
        raise StepError(
            f"{source.title}: {WEIGHTS} has SHA-256 {found}, not {expected} as {said_by} says",
            hint="it is another model, or a damaged copy: fetch it again",
        )


def base_name(source: Source, declared: object, project: Path) -> str:
    """Return how `base_model.json` names the base at `source`, which the step `declared`."""
    if source.path is None or (isinstance(declared, str) and declared.startswith(PACKAGE_PREFIX)):
        return str(declared or source.hub_name)
    return os.path.relpath(source.path, project)


def rank_of(folder: Path) -> int:
    """Return the rank r of the LoRA adapter in `folder`; raises UserError for another kind."""
    rank = read_json(folder / ADAPTER_CONFIG).get("r")
    if type(rank) is not int:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} has no rank `r`: it is no LoRA adapter, and vLLM serves no "
            "others",
            hint="take backend hf_runtime",
        )
    return rank
