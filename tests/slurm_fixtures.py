"""A real Slurm cluster on this machine, as fixtures; and wrappers that bend what it answers.

`slurm_cluster` starts what is not running, and stops at the end what it has started. `bent_slurm`
puts `slurm_wrapper.py` first on PATH: it counts calls, and makes faults that the real cluster, or
one that several tests share, cannot be made to have.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "slurm_cluster"
SLURM_CONF = Path("/etc/slurm/slurm.conf")
USERS = Path(tempfile.gettempdir()) / f"nexa_hpc-tests-slurm_cluster-{os.geteuid()}.lock"
"""Locked, not alone, by each process whose tests use the cluster."""
PATIENCE = 4
"""A machine that others use as well may take so many times as long."""
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "sacctmgr", "srun")


class SlurmCluster:
    """The cluster `mini`: four nodes n1 to n4 with eight cores and two GPUs each, all imagined."""

    name = "mini"

    @contextmanager
    def without(self, what: str, *rest: str) -> Iterator[None]:
        """Stop `ctld`, `dbd` or `node`, N; start it again at the end. Others may use the cluster,
        too.
        """
        try:
            _script(f"down-{what}", *rest)
            yield
        finally:
            _script(f"up-{what}", *rest)

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's commands prints; it must succeed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def wait(self, job: str, timeout_s: float = 60) -> None:
        """Return when the job has left the queue."""
        wait_until(lambda: not self._queued(job), timeout_s, f"job {job} to end")

    def _queued(self, job: str) -> bool:
        states = "pending,running,completing,suspended,configuring"
        command = ["squeue", "-h", "-j", job, "-t", states]
        return bool(subprocess.run(command, capture_output=True, text=True).stdout.strip())


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Return when `holds()` is true; fail after `PATIENCE` times `timeout_s`."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s * PATIENCE:.0f} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """The cluster, started where it is not running, and stopped by who started it when nobody uses
    it any more. Where it does not start, tests are skipped with the reason; in CI they fail.
    """
    _install_if_possible()
    with USERS.open("w") as users:
        started = _started(users)
        fcntl.flock(users, fcntl.LOCK_SH)
        yield SlurmCluster()
        if started:
            fcntl.flock(users, fcntl.LOCK_EX)
            _script("down", *started)


def _started(users: IO[str]) -> list[str]:
    """Start what is not running; return its names. Whoever is alone takes drained nodes back."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        command = [SCRIPT, "up", "resume"]
    except BlockingIOError:
        fcntl.flock(users, fcntl.LOCK_SH)
        command = [SCRIPT, "up"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no Slurm cluster for tests: {done.stderr.strip()}")
    return done.stdout.split()


def _install_if_possible() -> None:
    if shutil.which("slurmctld") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run([SCRIPT, "install"], capture_output=True)


def _script(*args: str) -> None:
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"


class BentSlurm:
    """Slurm's commands by wrappers in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self._serial = 0
        self.bin.mkdir(parents=True)
        for command in COMMANDS:
            (self.bin / command).symlink_to(HERE / "slurm_wrapper.py")
        self._write_configurations()
        self.bend()

    def bend(self, **bends: Any) -> None:
        """From now on, and in the place of what was bent before:

        - `sacct_empty_s=N`: sacct finds nothing for N seconds
        - `lose_replies=N`: the next N submissions are accepted, and reported as timed out
        - `refuse_submissions=N`: the next N submissions time out and are not accepted
        - `submit_limit=N`: submissions beyond N queued elements are refused, as by an association;
          with `limit_counts=REGEX`, this concerns only those whose names match
        - `out_of_memory=REGEX`: jobs that failed and whose name matches show as OUT_OF_MEMORY
        - `refuse_on_nodes=True`: sbatch is refused within jobs
        - `controller_away=True`, `database_away=True`, `no_accounting=True`
        - `replace={"scontrol": {REGEX: TEXT}}`: what the command prints is changed
        - `slow_s={"squeue": N}`: the command takes N seconds more
        """
        self._serial += 1
        if "sacct_empty_s" in bends:
            bends["sacct_empty_until"] = time.time() + bends.pop("sacct_empty_s")
        staged = self.folder / "bends.json.new"
        staged.write_text(json.dumps({"serial": self._serial, **bends}))
        staged.replace(self.folder / "bends.json")

    def calls(self, command: str | None = None) -> list[dict[str, Any]]:
        """Return the calls so far, or those of one command: `at`, `command`, `args`, `rc`, `bent`,
        `inside` (a job); of sbatch also `job` and `name`.
        """
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [call for call in found if command in (None, call["command"])]

    def _write_configurations(self) -> None:
        """Write configurations under which the real commands find nobody to answer."""
        text = SLURM_CONF.read_text()
        for name, line in {
            "controller_away": "SlurmctldPort=16999\nMessageTimeout=3",
            "database_away": "AccountingStoragePort=16998",
            "no_accounting": "AccountingStorageType=accounting_storage/none",
        }.items():
            key = line.partition("=")[0]
            changed = re.sub(rf"^{key}=.*$", line, text, flags=re.MULTILINE)
            (self.folder / f"{name}.conf").write_text(changed)


@pytest.fixture
def bent_slurm(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BentSlurm:
    """The cluster behind wrappers, first on the PATH of this process, its children and its jobs."""
    bent = BentSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{bent.bin}{os.pathsep}{os.environ['PATH']}")
    return bent
