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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core.artifacts import open_artifact, place_of
from nexa_hpc.core.digests import Digester
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.instances import SINGLE_OUTPUT
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import NexaError, UserError, nearest

MODELS_PREFIX = "models:"
PACKAGE_PREFIX = "pkg://"
_OF_FILES = ("path", "model", "dataset")
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class StepPlace(NamedTuple):
    """Where a declared step's results will be."""

    step: str
    outputs: Mapping[str, Path]
    """Output name -> absolute path; empty where the step declares no `out`."""
    effect: bool
    serves: bool = False


class Candidate(NamedTuple):
    """A result among which the best is chosen: whose it is, and whose metrics speak for it."""

    result: str
    metrics: str


@dataclass(frozen=True)
class Choice:
    """How the best point of a sweep is chosen."""

    step: str
    """The step whose `metrics.json` is read."""
    metric: str
    mode: str
    """max or min."""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Reference:
    """One input as declared, and what its text means."""

    name: str
    place: str
    """Where it is written, for messages: `in.data` or `params.model`."""
    text: str
    kind: str
    """step, server, best, path, version, package, hub."""
    digest: str = "content"
    path: Path | None = None
    step: str | None = None
    output: str | None = None
    below: str = ""
    """For a step: the path inside its output folder."""
    choice: Choice | None = None
    """For the best: among which results of `step`, and how."""
    revision: str | None = None
    """For a hub's name: which one it is pinned to, where it is."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps whose results are read."""
        others = (self.choice.step,) if self.choice is not None else ()
        return (self.step, *others) if self.step is not None else ()

    def renamed(self, names: Mapping[str, str]) -> Reference:
        """Return the reference with other names of steps; those that `names` leaves out stay."""
        if self.step is None:
            return self
        if self.choice is None:
            return replace(self, step=names.get(self.step, self.step))
        pairs = [
            Candidate(names.get(c.result, c.result), names.get(c.metrics, c.metrics))
            for c in self.choice.candidates
        ]
        return replace(self, choice=replace(self.choice, candidates=tuple(dict.fromkeys(pairs))))


