"""Making environments by name with uv, else with pip.

What is made is whole or not there: a virtual environment is built where it stays, its lock and its
marker are written last, and one rename of a link gives it its name. Building twice at the same time
does no harm: the later link holds. What a killed build left lies apart until it is removed. Called
by `env`. Standard library alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.env_checking import with_versions
from nexa_hpc.core.environments import LEAST_PYTHON
from nexa_hpc.core.extras import normalized, requirements_of
from nexa_hpc.core.named_environments import (
    BUILDS,
    LOCK,
    MARKER,
    NamedEnvironment,
    build_for,
    create_command,
    find_environment,
    installed,
    link_of,
    lock_of,
    name_problem,
    others,
)
from nexa_hpc.core.wheelhouses import packed, unpacked
from nexa_hpc.errors import NexaError, UnknownNameError, UserError, nearest

Say = Callable[[str], None]
_ASKED = "nexa_env.in"


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of."""

    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """Requirements as pip takes them; paths are absolute."""
    without: tuple[str, ...] = ()
    """Distributions that are taken out again, though something asks for them."""
    lock: str | None = None
    """The text of a lock: these versions and nothing else, instead of extras and packages."""
    python: str | None = None
    """The interpreter, by path, or by name on PATH; None: the one of nexa-hpc."""
    wheelhouse: Path | None = None
    """A folder of wheels, or an archive of `env pack`; then nothing comes from elsewhere."""


def create(
    envs: Path, name: str, recipe: Recipe, *, again: bool = False, say: Say = print
) -> NamedEnvironment:
    """Make the environment `name`, or find it made of the same already; return it.

    Raises UserError for what cannot be made, or where the name means another one and `again` is not
    asked for; NexaError where installing fails, and then leaves everything as it was.
    """
    problem, link = name_problem(name), link_of(envs, name)
    if problem is not None:
        raise UserError(problem)
    if os.path.lexists(link) and not link.is_symlink():
        raise UserError(f"{link} was not made by env create; take another name")
    recipe = _with_packed(recipe)
    if recipe.lock is None and not (recipe.extras or recipe.packages):
        raise UserError("of what? give --extra, --package or --from-lock")
    there = _there(envs, name)
    if there is not None and not again:
        return _same(there, recipe)
    python = _interpreter(recipe.python)
    build = build_for(envs, name, atomic.unique_suffix())
    atomic.make_folder(envs / BUILDS)
    try:
        made = _build(build, name, recipe, python, say)
    except BaseException:
        atomic.remove_tree(build)
        raise
    atomic.write_file(lock_of(envs, name), made.lock.read_text(encoding="utf-8"))
    atomic.replace_link(link, os.path.join(BUILDS, build.name))
    atomic.sync_folder(envs)
    return find_environment(envs, name)


def remove(envs: Path, name: str, *, older_only: bool) -> list[Path]:
    """Remove what builds of `name` have left, and unless `older_only` the environment itself.

    Whoever runs in them loses them. Returns the folders that were removed.
    """
    if not older_only:
        link = link_of(envs, name)
        if not link.is_symlink():
            find_environment(envs, name)  # raises, with the nearest name
            raise UserError(f"{link} was not made by env create; remove it yourself")
        atomic.remove_file(link)
        atomic.remove_file(lock_of(envs, name))
    gone = [folder for _, folder in others(envs, name)]
    for folder in gone:
        atomic.remove_tree(folder)
    return gone


def _there(envs: Path, name: str) -> NamedEnvironment | None:
    try:
        return find_environment(envs, name)
    except UnknownNameError:
        return None


def _same(there: NamedEnvironment, recipe: Recipe) -> NamedEnvironment:
    """Return `there` if it is what `recipe` would make; raises UserError otherwise."""
    python = recipe.python is None or str(_interpreter(recipe.python)) == there.made.get("python")
    if recipe.lock is not None:
        locks = (there.made.get("lock_sha256"), there.made.get("from_lock_sha256"))
        same = _digest(recipe.lock) in locks
    else:
        asked = (recipe.extras, recipe.packages, recipe.without)
        has = (there.extras, there.packages, there.without)
        same = [*map(sorted, asked)] == [*map(sorted, has)]
    if same and python:
        return there
    raise UserError(
        f"the environment '{there.name}' is there, and made of something else: {there.command()}",
        hint="--again makes it anew; what runs in the old one keeps it",
    )


def _interpreter(python: str | None) -> Path:
    """Return the interpreter that is meant; raises UserError for none, or one too old."""
    text = python or sys.executable
    named = [text, f"python{text}"] if "/" not in text else [text]
    found = next((program for name in named if (program := shutil.which(name))), None)
    if found is None:
        raise UserError(f"no Python '{text}' was found", hint="give a path, or a name on PATH")
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([found, "-S", "-c", asked], capture_output=True, text=True)
    version = tuple(map(int, done.stdout.split("."))) if done.returncode == 0 else ()
    if version < LEAST_PYTHON:
        needed = ".".join(map(str, LEAST_PYTHON))
        said = done.stdout.strip() or "no Python that runs"
        raise UserError(f"{found} is {said}; a step takes {needed} or later")
    return Path(found)


