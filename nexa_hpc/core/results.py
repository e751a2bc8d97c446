"""Whether an instance's result is there, whole: the one question that outranks every other.

Called by planning, `advance`, the worker and `status`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nexa_hpc.core.artifacts import Artifact, Finding, Presence, look
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths


def find_result(instance: Instance, paths: ProjectPaths) -> Finding:
    """Look at all outputs of `instance`: COMPLETE when each is; else the first that is not.

    The artifact of an answer is that of the first output. An effect has no result: ABSENT.
    """
    return find_outputs(instance.artifact_paths(paths))


def find_outputs(places: Mapping[str, Path]) -> Finding:
    """Look at the artifacts at `places`: COMPLETE when each is; else the first that is not."""
    first: Artifact | None = None
    for path in places.values():
        finding = look(path)
        if finding.artifact is None:
            return finding
        first = first or finding.artifact
    if first is None:
        return Finding(Presence.ABSENT, reason="changes something elsewhere")
    return Finding(Presence.COMPLETE, first)
