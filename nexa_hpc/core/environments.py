"""What a step's `env` declares: whether it needs a process of its own, what this host lacks of it.

    env:
      modules: [gcc/13, cuda/12.4]    loaded in their order
      setup: |                        then lines of shell, as they are
        module use /apps/site
      name: train                     then one of these: what `env create` made under this name,
      venv: ~/venvs/train             a virtual environment by its path,
      conda: train                    a conda environment by name or by path,
      python: /opt/py312/bin/python   an interpreter by path, or by name on PATH;
      container: images/train.sif     or a container, whose own Python runs the step

Paths are relative to the project root; `~` is whoever runs the step. Asked at planning, where a
step runs on this host, and by `schedulers.launching`. Standard library alone.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEAST_PYTHON = (3, 10)
"""The oldest Python that runs a step."""
CONTAINER_PROGRAMS = ("apptainer", "singularity")

_OF_ITS_OWN = ("name", "venv", "conda", "python", "modules", "container", "setup")
_ASK_S = 20.0
_VERSION = "import sys; print('%d %d' % sys.version_info[:2])"

FIND_MODULE = """\
if ! type module >/dev/null 2>&1; then
  for _nexa_file in ${LMOD_PKG:+"$LMOD_PKG/init/bash"} ${MODULESHOME:+"$MODULESHOME/init/bash"} \
/etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh \
/usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash /usr/share/Modules/init/bash \
/etc/profile; do
    if [ -r "$_nexa_file" ]; then
      # /etc/profile begins PATH anew: what was on it stays.
      _nexa_path=$PATH; . "$_nexa_file"; PATH=$_nexa_path:$PATH
      if type module >/dev/null 2>&1; then break; fi
    fi
  done
fi
"""
"""Shell text that defines `module` where this host has it; login shells alone have it at once."""


def needs_process(env: Mapping[str, Any]) -> bool:
    """Return whether a step with this `env` runs in a process of its own environment."""
    return any(env.get(name) for name in _OF_ITS_OWN)


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process while the context is open."""
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def hub_variables(hub: Path | None, scheduler: str) -> dict[str, str]:
    """Return what tells the libraries of a step that models and datasets lie in `hub`.

    In Slurm a step asks no hub, which its node may not reach.
    """
    if hub is None:
        return {}
    offline = {"HF_HUB_OFFLINE": "1"} if scheduler == "slurm" else {}
    return {"HF_HUB_CACHE": str(hub), **offline}


def uses_modules(env: Mapping[str, Any]) -> bool:
    """Return whether `module` has to be defined: some are named, or `setup` calls it."""
    words = re.findall(r"\w+", "\n".join(env.get("setup", ())))
    return bool(env.get("modules")) or "module" in words or "ml" in words


def path_of(text: str, root: Path) -> Path:
    """Return the path that `text` means in the project at `root`."""
    # Not `resolve`: a venv's python is a link, and which one it is called by tells it its venv.
    return Path(os.path.abspath(root / Path(text).expanduser()))


def interpreter(env: Mapping[str, Any], root: Path) -> Path | None:
    """Return the interpreter that `env` names, where that is a file's path; else None."""
    if env.get("container"):
        return None
    if env.get("venv"):
        return path_of(env["venv"], root) / "bin" / "python"
    if env.get("conda"):
        prefix = conda_prefix(env["conda"], root)
        return None if prefix is None else prefix / "bin" / "python"
    if "/" in env.get("python", ""):
        return path_of(env["python"], root)
    return None


def conda_prefix(declared: str, root: Path) -> Path | None:
    """Return the folder of a conda environment given by path or name; None for an unknown name."""
    if "/" in declared:
        return path_of(declared, root)
    return next((p for p in _conda_places(declared) if (p / "conda-meta").is_dir()), None)


