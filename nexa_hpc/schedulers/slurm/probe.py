"""What a cluster says of itself, as facts for `core.cluster.Cluster`; each asked for once.

`scontrol show config` and `show partition`, `sinfo`, `sacctmgr` and `sacct`, with half a dozen
calls. Called by `cluster probe`, `cluster show`, `doctor`, and for the cluster's name by planning.
Standard library alone.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm.commands import run_slurm

Facts = dict[str, Any]

AFTERCORR_DEFAULT = 10
"""`correspond_after_task_cnt` where it is not set; slurmctld takes no lower one."""
MIB_PER_GB = 1024
"""Slurm counts in MiB, and calls 1024 of them a G."""
_NAME_TIMEOUT_S = 3
_CONF_FILES = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
_NOTHING = ("", "(null)", "N/A", "NONE", "UNLIMITED", "INFINITE")
_GPUS = re.compile(r"(?:^|,)gpu(?::[^,:()]+)?:(?P<count>\d+)")
_ENFORCES_LIMITS = {"limits", "safe", "all"}


@dataclass(frozen=True)
class Probed:
    """Facts by the names of `Cluster`'s fields; None where the cluster does not tell."""

    facts: Facts
    partitions: dict[str, Facts]
    notes: list[str] = field(default_factory=list)
    """What the one who probes should know."""
    clock_skew_s: float = 0.0
    """By how much slurmctld's clock is ahead of ours; it tells whole seconds."""


def cluster_name(timeout_s: float = _NAME_TIMEOUT_S) -> str | None:
    """Return Slurm's ClusterName, or None where there is no Slurm or nobody can tell.

    slurmctld is asked: a configuration lies in many places, and may be a stale one; it is read
    where slurmctld does not answer in `timeout_s`. The answer is not kept: a shared disk is seen
    from several clusters.
    """
    if shutil.which("scontrol") is None:
        return None
    try:
        config = run_slurm(["scontrol", "show", "config"], timeout_s=timeout_s, tries=1)
        return parse_config(config).get("ClusterName")
    except SchedulerError:
        return _name_in_files()


