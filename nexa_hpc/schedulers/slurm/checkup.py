"""Whether Slurm can be used from this machine: its commands, slurmctld, accounting, what is known.

Light: what a login node answers by itself. `node_trial` asks a compute node. Called by `doctor`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from nexa_hpc.compose.run_config import cluster_of
from nexa_hpc.compose.site import site_config
from nexa_hpc.core.cluster import Cluster
from nexa_hpc.core.disk_checks import SKEW_S
from nexa_hpc.core.findings import Finding, ok, problem, warning
from nexa_hpc.errors import SchedulerError, UserError
from nexa_hpc.schedulers.slurm.commands import run_slurm
from nexa_hpc.schedulers.slurm.preset import renew
from nexa_hpc.schedulers.slurm.probe import Probed, cluster_name, probe

NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
USEFUL = {
    "sacct": "how jobs ended is then known from squeue and from what they recorded",
    "sacctmgr": "submit limits are then found out by being refused",
}
_OLDEST = (20, 2)
"""Below it `sacct` and dependencies speak differently from what we know."""
_SLOW_S = 5


def has_slurm() -> bool:
    """Return whether any of Slurm's commands is on this machine."""
    return any(shutil.which(command) for command in NEEDED)


def check_slurm(root: Path) -> list[Finding]:
    """Return what is found of Slurm, for the project at `root`; nothing is submitted."""
    if not has_slurm():
        message = "not on this machine: steps run here, by `scheduler: local`"
        return [ok("slurm", message)]
    missing = _missing_commands()
    controller = _controller()
    found = [*missing, _version(), controller]
    if controller.level.value != "ok":
        return found
    try:
        probed = probe()
    except (SchedulerError, ValueError) as error:
        return [*found, problem("slurm: config", str(error), "tell the site's support")]
    return [*found, _accounting(probed), *_preset(root, probed), _clock(probed)]


def known_cluster(root: Path) -> Cluster | None:
    """Return what is known of the cluster of this machine, or None without one."""
    name = cluster_name()
    return cluster_of(site_config(root), name) if name is not None else None


def _missing_commands() -> list[Finding]:
    load = "load the site's Slurm module, or add its folder to PATH"
    found = [
        problem("slurm: commands", f"there is no {command} on PATH", load)
        for command in NEEDED
        if shutil.which(command) is None
    ]
    found += [
        warning("slurm: commands", f"there is no {command} on PATH; {what}", load)
        for command, what in USEFUL.items()
        if shutil.which(command) is None
    ]
    return found


def _version() -> Finding:
    try:
        text = run_slurm(["sbatch", "--version"], timeout_s=20, tries=1).strip()
    except SchedulerError as error:
        return problem("slurm: version", str(error), "load the site's Slurm module")
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST:
        wanted = ".".join(f"{part:02d}" for part in _OLDEST)
        message = f"{text}: tried with {wanted} and later only"
        return warning("slurm: version", message, "run a small pipeline first, and look at it")
    return ok("slurm: version", text)


def _controller() -> Finding:
    begun = time.monotonic()
    try:
        run_slurm(["squeue", "-h", "-u", str(os.getuid()), "-o", "%i"], timeout_s=60, tries=1)
    except SchedulerError as error:
        return problem(
            "slurm: slurmctld",
            f"does not answer: {error}",
            "wait, or tell the site; runs that are under way go on, and `resume` works afterwards",
        )
    took_s = time.monotonic() - begun
    if took_s > _SLOW_S:
        remedy = "set a longer poll_interval_s in the cluster's file"
        return warning("slurm: slurmctld", f"answers in {took_s:.1f} s: it is busy", remedy)
    return ok("slurm: slurmctld", f"answers in {took_s:.2f} s")


def _accounting(probed: Probed) -> Finding:
    told = probed.facts["accounting"]
    if told:
        return ok("slurm: accounting", "sacct answers")
    if told is None:
        message = next(note for note in probed.notes if note.startswith("accounting"))
        return warning("slurm: accounting", message, "tell the site; runs go on without it")
    message = "this cluster keeps no accounting"
    return warning("slurm: accounting", message, f"nothing: {USEFUL['sacct']}")


def _preset(root: Path, probed: Probed) -> list[Finding]:
    """Return what is found of `configs/cluster/<ClusterName>.yaml`."""
    remedy = "nexa-hpc cluster probe"
    try:
        renewal = renew(root, probed)
        cluster = cluster_of(site_config(root), renewal.file.stem)
    except UserError as error:
        return [problem("slurm: cluster file", str(error), error.hint or "mend the file")]
    name = renewal.file.relative_to(root)
    found = [ok("slurm: cluster file", f"{name} says what the cluster says")]
    if renewal.is_new:
        message = f"no {name}: Slurm's own defaults are assumed"
        found = [warning("slurm: cluster file", message, remedy)]
    elif renewal.differs:
        keys = ", ".join(change.key for change in renewal.changes if not change.kept)
        found = [warning("slurm: cluster file", f"{name} is out of date: {keys}", remedy)]
    places = probed.partitions.values()
    if not any(told["default"] for told in places) and cluster.defaults.partition is None:
        message = "the cluster has no default partition"
        remedy = f"write `defaults: {{partition: NAME}}` in {name}"
        found.append(warning("slurm: partition", message, remedy))
    return found


def _clock(probed: Probed) -> Finding:
    if abs(probed.clock_skew_s) > SKEW_S:
        message = f"slurmctld's clock is {probed.clock_skew_s:+.0f} s off this machine's"
        return warning("slurm: clock", message, "tell the site; times will look wrong")
    return ok("slurm: clock", "slurmctld's clock agrees with this machine's")
