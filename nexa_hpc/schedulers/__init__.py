"""Where a step runs.

`refuse_unknown` is what planning asks; only `local` exists in this version.
"""

from __future__ import annotations

from nexa_hpc.errors import UnsupportedError

SCHEDULERS = ("local",)
_DECLARABLE = {
    "slurm": "this version does not submit to Slurm; leave `scheduler` out, or run with "
    "`--scheduler local`",
    "k8s": "nexa_hpc does not run on Kubernetes; use `local`",
}


def refuse_unknown(name: str) -> None:
    """Raise UnsupportedError, a NotImplementedError, for a scheduler that this version lacks."""
    if name not in SCHEDULERS:
        raise UnsupportedError(f"scheduler '{name}': {_DECLARABLE.get(name, 'no such scheduler')}")