def _name_in_files() -> str | None:
    named = os.environ.get("SLURM_CONF")
    for file in map(Path, [named] if named else _CONF_FILES):
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        found = re.search(r"^\s*ClusterName\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
        if found is not None:
            return found[1]
    return None


def probe() -> Probed:
    """Ask the cluster for everything; raises SchedulerError where slurmctld does not answer."""
    text = run_slurm(["scontrol", "show", "config"])
    skew_s = _clock_skew_s(text)
    config = parse_config(text)
    notes: list[str] = []
    facts = {
        "name": config.get("ClusterName"),
        "accounting": _accounting(config, notes),
        "max_array_size": _number(config.get("MaxArraySize")),
        "max_submit": _max_submit(config, notes),
        "aftercorr_chunk": _aftercorr_chunk(config),
        "min_job_age_s": _number(config.get("MinJobAge")),
        "kill_invalid_depend": _kills_invalid(config),
        "requeue": config.get("JobRequeue") != "0",
        "preemption": _preemption(config),
    }
    return Probed(facts, partitions(), notes, skew_s)


def _clock_skew_s(config: str) -> float:
    # `as of` is when slurmctld answered, in this machine's zone.
    told = re.match(r"Configuration data as of (\S+)", config)
    try:
        return datetime.fromisoformat(told[1]).timestamp() - time.time() if told else 0.0
    except ValueError:
        return 0.0


def parse_config(text: str) -> dict[str, str]:
    """Return the settings that `scontrol show config` prints, as text."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def minutes(text: str) -> int | None:
    """Return a time limit as Slurm writes it (`1-12:00:00`, `02:00`) in whole minutes, at least
    one; None for no limit.
    """
    if text in _NOTHING:
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    # MM:SS, but HH:MM:SS, and after a number of days also HH or HH:MM.
    hours_first = [*parts, 0, 0][:3] if days else [0, 0, *parts][-3:]
    hours, whole, seconds = hours_first
    total_s = ((int(days or 0) * 24 + hours) * 60 + whole) * 60 + seconds
    return max(1, total_s // 60)


def gpus(gres: str) -> int:
    """Return how many GPUs a node's GRES names: `gpu:a100:4(S:0-1),nvme:1` has 4."""
    return sum(int(found["count"]) for found in _GPUS.finditer(gres))


def partitions() -> dict[str, Facts]:
    """Return name -> facts of each partition that the caller may see; figures are those of its
    largest node.
    """
    found: dict[str, Facts] = {}
    for line in run_slurm(["scontrol", "show", "partition", "--oneliner"]).splitlines():
        told = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        if "PartitionName" in told:
            found[told["PartitionName"]] = {
                "default": told.get("Default") == "YES",
                "max_time_min": minutes(told.get("MaxTime", "")),
            }
    for name, count, cores, memory, gres in _nodes():
        entry = found.get(name)
        if entry is None:
            continue
        memory_gb = math.floor(10 * memory / MIB_PER_GB) / 10
        entry["nodes"] = entry.get("nodes", 0) + count
        entry["cpus_per_node"] = max(entry.get("cpus_per_node", 0), cores)
        entry["mem_gb_per_node"] = max(entry.get("mem_gb_per_node", 0), memory_gb)
        entry["gpus_per_node"] = max(entry.get("gpus_per_node", 0), gres)
    return found


def _nodes() -> Iterator[tuple[str, int, int, int, int]]:
    """Yield partition, number of nodes, and each one's cores, MiB and GPUs, for nodes alike."""
    for line in run_slurm(["sinfo", "-h", "-e", "-o", "%R|%D|%c|%m|%G"]).splitlines():
        name, *rest = line.split("|", 4)
        count, cores, memory = (_number(text) for text in rest[:3])
        if count:
            yield name, count, cores or 0, memory or 0, gpus(rest[3])


def _accounting(config: dict[str, str], notes: list[str]) -> bool | None:
    """Return whether sacct answers; None where it should, and does not now."""
    if config.get("AccountingStorageType", "").rpartition("/")[2] in ("none", "(null)", ""):
        return False
    try:
        run_slurm(["sacct", "-X", "-n", "-P", "-S", "now-1minutes", "-o", "JobID"], tries=1)
    except SchedulerError as error:
        said = str(error).splitlines()[-1]
        notes.append(f"accounting is configured, and does not answer now: {said}")
        return None
    return True


def _aftercorr_chunk(config: dict[str, str]) -> int:
    found = re.search(r"\bcorrespond_after_task_cnt=(\d+)", config.get("SchedulerParameters", ""))
    return max(AFTERCORR_DEFAULT, int(found[1])) if found else AFTERCORR_DEFAULT


def _kills_invalid(config: dict[str, str]) -> bool:
    # Among the SchedulerParameters before Slurm 20.02.
    return any(
        "kill_invalid_depend" in re.split(r"[,\s]+", config.get(name, ""))
        for name in ("DependencyParameters", "SchedulerParameters")
    )


def _preemption(config: dict[str, str]) -> str | None:
    kind = config.get("PreemptType", "").rpartition("/")[2]
    return None if kind in ("", "none", "(null)") else config.get("PreemptMode")


def _max_submit(config: dict[str, str], notes: list[str]) -> int | None:
    """Return how many jobs the caller may have in the default account; None: no limit, as far as
    the caller may see.
    """
    enforced = set(re.split(r"[,\s]+", config.get("AccountingStorageEnforce", "")))
    if not enforced & _ENFORCES_LIMITS:
        return None
    try:
        limits = [*_association_limits(config.get("ClusterName", ""))]
    except SchedulerError as error:
        notes.append(f"submit limits are not known: {str(error).splitlines()[-1]}")
        return None
    return min(limits, default=None)


def _association_limits(cluster: str) -> Iterator[int]:
    """Yield every limit of the caller's default account and of its default QOS."""
    user = getpass.getuser()
    account = _asked("show", "user", user, "format=DefaultAccount")[0][0]
    names = "format=User,MaxSubmit,GrpSubmit,DefaultQOS,QOS"
    rows = _asked("show", "assoc", f"cluster={cluster}", f"account={account}", names)
    mine = [row for row in rows if row[0] in ("", user)]
    for row in mine:
        yield from (number for text in row[1:3] if (number := _number(text)) is not None)
    used = {row[3] or row[4].partition(",")[0] for row in mine if row[0] == user}
    for name, *limits in _asked("show", "qos", "format=Name,MaxSubmitPU,MaxSubmitPA,GrpSubmit"):
        if name in used:
            yield from (number for text in limits if (number := _number(text)) is not None)


def _asked(*query: str) -> list[list[str]]:
    rows = [line.split("|") for line in run_slurm(["sacctmgr", "-nP", *query]).splitlines()]
    return rows or [[""] * 5]


def _number(text: str | None) -> int | None:
    """Return the number that `text` begins with (`30 sec`, `4+`), or None."""
    found = re.match(r"\d+", text or "")
    return int(found[0]) if found else None
