"""Where a step runs.

`refuse_unknown` is what planning asks.
"""

from __future__ import annotations

import shutil

from nexa_hpc.errors import UnsupportedError

_REFUSED = {"k8s": "nexa_hpc does not run on Kubernetes; use `local`"}


def refuse_unknown(name: str) -> None:
    """Raise UnsupportedError, a NotImplementedError, for a scheduler that is not to be had here."""
    if name in _REFUSED:
        raise UnsupportedError(f"scheduler '{name}': {_REFUSED[name]}")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise UnsupportedError(
            "scheduler 'slurm': there is no sbatch on this machine; plan on a login node of the "
            "cluster, or run with `--scheduler local`"
        )
