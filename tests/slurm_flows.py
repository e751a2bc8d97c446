"""Pipelines of shell commands on the real cluster: handed over, waited for, asked about."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import RunCli
from flows import Flow
from slurm_fixtures import SlurmCluster

from nexa_hpc.cli.observing import observer_of
from nexa_hpc.compose.settings import project_settings
from nexa_hpc.core.projection import project
from nexa_hpc.core.runs import find_run
from nexa_hpc.core.standings import fold_all

PATIENCE_S = 240.0
CLUSTER = """\
name: mini
min_poll_interval_s: 0.5
poll_interval_s: 1
min_job_age_s: 30
login_policy: allow
partitions:
  main: {default: true, nodes: 4, cpus_per_node: 8}
  high: {nodes: 4, cpus_per_node: 8}
  short: {max_time_min: 2, nodes: 4, cpus_per_node: 8}
"""
POLICY = """\
advance_job: {not_before_min: 0.02, timeout_min: 5}
defaults: {timeout_min: 10}
"""


class SlurmFlow(Flow):
    """A `Flow` whose project knows the cluster `mini`."""

    def __init__(self, project: Path, run_cli: RunCli, cluster: SlurmCluster) -> None:
        super().__init__(project)
        self.cli = run_cli
        self.cluster = cluster
        self.configure()

    def configure(self, cluster: str = "", policy: str = POLICY) -> None:
        """Write the cluster's facts, with lines added or put in their place, and the policy."""
        for folder, name, text in (
            ("cluster", "mini", _replaced(CLUSTER, cluster)),
            ("scheduler", "slurm", policy),
        ):
            file = self.project / "configs" / folder / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def named(self, name: str) -> SlurmFlow:
        """Give the pipeline and its file another name."""
        self.name, self.file = name, self.project / f"{name}.yaml"
        return self

    def submit(self, *args: str, expect: int | None = 0) -> str:
        """Hand the pipeline over and return what was printed."""
        done = self.cli("run", self.file, "--scheduler", "slurm", *args, expect=expect)
        return done.stdout + done.stderr

    def whole_status(self, run: str | None = None) -> dict[str, Any]:
        """Return what `status --json` says."""
        found: dict[str, Any] = json.loads(self.cli("status", run or self.file, "--json").stdout)
        return found

    def status(self, run: str | None = None) -> dict[str, dict[str, Any]]:
        """Return what `status` says of each step, from within this process: many looks cost little
        so.
        """
        paths = project_settings(self.project).project_paths(self.project)
        found = find_run(paths, run or str(self.file))
        steps: dict[str, dict[str, Any]]
        steps = project(found, fold_all(found, observer_of(found)))["steps"]
        return steps

    def now(self, run: str | None = None) -> dict[str, str]:
        """Return step -> state, as `status` has it."""
        return {step: entry["status"] for step, entry in self.status(run).items()}

    def settle(self, timeout_s: float = PATIENCE_S, run: str | None = None) -> dict[str, str]:
        """Return step -> state when all have settled; only looks."""
        over = ("COMPLETED", "SKIPPED", "FAILED", "BLOCKED", "CANCELLED")
        return self.until(lambda now: all(state in over for state in now.values()), timeout_s, run)

    def until(
        self,
        holds: Callable[[dict[str, str]], bool],
        timeout_s: float = PATIENCE_S,
        run: str | None = None,
    ) -> dict[str, str]:
        """Return step -> state when `holds` is true of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.now(run)
            if holds(now):
                return now
            assert time.monotonic() < deadline, f"{now}\n{self._told()}"
            time.sleep(0.5)

    def jobs(self, run: str | None = None) -> dict[str, str]:
        """Return step -> Slurm's job or element."""
        return {step: entry["job"] for step, entry in self.status(run).items() if entry["job"]}

    def records(self, step: str, run: str | None = None) -> list[dict[str, Any]]:
        """Return the end records of all attempts at a step, oldest first."""
        key = self.status(run)[step]["cache_key"]
        folder = self.project / f".nexa_state/records/{key[:2]}/{key}"
        ends = sorted(folder.glob("*.end.json"), key=lambda file: int(file.name.split(".")[0]))
        return [json.loads(file.read_text()) for file in ends]

    def _told(self) -> str:
        queue = self.cluster.ask("squeue", "--states=all", "--format=%i %T %r %j")
        logs = self.project.glob(".nexa_state/*/runs/*/slurm/*/*.err")
        texts = [f"{log}\n{log.read_text()[-2000:]}" for log in logs]
        return "\n".join([queue, *texts])


def _replaced(text: str, lines: str) -> str:
    """Return `text` with the lines of `lines`, each in the place of the one with its key."""
    keys = {line.partition(":")[0] for line in lines.splitlines()}
    kept = [line for line in text.splitlines() if line.partition(":")[0] not in keys]
    return "\n".join([*kept, lines]) + "\n"
