"""Which cluster this host belongs to. Called by planning and `status`. Standard library alone."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.paths import user_cache

_DAY_S = 86_400


def this_cluster() -> str | None:
    """Return the ClusterName of the cluster that this host belongs to, or None without Slurm.

    Asked once a day and host: `status` is to ask the scheduler for jobs alone.
    """
    inside = os.environ.get("SLURM_CLUSTER_NAME")
    if inside:
        return inside
    file = user_cache() / f"cluster-{socket.gethostname()}.json"
    known = _fresh(file)
    if known is not None:
        return known
    # Imported here: a fresh answer needs none of it.
    from nexa_hpc.schedulers.slurm.probe import cluster_name

    name = cluster_name()
    if name is not None:
        try:
            atomic.make_folder(file.parent, PRIVATE)
            atomic.write_json(file, name)
        except OSError:
            pass  # It only saves a call.
    return name


def _fresh(file: Path) -> str | None:
    try:
        age_s = time.time() - file.stat().st_mtime
        return str(json.loads(file.read_text())) if 0 <= age_s < _DAY_S else None
    except (OSError, ValueError):
        return None
