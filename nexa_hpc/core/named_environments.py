"""Environments by name, made by `env create`: where they are, what is in them, what a step lacks.

    <paths.envs>/train -> .builds/train.…     the environment of that name: a link, swapped whole
    <paths.envs>/train.lock.txt               the exact versions in it, as pip takes them
    <paths.envs>/.builds/train.…/             a virtual environment, which nobody changes once made
        nexa_env.json                         how it was made; written last: without it, half-made
        nexa_env.lock.txt                     its own lock

A virtual environment cannot be moved, so it is built where it stays and found through the link;
what runs in it enters it by its own path, and keeps it when the link moves on. Looking starts no
process. Called by planning, `env` and the schedulers. Standard library alone.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core.environments import interpreter
from nexa_hpc.core.extras import STANDS_FOR, needed_by, normalized, parts, requirements_of
from nexa_hpc.core.reading import list_names, read_json_or_none
from nexa_hpc.errors import NexaError, UnknownNameError, nearest

BUILDS = ".builds"
MARKER = "nexa_env.json"
LOCK = "nexa_env.lock.txt"
_ENDS = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)\.(?:dist-info|egg-info)$")
_SHOWN = 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class NamedEnvironment:
    """One that is whole."""

    name: str
    link: Path
    build: Path
    """The virtual environment itself."""
    made: Mapping[str, Any]
    """How it was made, as `nexa_env.json` says."""

    @property
    def extras(self) -> list[str]:
        """The extras of nexa-hpc that it was made with."""
        return list(self.made.get("extras", ()))

    @property
    def packages(self) -> list[str]:
        """What else was asked for."""
        return list(self.made.get("packages", ()))

    @property
    def lock(self) -> Path:
        """The exact versions in it."""
        return self.build / LOCK

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.build / "bin" / "python"


def name_problem(name: str) -> str | None:
    """Return what is wrong with `name` for a new environment, or None."""
    if _NAME.fullmatch(name):
        return None
    return f"'{name}' is no name for an environment: up to 64 of A-Z a-z 0-9 _ -"


def link_of(envs: Path, name: str) -> Path:
    """Return the link that is the environment `name`."""
    return envs / name


def lock_of(envs: Path, name: str) -> Path:
    """Return the file with the exact versions of the environment `name`."""
    return envs / f"{name}.lock.txt"


def build_for(envs: Path, name: str, unique: str) -> Path:
    """Return where a new environment of this name is to be built."""
    return envs / BUILDS / f"{name}.{unique}"


def find_environment(envs: Path, name: str) -> NamedEnvironment:
    """Return the environment `name`; raises UnknownNameError for one that is not there, or not
    whole.
    """
    link = link_of(envs, name)
    build = Path(os.path.realpath(link))
    made = read_json_or_none(build / MARKER)
    if isinstance(made, dict):
        return NamedEnvironment(name, link, build, made)
    state = f"is not whole: {build}" if build.is_dir() else f"is not in {envs}"
    offered = "" if build.is_dir() else nearest(name, names(envs))
    raise UnknownNameError(
        f"the environment '{name}' {state}{offered}", hint=create_command(name, ["…"])
    )


def interpreter_of(env: Mapping[str, Any], envs: Path, root: Path) -> Path | None:
    """Return the interpreter of what `env` declares, where that can be started as it stands: not
    one in a container, or behind modules and lines of shell.
    """
    if any(env.get(name) for name in ("modules", "setup", "container")):
        return None
    if not env.get("name"):
        return interpreter(env, root)
    try:
        return find_environment(envs, env["name"]).python
    except UnknownNameError:
        return None


def names(envs: Path) -> list[str]:
    """Return the names of the environments that are whole, in order."""
    return [
        name
        for name in sorted(list_names(envs))
        if not name.startswith(".") and (link_of(envs, name) / MARKER).is_file()
    ]


def others(envs: Path, name: str | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (name, folder) of what was built and is no environment: older, or half-made."""
    for folder in sorted(list_names(envs / BUILDS)):
        of = folder.partition(".")[0]
        place = envs / BUILDS / folder
        if name in (None, of) and os.path.realpath(link_of(envs, of)) != os.path.realpath(place):
            yield of, place


def installed(prefix: Path) -> dict[str, str]:
    """Return normalized distribution name -> version of what lies in the environment `prefix`."""
    found = {}
    for site in (prefix / "lib").glob("python3*/site-packages"):
        for name in list_names(site):
            match = _ENDS.match(name)
            if match:
                found[normalized(match["name"])] = match["version"]
    return found


def lacking(prefix: Path, requirements: Iterable[str]) -> list[str]:
    """Return in words which of the requirements the environment `prefix` does not meet."""
    there = installed(prefix)
    found = []
    for requirement in requirements:
        name, condition = parts(requirement)
        version = next((there[n] for n in (name, *STANDS_FOR.get(name, ())) if n in there), None)
        if version is None:
            found.append(name)
        elif not _meets(version, condition):
            found.append(f"{name}{condition} (it has {version})")
    return found


def _meets(version: str, condition: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # It comes with Hydra; without it, pip's own word at creation must do.
    try:
        return SpecifierSet(condition).contains(version, prereleases=True)
    except ValueError:
        return True


def create_command(
    name: str, extras: Sequence[str], packages: Sequence[str] = (), *, again: bool = False
) -> str:
    """Return the command that makes the environment `name`."""
    words = [part for extra in extras for part in ("--extra", extra)]
    words += [part for package in packages for part in ("--package", shlex.quote(package))]
    return " ".join(["nexa-hpc env create", name, *words, *(["--again"] if again else [])])


def missing(
    env: Mapping[str, Any], envs: Path, uses: str, backend: str | None
) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what a step finds wrong with the environment that it names."""
    name = env.get("name")
    if not name:
        return
    needs = needed_by(uses, backend)
    try:
        found = find_environment(envs, name)
    except UnknownNameError as error:
        yield "env.name", f"{error}: {create_command(name, needs or ['…'])}"
        return
    if not os.access(found.python, os.X_OK):
        mend = create_command(name, found.extras, found.packages, again=True)
        yield "env.name", f"the Python of the environment '{name}' is gone: {mend}"
        return
    for words in _lacked(found.build, needs):
        extras = list(dict.fromkeys([*found.extras, *needs]))
        mend = create_command(name, extras, found.packages, again=True)
        yield "env.name", f"the environment '{name}' lacks {words}: {mend}"


def doubtful(
    env: Mapping[str, Any], prefix: Path | None, uses: str, backend: str | None
) -> Iterator[str]:
    """Yield what a step will not find in the virtual environment `prefix`, which others made."""
    brings_more = env.get("modules") or env.get("setup")
    if prefix is None or brings_more or not env.get("venv") or _sees_others(prefix):
        return
    for words in _lacked(prefix, needed_by(uses, backend)):
        yield f"env.venv: {prefix} lacks {words}"


def _sees_others(prefix: Path) -> bool:
    """Return whether packages from elsewhere are found in the virtual environment `prefix`."""
    try:
        text = (prefix / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true", text))


def _lacked(prefix: Path, extras: Sequence[str]) -> Iterator[str]:
    try:
        found = lacking(prefix, requirements_of(extras))
    except NexaError:
        return  # What an extra holds is not known here.
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield f"{', '.join(found[:_SHOWN])}{more}, which {' and '.join(extras)} needs"
