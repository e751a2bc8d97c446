"""`runners.command`: a shell command as a step.

Params: `command` (text for bash, run with `-e -o pipefail` from the project root), `code` (files
and folders digested into the key), `checkpoint: {glob, signal}`, `launcher` (see `launchers`);
every other param reaches the command as `$PARAM_<name>`. The text itself is literal: nothing is
filled in by us. The command sees

    $OUT             the folder to fill ($OUT_<name> for each of several outputs)
    $WORK            scratch of this attempt
    $RESUME          a folder with the last sealed checkpoint of an earlier attempt, or empty
    $IN_<name>       the path of each input; for the server of a step, its URL
    $IN_<name>_TOKEN_FILE   the file that holds what such a server must be shown, where it must
    $PARAM_<name>    each other param: text as it is, true/false, anything nested as JSON
    $PYTHON          the interpreter that runs nexa_hpc

and under a `launcher` other than none MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, NNODES and NODE_RANK, as torch.distributed reads them. Characters of a name that
a shell variable cannot hold are written `_`. With `checkpoint`, files matching `glob` below $WORK
are sealed as soon as two looks a second apart find them unchanged, and once more when the command
was asked to stop and did: write them under another name and rename them. A command whose server has
gone is stopped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nexa_hpc.core.endpoints import require_living
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.instances import SINGLE_OUTPUT
from nexa_hpc.core.leftovers import LAUNCH_VARIABLE, end_leftovers
from nexa_hpc.core.quoting import shown
from nexa_hpc.core.servers import Servers
from nexa_hpc.errors import nearest
from nexa_hpc.runners import launchers
from nexa_hpc.runners.checkpoint_watch import CheckpointWatch
from nexa_hpc.runners.process_group import ask_to_stop, await_stop, failure, signal_group

_OWN_PARAMS = ("command", "code", "checkpoint", "launcher")
_TOKEN_FILE = "_TOKEN_FILE"
"""Marks what a launcher starts: torchrun gives each of its processes a session of its own."""
_LOOK_EVERY_S = 1.0
_STOP_GRACE_S = 30.0
_CHECKPOINT_KEYS = ("glob", "signal")


class CommandHandler:
    """The handler behind `runners.command`."""

    version = "1"
    code_params = ("code",)

    def validate(self, step: StepView) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the params."""
        command = step.params.get("command")
        if not isinstance(command, str) or not command.strip():
            yield "params.command", "is missing: the shell command to run, as text"
        elif "\0" in command:
            yield "params.command", "holds a NUL character"
        if step.backend is not None:
            yield "backend", "runners.command has no backends; remove it"
        yield from _validate_names(step)
        yield from _validate_code(step)
        yield from _validate_checkpoint(step.params.get("checkpoint"))
        yield from launchers.problems(step)

    def resumable(self, params: Mapping[str, Any]) -> bool:
        """Return whether the command leaves checkpoints behind."""
        return bool(params.get("checkpoint"))

    def warn(self, step: StepView) -> Iterator[str]:
        """Yield the project files that the command names and the key would not notice changing."""
        named = _named_files(step)
        if not named:
            return
        known = [*_listed(step.params.get("code")), *map(str, step.inputs.values())]
        roots = [_absolute(step.project, name) for name in known]
        for word in named:
            path = _absolute(step.project, word)
            inside = path.is_relative_to(step.project)
            if inside and not any(path.is_relative_to(root) for root in roots):
                yield f"the command names {word}, which is not in the key; list it in `code`"

    def run(self, task: Task) -> None:
        """Run the command; raises CommandError when it does not exit with 0."""
        launch = launchers.launch(
            task, [*_shell(os.environ.get("PATH")), str(task.params["command"])]
        )
        if launch is None:
            return
        mark = f"{os.getpid()}-{os.urandom(4).hex()}"
        checkpoint = task.params.get("checkpoint") or {}
        # All ranks share the work folder; one of them seals what is in it.
        watches = checkpoint and task.ranks.rank == 0
        seals = CheckpointWatch(task.work_dir, checkpoint["glob"]) if watches else None
        process = None
        try:
            process = _start(task, launch, mark)
            code = _supervise(process, task, seals)
            if code != 0 or seals is not None:
                await_stop()
        except BaseException:
            if process is not None:
                _stop(process, _signal_number(checkpoint.get("signal", "TERM")), seals)
            raise
        finally:
            # What the shell left in the background would write into a published result.
            if process is not None:
                signal_group(process, signal.SIGKILL)
            # A signal may have come when it had been started and was not known to us yet.
            if process is None or launch.starts_sessions:
                end_leftovers(mark, LAUNCH_VARIABLE)
        if code != 0:
            raise failure(code)


handler = CommandHandler()


def _start(task: Task, launch: launchers.Launch, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        launch.argv,
        cwd=task.code or task.project,
        env={
            **launch.cleaned(os.environ),
            **command_variables(task),
            **launch.variables,
            LAUNCH_VARIABLE: mark,
        },
        stdin=subprocess.DEVNULL,
        # Its own process group, so that all it started can be stopped together.
        start_new_session=True,
    )


