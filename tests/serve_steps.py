"""What the tests of `runners.serve` share: a project whose pipelines serve a model and ask it.

The server is a stand-in that answers within a moment, unless a test says otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from flows import Flow, Process, StepDict, alive
from served import StandIn, processes_of, write_model

from nexa_hpc import Pipeline
from nexa_hpc.core.planning import Plan
from nexa_hpc.core.servers import Servers

ASK = 'curl -sf "$IN_endpoint/health" > $OUT/answer; echo "$IN_endpoint" >> ../urls'
WAIT = "until [ -e ../go ]; do sleep 0.05; done"


class Site:
    """A project with a model, and pipelines that serve it."""

    def __init__(self, project: Path, run_cli: RunCli) -> None:
        self.project = project
        self.flow = Flow(project)
        self.cli = run_cli
        self.stand_in = StandIn(project.parent / "stand_in")
        self.servers = Servers(project / ".nexa_state/serve", silence_s=0.5)
        self.started: list[Process] = []
        write_model(project / "model")

    def serve(self, id_: str = "serve", **params: Any) -> StepDict:
        """Return a step that serves the model by the stand-in."""
        given = {"model": "model", "python": str(self.stand_in.python), **params}
        return {"id": id_, "uses": "runners.serve", "backend": "hf_runtime", "params": given}

    def ask(self, id_: str = "ask", command: str = ASK, **fields: Any) -> StepDict:
        """Return a step that reads the server of step `serve`."""
        return self.flow.step(id_, command, **{"in": {"endpoint": "serve"}, **fields})

    def plan(self, *steps: StepDict) -> Plan:
        """Plan a pipeline of `steps`."""
        return Pipeline.from_yaml(self.flow.write(*steps), project=self.project).plan()

    def start(self, *args: str | os.PathLike[str]) -> Process:
        """Start `nexa-hpc ARGS` in the background."""
        self.started.append(Process(self.project, *args))
        return self.started[-1]

    def run(self, *steps: StepDict, expect: int = 0, jobs: int = 1) -> str:
        """Run a pipeline of `steps` and return what was said."""
        done = self.cli("run", self.flow.write(*steps), "--jobs", str(jobs), expect=expect)
        return done.stdout + done.stderr

    def listed(self) -> dict[str, str]:
        """Return the state of each server by what `serve list` says."""
        listed = json.loads(self.cli("serve", "list", "--json").stdout)
        return {row["name"]: row["state"] for row in listed}

    def urls(self) -> list[str]:
        """Return the URLs that steps were given."""
        return (self.project.parent / "urls").read_text().split()

    def let_go(self) -> None:
        """Let the steps that wait come to their ends."""
        (self.project.parent / "go").touch()

    def nothing_lives(self) -> bool:
        """Return whether no process of any server is left."""
        return not alive(self.stand_in.starts()) and not self.processes()

    def processes(self) -> list[int]:
        """Return the processes of all servers of the project."""
        return processes_of("", self.servers.folder)


@pytest.fixture
def site(project: Path, run_cli: RunCli) -> Iterator[Site]:
    found = Site(project, run_cli)
    yield found
    for process in found.started:
        if process.running():
            process.kill()
    for name in found.servers.names():
        found.servers.stop(found.servers.get(name))
