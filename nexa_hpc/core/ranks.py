"""Which of several tasks of one attempt a process is, and where the first of them is to be met.

On Slurm, srun starts one process for each of `nodes` x `tasks_per_node`, and its variables tell
them apart. Rank 0 alone records and publishes (`core.together`). Called by the schedulers and the
worker; handlers find it in `Task.ranks`. Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

RANKS_VARIABLE = "NEXA_HPC_RANKS"
"""Holds `Ranks.encode()` for a worker process that is one of several ranks."""

_PORTS = (20000, 60000)
_ASK_S = 20.0


@dataclass(frozen=True)
class Ranks:
    """One process among those of an attempt; alone unless told otherwise."""

    rank: int = 0
    size: int = 1
    """How many there are in all."""
    local_rank: int = 0
    local_size: int = 1
    """How many there are on this node."""
    node_rank: int = 0
    nodes: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0
    """0: whichever is free when it is asked for."""
    token: str = ""
    """The same for all ranks of one start of a job, another after a requeue."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Return what srun's variables say; alone where there are none.

        To be asked only where srun started this process for the step: an allocation has the same
        variables. May ask scontrol for the address of the first node.
        """
        size = int(_first(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or 1)
        if size < 2 or "SLURM_PROCID" not in environ:
            return cls()
        node = int(environ.get("SLURM_NODEID", "0"))
        counts = tasks_on_nodes(
            _first(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") or str(size)
        )
        token = "-".join(
            environ.get(name, "0")
            for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        )
        nodes = _first(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") or ""
        return cls(
            rank=int(environ["SLURM_PROCID"]),
            size=size,
            local_rank=int(environ.get("SLURM_LOCALID", "0")),
            local_size=counts[node] if node < len(counts) else 1,
            node_rank=node,
            nodes=int(_first(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES") or 1),
            master_address=_reachable(first_host(nodes)),
            master_port=port_of(token),
            token=token,
        )

    @classmethod
    def decode(cls, text: str | None) -> Ranks:
        """Return what `encode` wrote; alone for None."""
        return cls() if text is None else cls(**json.loads(text))

    def encode(self) -> str:
        """Return the text that `RANKS_VARIABLE` hands to a worker process."""
        return json.dumps(asdict(self))

    def meeting_place(self) -> dict[str, Any]:
        """Return where rank 0 is to be met, once it has seen that the port is free there."""
        port = self.master_port
        if not port or not _is_free(port):
            port = _free_port()
        return {"master_address": self.master_address, "master_port": port}

    def met_at(self, place: Mapping[str, Any]) -> Ranks:
        """Return these ranks with what rank 0 told as its `meeting_place`."""
        return replace(
            self,
            master_address=str(place["master_address"]),
            master_port=int(place["master_port"]),
        )

    def variables(self) -> dict[str, str]:
        """Return the variables by which torch.distributed and others find each other."""
        return {
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "NNODES": str(self.nodes),
            "NODE_RANK": str(self.node_rank),
        }


ALONE = Ranks()


def declared_tasks(resources: Mapping[str, Any]) -> int:
    """Return how many tasks `resources` asks for, on all nodes."""
    count = 1
    for name in ("nodes", "tasks_per_node"):
        value = resources.get(name)
        count *= value if isinstance(value, int) and value > 0 else 1
    return count


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list such as `n[01-04,7],login` or `r[1-2]c[3-4]`."""
    end, depth = len(nodes), 0
    for place, character in enumerate(nodes):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            end = place
            break
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes[:end])


def tasks_on_nodes(text: str) -> list[int]:
    """Return the numbers of tasks, node by node, that Slurm writes as `2(x3),1`."""
    found: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def port_of(token: str) -> int:
    """Return a port between 20000 and 60000, always the same for one token."""
    least, most = _PORTS
    return least + int.from_bytes(hashlib.sha256(token.encode()).digest()[:4], "big") % (
        most - least
    )


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _reachable(host: str) -> str:
    """Return a name or address of `host` that resolves here, as far as anybody knows one."""
    if _resolves(host):
        return host
    return next(filter(_resolves, _addresses_told_by_slurm(host)), host)


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _addresses_told_by_slurm(host: str) -> list[str]:
    """Return NodeAddr and NodeHostName: a node's name in Slurm need not be one in the DNS."""
    try:
        told = subprocess.run(
            ["scontrol", "show", "node", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"\b(?:NodeAddr|NodeHostName)=(\S+)", told)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As torch's store does: a port whose last connections only fade counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
