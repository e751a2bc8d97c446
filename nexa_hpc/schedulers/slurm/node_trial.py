"""What a compute node can do, found out by one tiny job: Python, disks, clocks, submitting.

One core for a minute, ended by a deadline whatever comes. The job runs `on_node.py`. Called by
`doctor --deep`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.cluster import Cluster, SlurmPolicy
from nexa_hpc.core.disk_checks import SKEW_S, clock_skew_s, trial_folder
from nexa_hpc.core.findings import Finding, ok, problem, warning
from nexa_hpc.core.reading import list_names
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm import on_node
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.scripts import submit_script

JOB_NAME = "nexa-doctor"
_RESULT, _LOG = "result.json", "job.log"
_LOOK_S = 0.5
_ASK_S = 10
_SHARED = "use a folder that all nodes see: `paths` in nexa.yaml, or move the project"


def try_node(
    places: Mapping[str, Path], cluster: Cluster, policy: SlurmPolicy, wait_s: float
) -> list[Finding]:
    """Submit one tiny job, wait for it for `wait_s` seconds at most, and return what it found.

    `places` are the folders that a node must see, by what they are for.
    """
    with ExitStack() as stack:
        folders = {name: stack.enter_context(trial_folder(at)) for name, at in places.items()}
        home = next(iter(folders.values()))
        for folder in folders.values():
            token = atomic.unique_suffix().encode()
            atomic.write_new_file(folder / on_node.FROM_LOGIN, token, PRIVATE)
        atomic.copy_file(Path(on_node.__file__), home / "on_node.py")
        python = cluster.python or sys.executable
        try:
            job = _submit(home, python, [*folders.values()], cluster, policy, wait_s)
        except SchedulerError as error:
            remedy = "see `nexa-hpc cluster show`: partition and account may need defaults"
            return [problem("node: job", str(error), remedy)]
        try:
            return _judged(job, home, folders, python, cluster, wait_s)
        finally:
            _cancel(job)


def _submit(
    home: Path,
    python: str,
    folders: list[Path],
    cluster: Cluster,
    policy: SlurmPolicy,
    wait_s: float,
) -> str:
    command = shlex.join(
        [python, str(home / "on_node.py"), str(home / _RESULT), *map(str, folders)]
    )
    options = {
        "job-name": JOB_NAME,
        "ntasks": 1,
        "cpus-per-task": 1,
        "mem": "256M",
        "time": 1,
        "deadline": f"now+{int(wait_s) + 120}",
        "output": home / _LOG,
    }
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(policy.defaults, name) or getattr(cluster.defaults, name)
        if value is not None:
            options[name] = value
    argv = [f"--{name}={value}" for name, value in options.items()]
    return submit_script(f"#!/bin/sh\nexec {command}\n", home, argv)


def _cancel(job: str) -> None:
    try:
        run_slurm(["scancel", job], timeout_s=20, tries=1)
    except SchedulerError:
        pass  # Its deadline ends it.


def _judged(
    job: str,
    home: Path,
    folders: Mapping[str, Path],
    python: str,
    cluster: Cluster,
    wait_s: float,
) -> list[Finding]:
    begun = time.monotonic()
    waiting = _wait(job, home / _RESULT, wait_s)
    if waiting is not None:
        return [_unfinished(job, home, python, waiting, wait_s)]
    seen = json.loads((home / _RESULT).read_text())
    took_s = time.monotonic() - begun
    return [
        ok("node: job", f"job {job} ran on {seen['node']}, {took_s:.0f} s after it was submitted"),
        _python(seen, python),
        *(_folder(name, at, seen["folders"][str(at)]) for name, at in folders.items()),
        *_clocks(folders, seen),
        _submitting(seen["sbatch"], cluster),
    ]


def _wait(job: str, result: Path, wait_s: float) -> str | None:
    """Return None when the job has written its result; else its state and Slurm's reason."""
    deadline = time.monotonic() + wait_s
    ask_at = time.monotonic() + 2
    state = "PENDING"
    while True:
        if result.name in list_names(result.parent):
            return None
        now = time.monotonic()
        if now > deadline or state == "ENDED":
            return state
        if now > ask_at:
            state, ask_at = _state(job), now + _ASK_S
            continue
        time.sleep(_LOOK_S)