def command_variables(task: Task) -> dict[str, str]:
    """Return the environment variables that describe `task` to a command."""
    variables = {
        "WORK": str(task.work_dir),
        "RESUME": str(task.resume.path) if task.resume is not None else "",
        "PYTHON": sys.executable,
    }
    for name, folder in task.outputs.items():
        variables["OUT" if name == SINGLE_OUTPUT else f"OUT_{variable_name(name)}"] = str(folder)
    for name, path in task.inputs.items():
        variables[f"IN_{variable_name(name)}"] = str(path)
    for name, endpoint in task.endpoints.items():
        variables[f"IN_{variable_name(name)}"] = endpoint.url
        if endpoint.token_file is not None:
            variables[f"IN_{variable_name(name)}{_TOKEN_FILE}"] = str(endpoint.token_file)
    for name, value in task.params.items():
        if name not in _OWN_PARAMS:
            variables[f"PARAM_{variable_name(name)}"] = _as_text(value)
    return variables


@lru_cache(maxsize=1024)
def variable_name(name: str) -> str:
    """Return `name` with every character that a shell variable cannot hold written `_`."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=8)
def _shell(path: str | None) -> list[str]:
    bash = shutil.which("bash", path=path)
    return [bash, "-e", "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-e", "-c"]


def _supervise(process: subprocess.Popen[bytes], task: Task, seals: CheckpointWatch | None) -> int:
    """Wait for the command, sealing its checkpoints meanwhile, and return its exit code.

    Raises StepError when a server that it reads has gone.
    """
    if seals is None and not task.endpoints:
        return process.wait()
    servers = Servers(task.servers)
    while True:
        try:
            return process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if seals is not None:
                seals.look()
            require_living(servers, task.endpoints.values())


def _stop(process: subprocess.Popen[bytes], asked: int, seals: CheckpointWatch | None) -> None:
    """Ask the command and all it started to stop, seal what it leaves, and end the rest.

    A second Ctrl-C meanwhile ends it at once.
    """
    try:
        if ask_to_stop(process, asked, _STOP_GRACE_S) and seals is not None:
            seals.last_look()
    finally:
        signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_number(name: Any) -> int:
    text = str(name).upper()
    return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])


def _validate_names(step: StepView) -> Iterator[tuple[str, str]]:
    """Yield the names that would reach the command as the variable of another one."""
    params = [name for name in step.params if name not in _OWN_PARAMS]
    families = (
        ("params", "PARAM", params),
        ("in", "IN", step.inputs),
        ("out", "OUT", step.outputs),
    )
    for section, prefix, names in families:
        if len(names) < 2:
            continue
        taken: dict[str, str] = {}
        for name in names:
            variable = f"{prefix}_{variable_name(name)}"
            # Where it is the server of a step, there is a second one.
            for one in (variable, f"{variable}{_TOKEN_FILE}") if section == "in" else (variable,):
                other = taken.setdefault(one, name)
                if other != name:
                    yield f"{section}.{name}", f"becomes ${one}, as '{other}' does; rename one"


def _validate_code(step: StepView) -> Iterator[tuple[str, str]]:
    code = step.params.get("code", [])
    if not isinstance(code, list) or not all(isinstance(name, str) for name in code):
        yield "params.code", "expected a list of files and folders"
        return
    for name in code:
        problem = _code_problem(step.project, name)
        if problem is not None:
            yield "params.code", problem


def _code_problem(project: Path, name: str) -> str | None:
    path = _absolute(project, name)
    if not path.is_relative_to(project):
        return f"{shown(name)} lies outside the project"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return f"no such file or folder: {shown(name)}"
    except OSError as error:
        return f"{shown(name)} cannot be looked at: {error.strerror}"
    return None


def _validate_checkpoint(checkpoint: Any) -> Iterator[tuple[str, str]]:
    if checkpoint is None:
        return
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("glob"), str):
        yield "params.checkpoint", "expected {glob: …, signal: …}; `glob` is relative to $WORK"
        return
    for name in checkpoint:
        if name not in _CHECKPOINT_KEYS:
            yield f"params.checkpoint.{name}", f"unknown key{nearest(name, _CHECKPOINT_KEYS)}"
    try:
        _signal_number(checkpoint.get("signal", "TERM"))
    except KeyError:
        yield "params.checkpoint.signal", f"no such signal: {checkpoint['signal']}"
    if Path(checkpoint["glob"]).is_absolute() or ".." in Path(checkpoint["glob"]).parts:
        yield "params.checkpoint.glob", "must stay below $WORK"


def _named_files(step: StepView) -> list[str]:
    """Return the words of the command that name files, from the project root."""
    # Texts and no Paths: most words name nothing, and there are many.
    words = _words(str(step.params.get("command", "")))
    return [word for word in words if _is_file(f"{step.project}/{word}")]


def _is_file(path: str) -> bool:
    try:
        # Asked first whether it is there: a stat of what is not raises, which takes longer.
        return os.access(path, os.F_OK) and os.path.isfile(path)  # noqa: PTH113
    except ValueError:
        return False  # No file has such a name.


@lru_cache(maxsize=64)
def _words(command: str) -> list[str]:
    """Return the words of a command, which many steps may share."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:
        return command.split()


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _absolute(project: Path, name: str) -> Path:
    # Not `resolve`: a link inside the project is named by where it stands.
    return Path(os.path.abspath(project / name))  # noqa: PTH100
