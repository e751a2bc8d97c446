"""Strikes a program at each of its system calls in turn, under strace: killed there, or told no.

A dry run under strace lists the *points*: the calls on paths below one folder, each with its
ordinal among the calls of its name. Then one run for each point and fault injects it there
(`-e inject=<call>:signal=KILL:when=<ordinal>`, or `:error=<E>`). Only the main thread is traced, so
what it starts runs undisturbed. Ordinals hold as long as the program calls the same calls in the
same order, hence `plain_environment`. A kill here is not a power cut: what was written stays in the
page cache.

What is struck is a command, or, four times as fast, a child that a `Nursery` forks.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

KILL = "KILL"
FULL = ("ENOSPC", "EDQUOT")
FLAKY = ("EIO", "ESTALE")

MUTATING = (
    "creat", "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2",
    "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir",
    "ftruncate", "truncate", "chmod", "fchmod", "fchmodat", "utimensat",
)  # fmt: skip
READING = (
    "read", "pread64", "getdents64", "stat", "lstat", "newfstatat", "statx", "readlink",
    "readlinkat", "access", "faccessat",
)  # fmt: skip
OPENING = ("open", "openat")
CLOSING = ("close",)
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
_PR_SET_PTRACER = 0x59616D61  # prctl(2): let strace attach where Yama keeps others out
_LINE = re.compile(r"(\w+)\((.*)")


@dataclass(frozen=True)
class Point:
    """The `ordinal`-th call of `call` by the program's main thread."""

    call: str
    ordinal: int
    mutating: bool
    text: str
    """The call's arguments, as strace showed them in the dry run."""

    def faults(self) -> tuple[str, ...]:
        """Return what can happen at this point: nobody dies of reading, or fills a disk by it."""
        if self.mutating:
            return (KILL, *FULL, *FLAKY)
        return (*FULL, *FLAKY) if self.call in CLOSING else FLAKY

    def __str__(self) -> str:
        return f"{self.call}#{self.ordinal}({self.text[:160]})"


def why_not() -> str | None:
    """Return why nothing can be struck here, or None."""
    if shutil.which("strace") is None:
        return "needs strace"
    done = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True)
    return "needs the right to trace (ptrace)" if done.returncode else None


def plain_environment(**more: str) -> dict[str, str]:
    """Return an environment in which Python makes the same system calls each time."""
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    return {**fixed, **more}


def _listing(log: Path) -> list[str | Path]:
    calls = [*MUTATING, *READING, *OPENING, *CLOSING]
    trace = "trace=" + ",".join(f"?{call}" for call in calls)
    return ["-y", "-s", "300", "-o", log, "-e", "signal=none", "-e", trace]


def _injecting(point: Point, fault: str) -> list[str | Path]:
    what = "signal=KILL" if fault == KILL else f"error={fault}"
    inject = f"inject={point.call}:{what}:when={point.ordinal}"
    return ["-o", os.devnull, "-e", "signal=none", "-e", f"trace={point.call}", "-e", inject]


def _points(log: Path, folder: Path) -> list[Point]:
    seen: Counter[str] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        call, text = match.groups()
        seen[call] += 1
        if str(folder) in text:
            opens_to_write = call in OPENING and _WRITES.search(text) is not None
            mutating = call in MUTATING or opens_to_write
            found.append(Point(call, seen[call], mutating, text.replace(str(folder), "")))
    assert found, "the program did nothing that could be struck"
    return found


@dataclass(frozen=True)
class Command:
    """A program, as `subprocess` starts it."""

    words: Sequence[str | os.PathLike[str]]
    cwd: Path
    env: Mapping[str, str]

    def points(self, folder: Path) -> list[Point]:
        """Return the program's points on paths below `folder`."""
        log = folder.with_name(f"{folder.name}.strace")
        done = self._run(_listing(log))
        assert done.returncode == 0, done.stdout + done.stderr
        return _points(log, folder)

    def strike(self, point: Point, fault: str) -> subprocess.CompletedProcess[str]:
        """Run the program and inject `fault` at `point`."""
        return self._run(_injecting(point, fault))

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the program undisturbed."""
        return self._run(None)

    def _run(self, options: Sequence[str | Path] | None) -> subprocess.CompletedProcess[str]:
        strace = [] if options is None else ["strace", "-qq", *options]
        return subprocess.run(
            [*strace, *self.words],
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )


class Nursery:
    """A process that has imported everything and forks a child for each task (`serve`)."""

    def __init__(self, program: Sequence[str | os.PathLike[str]], env: Mapping[str, str]) -> None:
        self._server = subprocess.Popen(
            program,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        self._server.communicate()

    def points(self, folder: Path, *task: str) -> list[Point]:
        """Return the points of `task` on paths below `folder`."""
        log = folder.with_name(f"{folder.name}.strace")
        code, told = self.run(*task, options=_listing(log))
        assert code == 0, told
        return _points(log, folder)

    def strike(self, point: Point, fault: str, *task: str) -> int:
        """Run `task`, inject `fault` at `point` and return the exit code."""
        code, told = self.run(*task, options=_injecting(point, fault))
        assert fault != KILL or code == -signal.SIGKILL, f"{point}: not reached: {code} {told}"
        return code

    def run(self, *task: str, options: Sequence[str | Path] = ()) -> tuple[int, str]:
        """Run `task`, under strace with `options` if any; return its exit code and what it told."""
        pid = self._ask(list(task))
        tracer = None
        if options:
            tracer = subprocess.Popen(
                ["strace", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True
            )
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert "attached" in said, said
        code, told = self._ask("go")
        if tracer is not None:
            tracer.communicate()
        return code, told

    def _ask(self, question: object) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve(perform: Callable[..., object]) -> None:
    """Be the process behind a `Nursery`: `perform(*task)` in a child each, until input ends.

    What it raises is told, with exit code 1; what it returns is told, too.
    """
    for line in sys.stdin:
        go_reader, go_writer = os.pipe()
        told_reader, told_writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_writer)
            _child(perform, json.loads(line), go_reader, told_writer)
        os.close(go_reader)
        os.close(told_writer)
        print(pid, flush=True)
        sys.stdin.readline()
        os.close(go_writer)
        with os.fdopen(told_reader) as stream:
            told = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([code, told]), flush=True)


def _child(perform: Callable[..., object], task: list[str], go: int, told: int) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.read(go, 1)
    code, text = 0, ""
    try:
        text = str(perform(*task) or "")
    except BaseException:
        code, text = 1, traceback.format_exc(limit=-3)
    os.write(told, text.encode())
    os._exit(code)
