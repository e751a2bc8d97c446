"""Pipelines of small shell commands, and real processes that run them, for the tests of behaviour.

Every command step of a `Flow` notes its id in a file outside the project when it is executed, so
that a test can count executions and not what we say about them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import child_environment

PATIENCE_S = 180.0

StepDict = dict[str, Any]


class Flow:
    """A pipeline file in a project, and what became of its steps."""

    def __init__(self, project: Path, name: str = "flow") -> None:
        self.project = project
        self.name = name
        self.file = project / f"{name}.yaml"
        self.executions = project.parent / "executions"

    def step(self, id_: str, command: str = "true", **fields: Any) -> StepDict:
        """Return a step whose command notes its execution; `fields` are those of the document."""
        params = {"command": f"echo {id_} >> {self.executions}\n{command}"}
        return {
            "id": id_,
            "uses": "runners.command",
            **fields,
            "params": {**params, **fields.get("params", {})},
        }

    def write(self, *steps: StepDict, name: str | None = None) -> Path:
        """Write the pipeline of `steps`; every JSON document is YAML, too."""
        document = {"pipeline": {"name": name or self.name, "steps": list(steps)}}
        self.file.write_text(json.dumps(document, indent=2))
        return self.file

    def executed(self) -> list[str]:
        """Return the ids of the steps executed since the last call, in their order."""
        try:
            ids = self.executions.read_text().split()
        except FileNotFoundError:
            return []
        self.executions.unlink()
        return ids

    def count(self, id_: str) -> int:
        """Return how often a step was executed since `executed` was called."""
        text = self.executions.read_text() if self.executions.exists() else ""
        return Counter(text.split())[id_]

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return what pipeline_state.json says of each step."""
        state = self.project / f".nexa_state/{self.name}/pipeline_state.json"
        found: dict[str, dict[str, Any]] = json.loads(state.read_text())["steps"]
        return found

    def states(self) -> dict[str, str]:
        """Return step id -> state, as pipeline_state.json has it."""
        return {step: entry["status"] for step, entry in self.steps().items()}


def _heed_signals() -> None:
    # A test run in the background, or under nohup, would hand on that these are ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Process:
    """`nexa-hpc ARGS` in the background, as the leader of a process group of its own."""

    def __init__(self, project: Path, *args: str | os.PathLike[str], **env: str) -> None:
        self.output = project.parent / f"output-{time.monotonic_ns()}"
        with self.output.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nexa_hpc", *map(os.fspath, args)],
                cwd=project,
                env=child_environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_signals,
            )
        self.pid = self._process.pid

    def interrupt(self) -> None:
        """Do what Ctrl-C does in a terminal: SIGINT for the whole foreground group."""
        os.killpg(self.pid, signal.SIGINT)

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as kill -9 does, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def wait(self, expect: int | None = 0) -> str:
        """Wait for its end and return what it printed; its exit code must be `expect`."""
        code = self._process.wait(PATIENCE_S)
        text = self.text()
        assert expect is None or code == expect, f"exit code {code}, not {expect}:\n{text}"
        return text

    def text(self) -> str:
        """Return what it has printed so far."""
        return self.output.read_text(errors="replace")

    def running(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until `condition` holds; fails after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s in vain: {what}"
        time.sleep(0.02)


def alive(pids: Sequence[int]) -> list[int]:
    """Return those of `pids` that run; a zombie, which only waits to be noticed, does not."""
    return [pid for pid in pids if _state(pid) not in ("Z", "X", "")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def pids_in(file: Path) -> list[int]:
    """Return the process ids, one a line, that a command wrote into `file`."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []
