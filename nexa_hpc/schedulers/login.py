"""Whether steps may run on this very host: a login node is not for that, or only for small ones.

The cluster's `login_policy` says `warn`, `refuse` or `allow`. A login node is a host with sbatch,
outside of a job; where there is no Slurm nothing is asked, and nothing said. Called before a run is
recorded, and before one is resumed.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from nexa_hpc.compose.layers import PACKAGE, find_layers
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.instances import Instance
from nexa_hpc.errors import UserError

_WAY_OUT = "`--scheduler slurm` hands them over; `salloc` gives a machine to run them on"


def on_login_node() -> bool:
    """Return whether this host has sbatch and we are outside of a job."""
    return "SLURM_JOB_ID" not in os.environ and shutil.which("sbatch") is not None


def obey_login_policy(
    root: Path, to_run: Iterable[Instance], config: SiteConfig | None = None
) -> None:
    """Warn on standard error, or raise UserError, where steps would run on a login node.

    `to_run` are the instances without a result, of the project at `root`; light ones, and those
    that run elsewhere, do not count. `config` is the run's, where it has overrides.
    """
    if not on_login_node():
        return
    steps = [i.step for i in to_run if i.scheduler == "local" and not i.light]
    if not steps:
        return
    policy, place = _policy(root, config)
    if policy == "allow":
        return
    others = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
    where = f"on this login node{place}"
    if policy == "refuse":
        raise UserError(f"no step may run {where}: '{steps[0]}'{others}", hint=_WAY_OUT)
    print(f"warning: running {where}: '{steps[0]}'{others}; {_WAY_OUT}", file=sys.stderr)


def _policy(root: Path, config: SiteConfig | None) -> tuple[str, str]:
    """Return the policy in force, and words for the cluster and the file that it is from."""
    config = config if config is not None else site_config(root, groups=("cluster",))
    known = any(layer.options("cluster") for layer in find_layers(root) if layer.name != PACKAGE)
    if not known and not config.cluster:
        return "warn", ""
    # Imported here: only who knows a cluster needs YAML and Slurm for this.
    from nexa_hpc.compose.run_config import cluster_of
    from nexa_hpc.schedulers.slurm.here import this_cluster

    name = this_cluster()
    if name is None:
        return "warn", ""
    config = config.on(name)
    cluster = cluster_of(config, config.cluster.get("name", name))
    told = config.origins.get("cluster.login_policy")
    place = f", login_policy: {cluster.login_policy} in {told.place(root)}" if told else ""
    return cluster.login_policy, f" (cluster {name}{place})"