def _conda_places(name: str) -> Iterator[Path]:
    """Yield where conda itself would look for the environment `name`."""
    installed = [os.environ[v] for v in ("MAMBA_ROOT_PREFIX", "CONDA_ROOT") if os.environ.get(v)]
    for program in (os.environ.get("CONDA_EXE"), shutil.which("conda"), shutil.which("mamba")):
        if program:
            # <base>/bin/conda, or <base>/condabin/conda.
            installed.append(os.path.dirname(os.path.dirname(os.path.realpath(program))))
    if name == "base":
        yield from map(Path, installed)
    for variable in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
        for folder in filter(None, os.environ.get(variable, "").split(os.pathsep)):
            yield Path(folder) / name
    for base in installed:
        yield Path(base) / "envs" / name
    home = Path.home() / ".conda"
    yield home / "envs" / name
    try:
        known = (home / "environments.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        return
    yield from (Path(line) for line in known if os.path.basename(line) == name)


def contradictions(env: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what is wrong with `env` wherever the step runs."""
    for name in ("name", "venv", "conda"):
        if env.get("container") and env.get(name):
            message = "a container brings its own Python; name one inside it by `env.python`"
            yield f"env.{name}", message
    text = "\n".join(env.get("setup", ()))
    bash = shutil.which("bash")
    if text and bash:
        checked = _run([bash, "-n", "-c", text])
        if checked is not None and checked.returncode != 0:
            told = (checked.stderr.strip().splitlines() or ["?"])[0]
            yield "env.setup", f"bash cannot read it: {re.sub(r'^.*?: (-c: )?', '', told)}"


def missing(env: Mapping[str, Any], root: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what `env` names and this host does not have.

    What modules and `setup` would bring cannot be told before they have: then only paths are
    looked at.
    """
    if not needs_process(env):
        return
    if shutil.which("bash") is None:
        yield "env", "an environment of its own takes bash, which is not on PATH"
        return
    if uses_modules(env) and not _has_module():
        yield "env.modules" if env.get("modules") else "env.setup", "there is no `module` here"
    if env.get("container"):
        yield from _missing_container(env, root)
    else:
        yield from _missing_interpreter(env, root)


def _missing_container(env: Mapping[str, Any], root: Path) -> Iterator[tuple[str, str]]:
    image = env["container"]
    if "://" not in image and not path_of(image, root).exists():
        yield "env.container", f"no such image: {image}"
    if not _brings_more(env) and not any(map(shutil.which, CONTAINER_PROGRAMS)):
        yield "env.container", f"neither {' nor '.join(CONTAINER_PROGRAMS)} is on PATH"


def _missing_interpreter(env: Mapping[str, Any], root: Path) -> Iterator[tuple[str, str]]:
    kind = next((name for name in ("venv", "conda", "python") if env.get(name)), None)
    if kind is None:
        return
    found = interpreter(env, root)
    if found is None:
        if not _brings_more(env):
            yield from _missing_name(kind, env[kind])
    elif not os.access(found, os.X_OK) or found.is_dir():
        yield f"env.{kind}", f"there is no interpreter {found}"
    elif not _brings_more(env):
        yield from ((f"env.{kind}", message) for message in _too_old(str(found)))


def _missing_name(kind: str, name: str) -> Iterator[tuple[str, str]]:
    if kind == "conda":
        yield "env.conda", f"no conda environment is named '{name}'; or give its path"
        return
    program = shutil.which(name)
    if program is None:
        yield "env.python", f"no '{name}' is on PATH"
    else:
        yield from (("env.python", message) for message in _too_old(program))


def _brings_more(env: Mapping[str, Any]) -> bool:
    return bool(env.get("modules") or env.get("setup"))


@functools.cache
def _has_module() -> bool:
    done = _run(["bash", "-c", f"{FIND_MODULE}type module"])
    return done is not None and done.returncode == 0


@functools.cache
def _too_old(program: str) -> tuple[str, ...]:
    """Return what is wrong with the interpreter `program`, by asking it for its version."""
    done = _run([program, "-S", "-c", _VERSION])
    if done is None or done.returncode != 0:
        told = done.stderr.strip().splitlines() if done is not None else []
        return (f"{program} does not run{': ' + told[-1] if told else ''}",)
    version = tuple(map(int, done.stdout.split()))
    if version >= LEAST_PYTHON:
        return ()
    needed = ".".join(map(str, LEAST_PYTHON))
    return (
        f"{program} is Python {'.'.join(map(str, version))}; a step takes {needed} or later "
        "(a command of another Python can be called from a step)",
    )


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