def _state(job: str) -> str:
    try:
        told = run_slurm(["squeue", "-h", "-j", job, "-o", "%T %r"], timeout_s=30, tries=1)
    except SchedulerError as error:
        return "ENDED" if "Invalid job id" in str(error) else "UNKNOWN"
    alive = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")
    return told.strip() if told.startswith(alive) else "ENDED"


def _unfinished(job: str, home: Path, python: str, state: str, wait_s: float) -> Finding:
    if state != "ENDED":
        message = f"job {job} was not done within {wait_s:.0f} s: {state}"
        return warning("node: job", message, "ask again with a longer --wait-s")
    log = home / _LOG
    if not log.exists():
        message = f"job {job} ended and left nothing here: its node does not see {home.parent}"
        return problem("node: job", message, _SHARED)
    said = log.read_text(errors="replace").strip()[-500:]
    remedy = "name an interpreter of the nodes as `python` in the cluster's file"
    return problem("node: python", f"{python} does not work on a node: {said}", remedy)


def _python(seen: Mapping[str, Any], python: str) -> Finding:
    version = ".".join(map(str, seen["python"]))
    broken = {n: m["error"] for n, m in seen["modules"].items() if "error" in m}
    if broken:
        said = "; ".join(f"{name}: {error}" for name, error in broken.items())
        remedy = (
            "install nexa-hpc where all nodes see it, and name that interpreter as `python` in the "
            "cluster's file"
        )
        return problem("node: python", f"{python} ({version}) on {seen['node']}: {said}", remedy)
    have = ", ".join(f"{name} {told['version']}" for name, told in seen["modules"].items())
    return ok("node: python", f"{python} ({version}) has {have}")


def _folder(name: str, folder: Path, told: Mapping[str, Any]) -> Finding:
    """Judge one folder: what was written here and seen there, and the other way round."""
    title = f"node: {name}"
    if "error" in told:
        return problem(title, f"{folder.parent} on a node: {told['error']}", _SHARED)
    if on_node.FROM_NODE not in list_names(folder):
        return problem(title, f"{folder.parent}: what a node writes is not seen here", _SHARED)
    if told["uid"] != os.geteuid():
        message = f"{folder.parent}: what a node writes belongs to user {told['uid']}"
        return problem(title, message, "tell the site: users are mapped differently on the nodes")
    return ok(title, f"{folder.parent} is the same on a node")


def _clocks(folders: Mapping[str, Path], seen: Mapping[str, Any]) -> Iterator[Finding]:
    for folder in folders.values():
        ahead_s = seen["folders"][str(folder)].get("clock_ahead_s")
        if ahead_s is None:
            continue
        # Both are compared with the clock of the file server, which both have written to.
        skew_s = ahead_s + clock_skew_s(folder)
        if abs(skew_s) > SKEW_S:
            message = f"the clock of {seen['node']} is {skew_s:+.0f} s off this machine's"
            yield warning("node: clock", message, "tell the site; times will look wrong")
        else:
            yield ok("node: clock", "a node's clock agrees with this machine's")
        return


def _submitting(refused: str | None, cluster: Cluster) -> Finding:
    if refused is None:
        return ok("node: sbatch", "a node may submit jobs")
    if not cluster.sbatch_on_nodes:
        return ok("node: sbatch", "nodes may not submit jobs, and the cluster's file says so")
    remedy = "write `sbatch_on_nodes: false` in the cluster's file: runs then go on by `advance`"
    return warning("node: sbatch", f"a node may not submit jobs: {refused}", remedy)
