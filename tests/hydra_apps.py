"""Apps of Hydra's own on the real cluster, with the launcher where a wheel would put it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, child_environment
from slurm_fixtures import SlurmCluster
from slurm_flows import CLUSTER, POLICY

PLUGIN = REPOSITORY / "nexa_hpc" / "_hydra_plugins" / "nexa_launcher"
LAUNCHER = "hydra/launcher=nexa_slurm"
PATIENCE_S = 300.0
# Every execution leaves a line outside of the sweep's folders, so that a test can count them.
APP = """\
import os, pathlib, time
import hydra

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    here = pathlib.Path(__file__).parent
    if int(os.environ.get("SLURM_PROCID") or 0) == 0:
        with (here / "ran.txt").open("a") as file:
            file.write(f"{cfg.x}\\n")
BODY
    return cfg.x * 10

if __name__ == "__main__":
    main()
"""


class HydraApp:
    """A folder with `app.py`, run as a user runs it."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.write()

    def write(self, body: str = "") -> None:
        """Write the app; `body` is what it does with `cfg` (and `here`, its folder)."""
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (self.folder / "app.py").write_text(APP.replace("BODY", lines))

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a multirun as a process."""
        return subprocess.Popen(
            [sys.executable, "app.py", "-m", LAUNCHER, *args],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sweep(self, *args: str, expect: int = 0) -> str:
        """Run a multirun to its end and return what it printed."""
        process = self.start(*args)
        try:
            out, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        assert process.returncode == expect, f"exit code {process.returncode}:\n{out}"
        return out

    def ran(self) -> list[str]:
        """Return the `x` of each execution, sorted."""
        file = self.folder / "ran.txt"
        return sorted(file.read_text().split()) if file.exists() else []

    def jobs(self, printed: str) -> list[str]:
        """Return the ids of the jobs that a multirun says it has submitted."""
        return re.findall(r"submitted job (\d+)", printed)

    def assert_ended(self, job: str, *states: str) -> None:
        """Assert that accounting has those states, such as `FAILED 1:0`, for a job's elements."""
        self.cluster.wait(job)
        command = ("sacct", "-X", "-n", "-P", "--format=JobID,State,ExitCode", "-j", job)
        names = [f"{job}_{index}" for index in range(len(states))] if len(states) > 1 else [job]
        expected = [
            "|".join([name, *state.split(" ")]) for name, state in zip(names, states, strict=True)
        ]
        # It hears of things late; until then it may have an older job of that id.
        for _ in range(100):
            if self.cluster.ask(*command).split() == expected:
                return
            time.sleep(0.2)
        assert self.cluster.ask(*command).split() == expected

    def status(self, sweep: str) -> dict[str, Any]:
        """Return what `nexa-hpc status` says of a sweep's newest run."""
        done = subprocess.run(
            [sys.executable, "-m", "nexa_hpc", "--project", self.folder / sweep / ".nexa_slurm",
             "status", "--json"],
            capture_output=True, text=True, check=True, cwd=self.folder, env=child_environment(),
        )  # fmt: skip
        steps: dict[str, Any] = json.loads(done.stdout)["steps"]
        return steps


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `sys.path` in which the launcher is where the wheel installs it."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "nexa_launcher").symlink_to(PLUGIN)
    return folder


@pytest.fixture
def hydra_launcher(
    slurm_cluster: SlurmCluster,
    plugin_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """The launcher to be found by this process, those it starts, and their jobs; in a folder whose
    project knows the cluster.
    """
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton

    folder = tmp_path / "project"
    for name, text in (("cluster/mini.yaml", CLUSTER), ("scheduler/slurm.yaml", POLICY)):
        file = folder / "configs" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(plugin_folder)
    paths = [str(plugin_folder), child_environment()["PYTHONPATH"]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Hydra takes a process that is traced for one under a debugger, and prints all tracebacks.
    for variable in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(variable, raising=False)
    # Another test may have looked for plugins before.
    Singleton._instances.pop(Plugins, None)
    yield folder
    Singleton._instances.pop(Plugins, None)


@pytest.fixture
def hydra_app(hydra_launcher: Path, slurm_cluster: SlurmCluster) -> HydraApp:
    """An app in a project that knows the cluster."""
    return HydraApp(hydra_launcher, slurm_cluster)
