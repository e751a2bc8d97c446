"""What several tests need: a project, the command line as a real process, a umask, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from slurm_fixtures import SlurmCluster, bent_slurm, slurm_cluster

if TYPE_CHECKING:
    from slurm_flows import SlurmFlow

__all__ = ["bent_slurm", "slurm_cluster"]

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]

REPOSITORY = Path(__file__).resolve().parent.parent


def child_environment(**changes: str) -> dict[str, str]:
    """Our environment, for a process elsewhere that must find this nexa_hpc, installed or not."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **changes}


UNMEASURED = ("slow", "slurm", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with long tests first, so that no process has one left when the others are done;
    those that wait for a cluster among those that compute.

    Long tests measure no coverage: it doubles the time of what only computes, and the others cover
    the core without them.
    """
    waiting = dict.fromkeys(item.path for item in items if item.get_closest_marker("slurm"))
    long = dict.fromkeys(item.path for item in items if _is_long(item) and item.path not in waiting)
    place = {path: n / len(paths) for paths in (waiting, long) for n, path in enumerate(paths)}
    items.sort(key=lambda item: place.get(item.path, 1))
    for item in items:
        if _is_long(item):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure no coverage in the processes that long tests start, either, or that their fixtures
    do.
    """
    with pytest.MonkeyPatch.context() as environment:
        if _is_long(item):
            environment.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        return (yield)


def _is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(mark) is not None for mark in UNMEASURED)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: a folder that `find_root` stops at."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "nexa.yaml").write_text("{}\n")
    return root


@pytest.fixture
def run_cli(project: Path) -> RunCli:
    """Run `nexa-hpc ARGS` as a process of its own and return it, with its output as text.

    `cwd` is the project unless given; `env` is added to ours; exit code `expect` (None: any) is
    asserted with the output as the message, for that is what a failing test needs to show.
    """

    def run(
        *args: str | os.PathLike[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        expect: int | None = 0,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "nexa_hpc", *map(os.fspath, args)],
            cwd=cwd or project,
            env=child_environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if expect is not None:
            told = f"{done.args}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == expect, f"exit code {done.returncode}, not {expect}: {told}"
        return done

    return run


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Set the umask of this process and of those it starts, until the test ends."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB (a tmpfs); skipped where we may not mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root, and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def slurm_flow(
    slurm_cluster: SlurmCluster,
    project: Path,
    run_cli: RunCli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> SlurmFlow:
    """A flow on the cluster, with a cache of its own: no test sees another's answers."""
    from slurm_flows import SlurmFlow

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The jobs get our environment, and must find this nexa_hpc, installed or not.
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    return SlurmFlow(project, run_cli, slurm_cluster)
