"""What a step's inputs are: told from the document alone (`References`), then digested
(`Resolver`).

An input is named in `in`, or in a param that its handler lists in `input_params`. Its text is, in
this order: `models:name@tag`; `pkg://package/path`; another step's `out` or a path inside it;
another step's id, alone or with a path below it (`prepare/train.jsonl`; the output's name first
where it has several); a file or folder; for `model` and `dataset` params, a name on a hub. Called
by planning, which needs all references before any digest: they imply edges, and a producing step's
key is its result's digest. Standard library alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core.artifacts import open_artifact, place_of
from nexa_hpc.core.digests import Digester
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.instances import SINGLE_OUTPUT
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import NexaError, UserError, nearest

MODELS_PREFIX = "models:"
PACKAGE_PREFIX = "pkg://"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class StepPlace:
    """Where a declared step's results will be."""

    step: str
    outputs: Mapping[str, Path]
    """Output name -> absolute path; empty where the step declares no `out`."""
    effect: bool


@dataclass(frozen=True)
class Reference:
    """One input as declared, and what its text means."""

    name: str
    place: str
    """Where it is written, for messages: `in.data` or `params.model`."""
    text: str
    kind: str
    """step, path, version, package, hub."""
    digest: str = "content"
    path: Path | None = None
    step: str | None = None
    output: str | None = None
    below: str = ""
    """For a step: the path inside its output folder."""


@dataclass(frozen=True)
class ResolvedInput:
    """An input with its digest: `source` goes into the key, `handed` to the worker."""

    name: str
    source: Mapping[str, Any]
    handed: Mapping[str, Any]
    """{"path": …, "signature": …} or {"step": …, "output": …, "below": …} or {"revision": …}."""


class References:
    """Tells what input texts mean, knowing all the steps of a pipeline."""

    def __init__(self, root: Path, places: Sequence[StepPlace]) -> None:
        self._root = root
        self._places = {place.step: place for place in places}
        self._outs = {
            str(path): (place.step, name)
            for place in places
            for name, path in place.outputs.items()
        }

    def of_step(self, step: Any, handler: Handler) -> Iterator[Reference | tuple[str, str]]:
        """Yield each input of `step`, or (key, message) for one that means nothing."""
        declared = [(n, f"in.{n}", i.path, i.digest, "path") for n, i in step.inputs.items()]
        for name, kind in handler.input_params.items():
            value = step.params.get(name)
            if value is None:
                continue
            if name in step.inputs:
                yield f"params.{name}", f"'{name}' is given in `in` as well; keep one"
            elif not isinstance(value, str):
                yield f"params.{name}", f"expected text, got {type(value).__name__}"
            else:
                declared.append((name, f"params.{name}", value, "content", kind))
        for name, place, text, digest, kind in declared:
            kind = handler.input_params.get(name, kind)
            try:
                yield self._tell(step.id, name, place, text, digest, kind)
            except NexaError as error:
                yield place, f"{error} ({error.hint})" if error.hint else str(error)
            except OSError as error:
                yield place, f"cannot be looked at: {error.strerror}"

    def _tell(
        self, step: str, name: str, place: str, text: str, digest: str, kind: str
    ) -> Reference:
        if text.startswith(MODELS_PREFIX):
            return Reference(name, place, text, "version")
        if text.startswith(PACKAGE_PREFIX):
            return Reference(name, place, text, "package", path=package_path(text))
        produced = self._produced(step, text)
        if produced is not None:
            producer, output, below = produced
            return Reference(name, place, text, "step", step=producer, output=output, below=below)
        path = Path(os.path.abspath(self._root / text))
        if path.exists():
            return Reference(name, place, text, "path", digest, path=path)
        if kind in ("model", "dataset") and _HUB_NAME.fullmatch(text):
            return Reference(name, place, text, "hub")
        raise UserError(
            f"no such file or folder, and no step has this `out`: {text}"
            + nearest(text, [*self._known_texts(), *self._places])
        )

    def _produced(self, step: str, text: str) -> tuple[str, str, str] | None:
        """Return (step, output, path below it) for a text that names another step's result."""
        path = Path(os.path.abspath(self._root / text))
        for folder in (path, *path.parents):
            if str(folder) in self._outs:
                producer, output = self._outs[str(folder)]
                return producer, output, _below(path, folder)
        first, _, rest = os.path.normpath(text).partition("/")
        if text.startswith("./"):
            # How to say that a file is meant where a step has the same name.
            return None
        if first not in self._places or first == step:
            return None
        return self._by_id(self._places[first], rest)

    def _by_id(self, place: StepPlace, rest: str) -> tuple[str, str, str]:
        if place.effect:
            raise UserError(f"step '{place.step}' changes something elsewhere; it has no files")
        if not place.outputs or SINGLE_OUTPUT in place.outputs:
            return place.step, SINGLE_OUTPUT, rest
        output, _, below = rest.partition("/")
        if output not in place.outputs:
            raise UserError(
                f"step '{place.step}' has several outputs; write "
                + " or ".join(f"{place.step}/{name}" for name in place.outputs)
            )
        return place.step, output, below

    def _known_texts(self) -> list[str]:
        return [os.path.relpath(path, self._root) for path in self._outs]


