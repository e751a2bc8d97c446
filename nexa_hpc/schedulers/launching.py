"""Starting `nexa_hpc.worker` in the environment that a step declares.

    needs_process(instance)               whether the step cannot run in the process that asks
    worker_command(reference, instance, paths)   the argv that makes the attempt in its environment
    worker_environment(instance, paths)   what to add to the environment variables of that process
    describe_exit(code, last_line)        how such a process ended, in words

The argv is `bash -c SCRIPT`. The script loads the modules, runs the lines of `setup`, enters the
venv, the conda environment or the container, and becomes (`exec`) the Python found there, with our
own package brought along: an environment needs nothing of ours. What cannot be entered exits with
ENVIRONMENT_EXIT, after a line on standard error. Called by the schedulers. Standard library alone.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from nexa_hpc.core.environments import (
    CONTAINER_PROGRAMS,
    FIND_MODULE,
    LEAST_PYTHON,
    conda_prefix,
    interpreter,
    path_of,
    uses_modules,
)
from nexa_hpc.core.environments import needs_process as env_needs_process
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.named_environments import link_of
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import read_json_or_none

ENVIRONMENT_EXIT = 78
"""The exit code (EX_CONFIG) of a process that could not enter its environment."""

_PACKAGE = Path(__file__).resolve().parents[1]
_START = (
    f"import sys; sys.version_info < {LEAST_PYTHON} and (sys.stderr.write('error: %s is Python %s; "
    f"a step takes {'.'.join(map(str, LEAST_PYTHON))} or later\\n' "
    f"% (sys.executable, sys.version.split()[0])), sys.exit({ENVIRONMENT_EXIT})); "
    "sys.path[:] = [sys.argv.pop()] + [p for p in sys.path if p]; "
    "import nexa_hpc; del sys.path[0]; "
    "from nexa_hpc.worker import main; main()"
)
"""What `-m nexa_hpc.worker` would do, but for two things. Nothing is imported from the current
folder, which is whosever it is. And our package is this one, whichever the environment may hold,
while nothing that is installed beside ours gets into the step's."""

_PROLOGUE = f"""\
_nexa_fail() {{ printf 'error: %s\\n' "$1" >&2; exit {ENVIRONMENT_EXIT}; }}
"""
_MODULES = f"""\
{FIND_MODULE}type module >/dev/null 2>&1 || _nexa_fail 'there is no `module` on this node'
"""
# A command that fails in a file that a line sources is that file's affair, as its author tested it.
_SETUP = """\
trap '[ ${#BASH_SOURCE[@]} -gt 0 ] || _nexa_fail "env.setup: exit code $? from: $BASH_COMMAND"' ERR
eval %s
trap - ERR
"""
_ACTIVATE_CONDA = """\
for _nexa_file in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
  if [ -r "$_nexa_file" ]; then . "$_nexa_file"; fi
done
"""


def needs_process(instance: Instance) -> bool:
    """Return whether `instance` must run in a process of its own environment."""
    return env_needs_process(instance.env)


def worker_command(reference: str, instance: Instance, paths: ProjectPaths) -> list[str]:
    """Return the argv of a process that makes the attempt named by `reference`.

    `reference` is what `schedulers.base.reference` returns. Without an environment of its own the
    step gets this interpreter. Start the argv with `worker_environment` added to the variables.
    Writes nothing.
    """
    start = ["-c", _START, reference, str(_PACKAGE.parent)]
    if not needs_process(instance):
        return [sys.executable, *start]
    return [shutil.which("bash") or "/bin/bash", "-c", _script(instance, paths, start)]


def worker_environment(instance: Instance, paths: ProjectPaths) -> dict[str, str]:
    """Return the variables that the process of `worker_command` gets besides those of its parent.

    They are declared ones and those that a conda environment keeps, never secrets, which it
    inherits. Here and not in the argv, which every user of the machine can read.
    """
    variables: dict[str, str] = {}
    if not needs_process(instance):
        return variables  # `worker.execute` sets the declared ones.
    if instance.env.get("conda"):
        prefix = conda_prefix(instance.env["conda"], paths.root)
        state = read_json_or_none(prefix / "conda-meta" / "state") if prefix is not None else None
        if isinstance(state, dict):
            kept = state.get("env_vars") or {}
            variables |= {name: str(value) for name, value in kept.items()}
    return variables | dict(instance.env.get("variables", {}))


def describe_exit(code: int, last_line: str = "") -> str:
    """Return how a process of `worker_command` ended that left no record; `code` as subprocess has
    it, `last_line` the last that it printed.
    """
    if code == ENVIRONMENT_EXIT:
        told = last_line.strip().removeprefix("error: ")
        return f"its environment could not be entered{': ' + told if told else ''}"
    if code >= 0:
        return f"its worker process exited with {code}"
    name = signal.Signals(-code).name
    more = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its worker process was killed by {name}{more}"


def _script(instance: Instance, paths: ProjectPaths, start: list[str]) -> str:
    env = instance.env
    parts = [_PROLOGUE]
    if uses_modules(env):
        parts.append(_MODULES)
    parts.append("_nexa_before=$(command -v python3)\n")
    for name in env.get("modules", ()):
        failed = shlex.quote(f"env.modules: `module load {name}` failed")
        parts.append(f"module load {shlex.quote(name)} || _nexa_fail {failed}\n")
    if env.get("setup"):
        parts.append(_SETUP % shlex.quote("\n".join(env["setup"])))
    if env.get("container"):
        parts.append(_into_container(instance, paths, start))
    else:
        parts.append(_into_interpreter(instance, paths))
        parts.append(f'exec "$_nexa_python" {shlex.join(start)}\n')
    return "".join(parts)