@dataclass(frozen=True)
class ResolvedInput:
    """An input with its digest: `source` goes into the key, `handed` to the worker."""

    name: str
    source: Mapping[str, Any]
    handed: Mapping[str, Any]
    """{"path": …, "signature": …}, {"step": …, "output": …, "below": …}, {"server": …},
    {"revision": …}, or
    {"best": {"metric": …, "mode": …, "of": [[result, metrics], …]}, "output": …, "below": …}."""


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
        for name, given in step.inputs.items():
            place = f"in.{name}"
            kind = handler.input_params.get(name, "any")
            if given.step is not None:
                yield _told(place, partial(self._best, name, given))
            else:
                tell = partial(self._tell, step.id, name, place, given.path, given.digest, kind)
                yield _told(place, tell)
        for name, kind in handler.input_params.items():
            value, place = step.params.get(name), f"params.{name}"
            if value is None:
                continue
            if name in step.inputs:
                yield place, f"'{name}' is given in `in` as well; keep one"
            elif not isinstance(value, str):
                yield place, f"expected text, got {type(value).__name__}"
            else:
                yield _told(
                    place, partial(self._tell, step.id, name, place, value, "content", kind)
                )

    def _tell(
        self, step: str, name: str, place: str, text: str, digest: str, kind: str
    ) -> Reference:
        if text.startswith(MODELS_PREFIX):
            return Reference(name, place, text, "version")
        if text.startswith(PACKAGE_PREFIX):
            return Reference(name, place, text, "package", path=package_path(text))
        if text != step and text in self._places and self._places[text].serves:
            if kind in _OF_FILES:
                raise UserError(f"step '{text}' is a server, and has no files to be the {name}")
            return Reference(name, place, text, "server", step=text)
        produced = self._produced(step, text)
        if produced is not None:
            producer, output, below = produced
            return Reference(name, place, text, "step", step=producer, output=output, below=below)
        path = Path(os.path.abspath(self._root / text))
        if path.exists():
            return Reference(name, place, text, "path", digest, path=path)
        if kind in ("model", "dataset") and HUB_NAME.fullmatch(text):
            return Reference(name, place, text, "hub")
        raise UserError(
            f"no such file or folder, and no step has this `out`: {text}"
            + nearest(text, [*self._known_texts(), *self._places])
        )

    def _best(self, name: str, given: Any) -> Reference:
        if given.step not in self._places:
            raise UserError(f"unknown step '{given.step}'" + nearest(given.step, self._places))
        _, output, below = self._by_id(self._places[given.step], given.path)
        first, _, rest = given.metric.partition(".")
        judged = (first, rest) if rest and first in self._places else (given.step, given.metric)
        if self._places[judged[0]].effect:
            raise UserError(f"step '{judged[0]}' changes something elsewhere; it has no metrics")
        choice = Choice(*judged, given.mode)
        text = f"{given.step} with the {given.mode} of {given.metric}"
        return Reference(
            name,
            f"in.{name}",
            text,
            "best",
            step=given.step,
            output=output,
            below=below,
            choice=choice,
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

    def __init__(
        self,
        registry: Registry,
        digester: Digester,
        fetched: Callable[[str, str, str | None], str | None] = lambda kind, name, at: None,
    ) -> None:
        """`fetched` tells which revision of a hub's name is here already, and is what steps see;
        its third argument is the one that it is pinned to.
        """
        self._registry = registry
        self._digester = digester
        self._fetched = fetched

    def resolve(
        self, reference: Reference, keys: Mapping[str, str], handler: Handler
    ) -> ResolvedInput:
        """Return the digest of `reference`; `keys` holds the keys of all steps above.

        Raises UserError for an unknown version or content too large to read, ArtifactError for a
        damaged artifact.
        """
        if reference.kind == "step":
            return self._of_step(reference, keys)
        if reference.kind == "server":
            return _of_server(reference, keys)
        if reference.choice is not None:
            return _of_best(reference, reference.choice, keys)
        if reference.kind == "version":
            return self._of_version(reference)
        if reference.kind == "hub":
            return self._of_hub(reference, handler)
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

    def _of_hub(self, reference: Reference, handler: Handler) -> ResolvedInput:
        kind = handler.input_params[reference.name]
        asked = (kind, reference.text, reference.revision)
        revision = self._fetched(*asked) or handler.revision(*asked)
        source = {"hub": reference.text, "revision": revision}
        return ResolvedInput(reference.name, source, {"revision": revision})

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


def _told(place: str, tell: Callable[[], Reference]) -> Reference | tuple[str, str]:
    """Return what `tell` says of the input at `place`, or what is wrong with it."""
    try:
        return tell()
    except NexaError as error:
        return place, f"{error} ({error.hint})" if error.hint else str(error)
    except OSError as error:
        return place, f"cannot be looked at: {error.strerror}"


def _of_server(reference: Reference, keys: Mapping[str, str]) -> ResolvedInput:
    assert reference.step is not None
    source = {"server_key": keys[reference.step]}
    return ResolvedInput(reference.name, source, {"server": reference.step})


def _of_best(reference: Reference, choice: Choice, keys: Mapping[str, str]) -> ResolvedInput:
    by_key = {(keys[c.result], keys[c.metrics]): c for c in choice.candidates}
    how = {"metric": choice.metric, "mode": choice.mode}
    where = {"output": reference.output, "below": reference.below}
    # By their keys, so that the order of the points means nothing.
    source = {"best_of": [list(pair) for pair in sorted(by_key)], **how, **where}
    of = [[by_key[pair].result, by_key[pair].metrics] for pair in sorted(by_key)]
    return ResolvedInput(reference.name, source, {"best": {**how, "of": of}, **where})


def _below(path: Path, folder: Path) -> str:
    return "" if path == folder else path.relative_to(folder).as_posix()