class Resolver:
    """Digests references; one for each planning."""

    def __init__(self, registry: Registry, digester: Digester) -> None:
        self._registry = registry
        self._digester = digester

    def resolve(
        self, reference: Reference, keys: Mapping[str, str], handler: Handler
    ) -> ResolvedInput:
        """Return the digest of `reference`; `keys` holds the keys of all steps above.

        Raises UserError for an unknown version or content too large to read, ArtifactError for a
        damaged artifact.
        """
        if reference.kind == "step":
            return self._of_step(reference, keys)
        if reference.kind == "version":
            return self._of_version(reference)
        if reference.kind == "hub":
            return _of_hub(reference, handler)
        return self._of_path(reference)

    def _of_step(self, reference: Reference, keys: Mapping[str, str]) -> ResolvedInput:
        assert reference.step is not None
        where = {"output": reference.output, "below": reference.below}
        source = {"step_key": keys[reference.step], **where}
        return ResolvedInput(reference.name, source, {"step": reference.step, **where})

    def _of_version(self, reference: Reference) -> ResolvedInput:
        version = self._registry.resolve(reference.text)
        return ResolvedInput(
            reference.name,
            {"artifact": version.artifact_hash},
            {"path": str(version.path), "version": f"{version.model}@{version.number}"},
        )

    def _of_path(self, reference: Reference) -> ResolvedInput:
        assert reference.path is not None
        # Handed over as the store's path, never through an `out` link, which may move meanwhile.
        path = place_of(reference.path)
        if (path / "COMPLETE").is_file() and reference.kind == "path":
            artifact = open_artifact(path)
            return ResolvedInput(reference.name, {"artifact": artifact.hash}, {"path": str(path)})
        found = self._digester.digest(path, reference.digest)
        source = {"sha256" if reference.digest == "content" else reference.digest: found.sha256}
        signature = None if reference.digest == "none" else found.signature
        return ResolvedInput(reference.name, source, {"path": str(path), "signature": signature})


def package_path(text: str) -> Path:
    """Return the file or folder that `pkg://package/path` names, without importing the package.

    Raises UserError when the package is not installed or holds no such path.
    """
    package, _, rest = text.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # A module that was not imported from a file, such as __main__.
        spec = None
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    if not locations:
        raise UserError(
            f"{text}: no package '{package}' is installed", hint=f"pip install {package}"
        )
    for location in locations:
        path = Path(os.path.normpath(Path(location, rest)))
        if path.is_relative_to(location) and path.exists():
            return path
    raise UserError(f"{text}: the package '{package}' holds no '{rest}'")


def _of_hub(reference: Reference, handler: Handler) -> ResolvedInput:
    kind = handler.input_params[reference.name]
    revision = handler.revision(kind, reference.text)
    source = {"hub": reference.text, "revision": revision}
    return ResolvedInput(reference.name, source, {"revision": revision})


def _below(path: Path, folder: Path) -> str:
    return "" if path == folder else path.relative_to(folder).as_posix()
