"""Environments by name, made by `env create`: where they are, what is in them, what a step lacks.

    <paths.envs>/train -> .builds/train.…     the environment of that name: a link, swapped whole
    <paths.envs>/train.lock.txt               the exact versions in it, as pip takes them
    <paths.envs>/.builds/train.…/             a virtual environment, which nobody changes once made
        nexa_env.json                         how it was made; written last: without it, half-made
        nexa_env.lock.txt                     its own lock

A virtual environment cannot be moved, so it is built where it stays and found through the link;
what runs in it enters it by its own path, and keeps it when the link moves on. Looking into one
starts no process; of those that others made, their Python is asked where it finds packages. Called
by planning, `env` and the schedulers. Standard library alone.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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
_ENDS = re.compile(r"(?P<name>.+?)(?:-(?P<version>\d[^-]*)(?:-py\d.*)?)?\.(?:dist|egg)-info$")
_SHOWN = 6
_ASK_S = 20.0
_ASKS = """\
import json, os, sys, sysconfig
marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
managed = sys.prefix == sys.base_prefix and os.path.exists(marker)
print("\\n" + json.dumps({"path": [p for p in sys.path if p], "managed": managed}))
"""
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
    def without(self) -> list[str]:
        """What was taken out again."""
        return list(self.made.get("without", ()))

    @property
    def asked_python(self) -> str | None:
        """The interpreter that was asked for, by path or by name; None: that of nexa-hpc."""
        return self.made.get("asked_python")

    @property
    def lock(self) -> Path:
        """The exact versions in it."""
        return self.build / LOCK

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.build / "bin" / "python"

    def command(self, more: Iterable[str] = (), *, again: bool = False) -> str:
        """Return the command that makes it as it was made, and with these extras as well."""
        extras = list(dict.fromkeys([*self.extras, *more]))
        asked = {parts(text)[0] for text in requirements_of(list(more))}
        without = [name for name in self.without if normalized(name) not in asked]
        made = create_command(
            self.name, extras, self.packages, without, self.asked_python, again=again
        )
        if extras or self.packages:
            return made
        return f"{made} --from-lock {shlex.quote(str(lock_of(self.link.parent, self.name)))}"


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
    return _installed_in((prefix / "lib").glob("python3*/site-packages"))


def _installed_in(folders: Iterable[Path]) -> dict[str, str]:
    """Return the same of what lies in these folders; of two, the one that is found first."""
    found: dict[str, str] = {}
    for folder in folders:
        for name in list_names(folder) if os.access(folder, os.R_OK) else ():
            match = _ENDS.match(name)
            if match:
                found.setdefault(normalized(match["name"]), match["version"] or "")
    return found


def lacking(prefix: Path, requirements: Iterable[str]) -> list[str]:
    """Return in words which of the requirements the environment `prefix` does not meet."""
    return list(_unmet(installed(prefix), requirements).values())


def _unmet(there: Mapping[str, str], requirements: Iterable[str]) -> dict[str, str]:
    """Return requirement -> in words what is not met of it."""
    found = {}
    for requirement in requirements:
        name, condition = parts(requirement)
        version = next((there[n] for n in (name, *STANDS_FOR.get(name, ())) if n in there), None)
        if version is None:
            found[requirement] = name
        elif not _meets(version, condition):
            found[requirement] = f"{name}{condition} (it has {version})"
    return found


def _meets(version: str, condition: str) -> bool:
    if not version:
        return True  # A source folder that is on the path says its version in a file only.
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # It comes with Hydra; without it, pip's own word at creation must do.
    try:
        return SpecifierSet(condition).contains(version, prereleases=True)
    except ValueError:
        return True


def create_command(
    name: str,
    extras: Sequence[str],
    packages: Sequence[str] = (),
    without: Sequence[str] = (),
    python: str | None = None,
    *,
    again: bool = False,
) -> str:
    """Return the command that makes the environment `name`."""
    words = [part for extra in extras for part in ("--extra", extra)]
    words += [part for package in packages for part in ("--package", shlex.quote(package))]
    words += [part for left in without for part in ("--without", left)]
    words += ["--python", shlex.quote(python)] if python else []
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
        mend = found.command(again=True)
        yield "env.name", f"the Python of the environment '{name}' is gone: {mend}"
        return
    lacked = _lacked(installed(found.build), needs)
    if lacked:
        words, mend = _in_words(lacked, needs), found.command(needs, again=True)
        yield "env.name", f"the environment '{name}' lacks {words}: {mend}"


def doubtful(
    env: Mapping[str, Any], prefix: Path | None, uses: str, backend: str | None
) -> Iterator[str]:
    """Yield what a step will not find in an environment that others made, and the command that
    mends it: of what is on this host, and is not changed by modules or lines of shell.

    `prefix` is the folder of the interpreter's `bin`; None where that is to be found on PATH.
    """
    kind = next((name for name in ("venv", "conda", "python") if env.get(name)), None)
    needs = needed_by(uses, backend)
    brings_more = any(env.get(name) for name in ("name", "container", "modules", "setup"))
    if kind is None or not needs or brings_more or "PYTHONPATH" in env.get("variables", ()):
        return
    python = env["python"] if kind == "python" else "python"
    if prefix is not None:
        python = str(prefix / "bin" / os.path.basename(python))
    elif kind != "python":
        return
    program = shutil.which(python)
    program = os.path.abspath(program) if program is not None else None
    facts = _asked(program, os.stat(program).st_mtime_ns) if program is not None else None
    if program is None or facts is None:
        return  # `environments.missing` says what is wrong with it.
    there = _installed_in(map(Path, facts["path"]))
    lacked = _lacked(there, needs)
    if lacked:
        where = program if kind == "python" else prefix
        mend = _mend(program, "pip" in there, lacked, needs if facts["managed"] else ())
        yield f"env.{kind}: {where} lacks {_in_words(lacked, needs)}: {mend}"


@functools.cache
def _asked(program: str, _changed: int) -> Mapping[str, Any] | None:
    """Return where an interpreter finds packages, and whether its system alone installs there."""
    try:
        done = subprocess.run(
            [program, "-c", _ASKS],
            cwd="/",  # `-c` imports from the current folder first.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
        )
        facts = json.loads((done.stdout.strip().splitlines() or ["null"])[-1])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return facts if isinstance(facts, dict) else None


def _mend(program: str, has_pip: bool, lacked: Iterable[str], instead: Sequence[str]) -> str:
    """Return the command that installs what is lacked; with the extras `instead`, one that makes an
    environment of our own, as into the system's Python pip installs nothing.
    """
    if instead:
        name = "-".join(instead)
        return f"{create_command(name, instead)}, and `env: {{name: {name}}}` in the step"
    python = shlex.quote(program)
    pip = f"{python} -m pip install"
    if not has_pip and shutil.which("uv"):
        pip = f"uv pip install --python {python}"
    elif not has_pip and importlib.util.find_spec("pip") is not None:
        pip = f"{shlex.quote(sys.executable)} -m pip --python {python} install"
    return f"{pip} {shlex.join(lacked)}"


def _lacked(there: Mapping[str, str], extras: Sequence[str]) -> dict[str, str]:
    """Return requirement -> words of what these extras ask for and is not `there`."""
    try:
        return _unmet(there, requirements_of(extras))
    except NexaError:
        return {}  # What an extra holds is not known here.


def _in_words(lacked: Mapping[str, str], extras: Sequence[str]) -> str:
    shown = list(lacked.values())[:_SHOWN]
    more = f" and {len(lacked) - _SHOWN} more" if len(lacked) > _SHOWN else ""
    return f"{', '.join(shown)}{more}, which {' and '.join(extras)} needs"
