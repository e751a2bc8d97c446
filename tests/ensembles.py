"""The ranks of one attempt, as processes: with the variables that srun sets, or started by srun."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import child_environment
from flows import Flow
from slurm_fixtures import PATIENCE

from nexa_hpc.core import records
from nexa_hpc.core.ranks import Ranks
from nexa_hpc.core.runs import Run
from nexa_hpc.pipeline import Pipeline

SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost,n7",
}

START = "import sys; from nexa_hpc.worker import main; main()"
START_AS_RANK = (
    "import os; from nexa_hpc.core.ranks import Ranks; "
    "os.environ['NEXA_HPC_RANKS'] = Ranks.from_environment().encode(); " + START
)


class Ensemble:
    """The ranks of an attempt at the only step of a pipeline, as processes on this machine."""

    def __init__(
        self,
        flow: Flow,
        step: dict[str, Any],
        *,
        attempt: int = 1,
        before: Callable[[], object] = lambda: None,
        by_srun: bool = False,
    ) -> None:
        nodes, each = (step["resources"].get(name, 1) for name in ("nodes", "tasks_per_node"))
        pipeline = Pipeline.from_yaml(flow.write(step), project=flow.project)
        self.run: Run = pipeline.start()[0]
        self.instance = self.run.instances[step["id"]]
        self.records = self.run.paths.records(self.instance.key)
        self.attempt = attempt
        records.claim(self.records, attempt, {"run": self.run.id})
        before()
        self.processes: list[subprocess.Popen[str]] = []
        if by_srun:
            self.processes.append(self._srun(nodes, each))
            return
        for rank in range(nodes * each):
            environment = {
                **SRUN,
                "SLURM_JOB_ID": str(time.monotonic_ns() if not rank else self._job),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank % each),
                "SLURM_NODEID": str(rank // each),
                "SLURM_STEP_NUM_TASKS": str(nodes * each),
                "SLURM_STEP_NUM_NODES": str(nodes),
                "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})",
            }
            self._job = environment["SLURM_JOB_ID"]
            ranks = Ranks.from_environment(environment)
            self.processes.append(self._start(ranks, environment))

    def _srun(self, nodes: int, each: int) -> subprocess.Popen[str]:
        asked = [
            f"--nodes={nodes}",
            f"--ntasks-per-node={each}",
            "--time=5",
            "--kill-on-bad-exit=1",
        ]
        command = [sys.executable, "-c", START_AS_RANK, self._reference]
        return self._popen(["srun", *asked, *command], {})

    def _start(self, ranks: Ranks, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", START, self._reference]
        return self._popen(command, {"NEXA_HPC_RANKS": ranks.encode(), **environment})

    @property
    def _reference(self) -> str:
        return f"{self.run.place.folder}#{self.instance.step}#{self.attempt}"

    def _popen(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=child_environment(OMP_NUM_THREADS="1", **environment),
            cwd=self.run.paths.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self, timeout_s: float = 60) -> list[int]:
        """Wait for all ranks, `PATIENCE` times as long, and return their exit codes."""
        self.said = [
            process.communicate(timeout=timeout_s * PATIENCE)[0] for process in self.processes
        ]
        return [process.returncode for process in self.processes]

    def end(self) -> dict[str, Any]:
        """Return the end record."""
        attempt = records.read_attempts(self.records)[-1]
        assert attempt.end is not None
        return dict(attempt.end)

    def result(self) -> Path:
        """Return the folder of the published result."""
        return self.instance.artifact_paths(self.run.paths)["out"]