def _into_interpreter(instance: Instance, paths: ProjectPaths) -> str:
    """Return shell text that sets `_nexa_python`, and what its environment asks to be set."""
    env = instance.env
    if env.get("name"):
        return _by_own_name(env["name"], paths)
    program = interpreter(env, paths.root)
    if env.get("conda") and program is None:
        return _by_conda(env["conda"])
    if program is None:
        return _by_name(env.get("python"))
    kind = next(name for name in ("venv", "conda", "python") if env.get(name))
    failed = shlex.quote(f"env.{kind}: there is no interpreter {program} on this node")
    text = f"_nexa_python={shlex.quote(str(program))}\n"
    text += f'[ -x "$_nexa_python" ] || _nexa_fail {failed}\n'
    prefix = shlex.quote(str(program.parent.parent))
    if kind == "venv":
        text += f"export VIRTUAL_ENV={prefix}\n"
    if kind == "conda":
        name = shlex.quote(program.parent.parent.name)
        text += f"export CONDA_PREFIX={prefix} CONDA_DEFAULT_ENV={name}\n"
    if kind in ("venv", "conda"):
        text += f'export PATH={prefix}/bin:"$PATH"\nunset PYTHONHOME\n'
    return text + (_ACTIVATE_CONDA if kind == "conda" else "")


def _by_own_name(name: str, paths: ProjectPaths) -> str:
    """Return shell text that enters what the name means now, by the path that stays its own."""
    link = link_of(paths.envs, name)
    absent = f"env.name: there is no environment '{name}' in {paths.envs} on this node"
    gone = f"env.name: the Python of the environment '{name}' is not there on this node"
    return (
        f"_nexa_venv=$(cd -P {shlex.quote(str(link))} 2>/dev/null && pwd -P) "
        f"|| _nexa_fail {shlex.quote(absent)}\n"
        "_nexa_python=$_nexa_venv/bin/python\n"
        f'[ -x "$_nexa_python" ] || _nexa_fail {shlex.quote(gone)}\n'
        'export VIRTUAL_ENV=$_nexa_venv\nexport PATH="$_nexa_venv/bin:$PATH"\n'
        "unset PYTHONHOME\n"
    )


def _by_conda(name: str) -> str:
    """Return shell text that has conda find the environment: a module may have brought conda."""
    unknown = shlex.quote(f"env.conda: no environment '{name}' was found, and there is no `conda`")
    failed = shlex.quote(f"env.conda: `conda activate {name}` failed")
    return (
        f"type conda >/dev/null 2>&1 || _nexa_fail {unknown}\n"
        'eval "$(conda shell.posix hook)"\n'
        f"conda activate {shlex.quote(name)} || _nexa_fail {failed}\n"
        "_nexa_python=$CONDA_PREFIX/bin/python\n"
    )


def _by_name(name: str | None) -> str:
    """Return shell text that takes the interpreter from PATH.

    Without a name it is the python3 that modules or `setup` have put there, and else our own.
    """
    if name:
        failed = shlex.quote(f"env.python: no '{name}' is on PATH on this node")
        return f"_nexa_python=$(command -v {shlex.quote(name)}) || _nexa_fail {failed}\n"
    return (
        "_nexa_python=$(command -v python3)\n"
        'if [ -z "$_nexa_python" ] || [ "$_nexa_python" = "$_nexa_before" ]; then\n'
        f"  _nexa_python={shlex.quote(sys.executable)}\n"
        "fi\n"
    )


def _into_container(instance: Instance, paths: ProjectPaths, start: list[str]) -> str:
    env = instance.env
    image = env["container"] if "://" in env["container"] else path_of(env["container"], paths.root)
    arguments = ["exec", *(["--nv"] if _asks_for_gpus(instance) else [])]
    binds = list(_binds(instance, paths))
    unbindable = [str(path) for path, _ in binds if ":" in str(path) or "," in str(path)]
    if unbindable:
        failed = f"env.container: the name of {unbindable[0]} holds ':' or ',': it cannot be bound"
        return f"_nexa_fail {shlex.quote(failed)}\n"
    for source, options in binds:
        arguments += ["--bind", f"{source}:{source}{options}"]
    inner = [env.get("python") or "python3", *start]
    words = shlex.join([*arguments, "--pwd", str(paths.root), str(image), *inner])
    # What is not there cannot be bound; the roots that others use were made when the run began.
    made = shlex.join(str(source) for source, options in binds if not options)
    tries = f"mkdir -p -m 700 {made}\n" + "".join(
        f"if command -v {program} >/dev/null; then exec {program} {words}; fi\n"
        for program in CONTAINER_PROGRAMS
    )
    failed = f"env.container: neither {' nor '.join(CONTAINER_PROGRAMS)} is on PATH on this node"
    return f"{tries}_nexa_fail {shlex.quote(failed)}\n"


def _asks_for_gpus(instance: Instance) -> bool:
    resources = instance.resources
    counted = any(resources.get(name) for name in ("gpus_per_node", "gpus_per_task"))
    return counted or "gpu" in (resources.get("gres") or "")


def _binds(instance: Instance, paths: ProjectPaths) -> Iterator[tuple[Path, str]]:
    """Yield what the container is to see at the same place, and how."""
    written = [paths.root, paths.state, paths.store, paths.work, paths.registry]
    read = [Path(handed["path"]) for handed in instance.inputs.values() if "path" in handed]
    shown: list[Path] = []
    for path in (*written, *read):
        if any(path.is_relative_to(above) for above in shown):
            continue
        shown.append(path)
        yield path, "" if path in written else ":ro"
    yield _PACKAGE, ":ro"