@dataclass(frozen=True)
class _Installer:
    """uv or our own pip, at work on one environment."""

    uv: str | None
    build: Path

    def make(self, python: Path) -> None:
        """Make the environment, with nothing in it."""
        if self.uv is not None:
            run_tool([self.uv, "venv", "--python", str(python), str(self.build)], "uv venv")
        else:
            run_tool([str(python), "-m", "venv", "--without-pip", str(self.build)], "venv")

    def command(self, verb: str) -> list[str]:
        """Return the command line of one of pip's verbs."""
        python = self.build / "bin" / "python"
        if self.uv is not None:
            return [self.uv, "pip", verb, "--python", str(python)]
        return [*pip_of(python), verb, *(["--all"] if verb == "freeze" else [])]


def _build(build: Path, name: str, recipe: Recipe, python: Path, say: Say) -> NamedEnvironment:
    uv = shutil.which("uv")
    if uv is None and importlib.util.find_spec("pip") is None:
        raise UserError("neither uv nor pip is here to install with", hint="pip install uv")
    installer = _Installer(uv, build)
    with unpacked(recipe.wheelhouse, build) as wheels:
        asked = [*requirements_of(recipe.extras), *recipe.packages]
        say(f"making {build} with {'uv' if uv else 'pip'}")
        installer.make(python)
        atomic.write_file(build / _ASKED, recipe.lock or "".join(f"{text}\n" for text in asked))
        only = ["--no-index", "--find-links", str(wheels)] if wheels is not None else []
        exact = ["--no-deps"] if recipe.lock is not None else []
        install = [*installer.command("install"), *only, *exact, "-r", str(build / _ASKED)]
        run_tool(install, "installing")
        if recipe.without and recipe.lock is None:  # A lock was frozen after that.
            _check_there(recipe.without, build)
            yes = ["-y"] if uv is None else []
            run_tool([*installer.command("uninstall"), *yes, *recipe.without], "uninstalling")
        frozen = run_tool(installer.command("freeze"), "freezing", captured=True)
    frozen = with_versions(frozen, installed(build))
    head = _head(name, recipe, build / "bin" / "python")
    atomic.write_file(build / LOCK, head + frozen)
    marker = {
        "name": name,
        "extras": list(recipe.extras),
        "packages": list(recipe.packages),
        "without": list(recipe.without),
        "python": str(python),
        "asked_python": recipe.python,
        "installer": "uv" if uv is not None else "pip",
        "from_lock_sha256": _digest(recipe.lock) if recipe.lock is not None else None,
        "lock_sha256": _digest(head + frozen),
        "distributions": frozen.count("\n"),
    }
    atomic.write_json(build / MARKER, marker)
    return NamedEnvironment(name, build, build, marker)


def _with_packed(recipe: Recipe) -> Recipe:
    """Return the recipe, with what `env pack` wrote beside the wheels if it asks for nothing."""
    house = recipe.wheelhouse
    if house is None or recipe.extras or recipe.packages or recipe.lock is not None:
        return recipe
    found = packed(house)
    if found is None:
        return recipe
    made, lock = found
    extras, packages, without = (
        tuple(made.get(name, ())) for name in ("extras", "packages", "without")
    )
    return replace(recipe, extras=extras, packages=packages, without=without, lock=lock)


def _check_there(names: Sequence[str], build: Path) -> None:
    """Raise UserError for what is to be taken out and was not brought."""
    there = installed(build)
    for name in names:
        if normalized(name) not in there:
            raise UserError(f"--without {name}: nothing asks for it" + nearest(name, there))


def pip_of(python: Path) -> list[str]:
    """Return how our own pip is called to work on the environment of `python`."""
    quiet = ["--disable-pip-version-check", "--no-input"]
    return [sys.executable, "-m", "pip", *quiet, "--python", str(python)]


def run_tool(command: Sequence[str], what: str, *, captured: bool = False) -> str:
    """Run a program, its output on standard error unless it is `captured` and returned."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if captured else sys.stderr.fileno(),
        env=environment,
        text=True,
    )
    if done.returncode != 0:
        raise NexaError(
            f"{what} failed: {os.path.basename(command[0])} exited with {done.returncode}",
            hint="what it printed above says why; nothing was changed",
        )
    return done.stdout or ""


def _head(name: str, recipe: Recipe, python: Path) -> str:
    asked = "import platform; print(platform.python_version(), end='')"
    version = run_tool([str(python), "-S", "-c", asked], "python", captured=True)
    made = create_command(name, recipe.extras, recipe.packages, recipe.without, recipe.python)
    made += " --from-lock …" if recipe.lock is not None else ""
    return f"# {made}\n# Python {version}, {platform.machine()} {platform.system()}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
