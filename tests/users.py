"""Two users of one group, as real processes of other uids, for the tests of who may do what."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment

GROUP = 12347
ALICE, BOB, MALLORY = 12345, 12346, 12349


@cache
def python() -> str | None:
    """A Python that other users may start, with our packages: ours, or the system's if it is alike.

    Ours may lie below a home folder that is closed to all others.
    """
    alike = shutil.which(
        f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin"
    )
    for candidate in filter(None, [sys.executable, alike]):
        probe = [*become(ALICE, str(GROUP)), candidate, "-c", "import nexa_hpc.cli.run"]
        if subprocess.run(probe, env=environment(), cwd="/", capture_output=True).returncode == 0:
            return candidate
    return None


def environment() -> dict[str, str]:
    """Our environment, for a Python of another installation; coverage cannot write its data."""
    plain = {k: v for k, v in child_environment().items() if not k.startswith("COV")}
    path = os.pathsep.join([plain["PYTHONPATH"], sysconfig.get_path("purelib")])
    return {**plain, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def become(uid: int, groups: str, umask: int = 0o022) -> list[str]:
    """The beginning of a command line that runs as another user."""
    supplementary = f"--groups={groups}" if groups else "--clear-groups"
    # By a shell: setpriv itself still has root's capabilities when it looks for the program.
    shell = ["sh", "-c", f'umask {umask:03o}; exec "$@"', "sh"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", supplementary, *shell]


class User:
    """Somebody else, who runs `nexa-hpc` in a project of their own."""

    def __init__(self, uid: int, lab: Path, groups: str = str(GROUP)) -> None:
        self.uid = uid
        self.groups = groups
        self.project = lab / f"project-of-{uid}"
        self.project.mkdir()
        self.project.chmod(0o755)
        os.chown(self.project, uid, uid)

    def command(self, *args: str | Path, umask: int = 0o022) -> list[str]:
        """Return the command line that runs `args` as this user."""
        return [*become(self.uid, self.groups, umask), *map(os.fspath, args)]

    def run(
        self,
        *args: str | Path,
        umask: int = 0o022,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        expect: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `nexa-hpc ARGS` as this user, and insist on its exit code."""
        command = self.command(python() or "python3", "-m", "nexa_hpc", *args, umask=umask)
        done = subprocess.run(
            command,
            cwd=cwd or self.project,
            env={**environment(), "HOME": str(self.project), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )
        told = f"{args}: exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == expect, told
        return done

    def start(self, *args: str, umask: int) -> subprocess.Popen[str]:
        """Start `nexa-hpc ARGS` as this user; what it prints is kept for `communicate`."""
        return subprocess.Popen(
            self.command(python() or "python3", "-m", "nexa_hpc", *args, umask=umask),
            cwd=self.project,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, name: str, document: Any) -> Path:
        """Write a file into this user's project."""
        file = self.project / name
        file.write_text(json.dumps(document))
        file.chmod(0o644)
        os.chown(file, self.uid, self.uid)
        return file


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder that all users may enter; skipped where we cannot become somebody else."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    if python() is None:
        pytest.skip("another user cannot read this Python or this nexa_hpc")
    # Not tmp_path: the folders above it are root's alone.
    folder = Path(tempfile.mkdtemp(prefix="nexa-lab-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def mode(path: Path) -> int:
    """The permission bits of `path` itself."""
    return stat.S_IMODE(path.lstat().st_mode)


def below(folder: Path) -> Iterator[Path]:
    """Yield `folder` and all below it, but for symlinks, which have no mode."""
    yield folder
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            yield path
