"""GPUs: how many the `resources` of a step ask for, and over how many a server spreads its model.

Called by the handler of `runners.serve`, by `serve start` and for trainings by axolotl.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GRES = re.compile(r"(?:^|,)gpu(?::[^,:()\d][^,:()]*)?(?::(?P<count>\d+))?(?=$|[,(])")
_SPREADS = ("tensor_parallel", "_parallel_size")
"""How the params end that say over how many processes a model is spread."""
_WITHIN = ("decode_context_parallel_size",)
"""Those that share the GPUs of `tensor_parallel` (vLLM's documentation of context parallelism)."""


def spread(params: Mapping[str, Any]) -> int:
    """Return over how many GPUs a server with these params spreads its model."""
    found = 1
    for name, value in params.items():
        if name.endswith(_SPREADS) and name not in _WITHIN and type(value) is int:
            found *= value
    return found


def of_gres(gres: str) -> int | None:
    """Return how many GPUs a `--gres` asks for on each node; None where it names none."""
    found = _GRES.search(gres)
    return None if found is None else int(found["count"] or 1)


def asked(resources: Mapping[str, Any]) -> int:
    """Return how many GPUs the `resources` of a step ask for on a node."""
    each = resources.get("gpus_per_node")
    if each is None and resources.get("gpus_per_task") is not None:
        each = resources["gpus_per_task"] * (resources.get("tasks_per_node") or 1)
    if each is None:
        each = of_gres(str(resources.get("gres") or ""))
    return int(each or 0)
