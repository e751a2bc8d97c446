"""Projects of many steps for the benchmarks, and how a command of ours is timed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timing:
    """One process, from its start to its end."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    """Peak resident memory of that process or a child of it, in MB."""


def write_pipeline(project: Path, steps: int, *, chained: bool = False, command: str = ":") -> Path:
    """Write a pipeline of no-op commands, independent ones or a chain, and return its file."""
    after = "" if chained else ", after: []"
    lines = ["pipeline:", "  name: many", "  steps:"]
    lines += [
        f"    - {{id: s{number}, uses: runners.command{after}, "
        f"params: {{command: '{command}', number: {number}}}}}"
        for number in range(steps)
    ]
    # So that the project is this folder, wherever it lies.
    (project / "nexa.yaml").touch()
    file = project / "many.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def timed(arguments: Sequence[str], cwd: Path) -> Timing:
    """Run a process to its end, which must be a good one, and return what it took."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # An installed package has its byte code beside it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    process = subprocess.Popen(
        arguments, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} exited with {process.returncode}")
    return Timing(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def nexa(*arguments: str) -> list[str]:
    """Return the command line of nexa-hpc in this interpreter."""
    return [sys.executable, "-m", "nexa_hpc", *arguments]


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]
