"""Whether an instance's result is there, whole: the one question that outranks every other.

Called by planning, `advance`, the worker and `status`. Standard library alone.
"""

from __future__ import annotations

import os

from nexa_hpc.core.artifacts import (
    COMPLETE,
    Artifact,
    Finding,
    Presence,
    is_thrown_away,
    look,
)
from nexa_hpc.core.instances import Instance, output_name
from nexa_hpc.core.paths import ProjectPaths


def find_result(instance: Instance, paths: ProjectPaths) -> Finding:
    """Look at all outputs of `instance`: COMPLETE when each is; else the first that is not.

    The artifact of an answer is that of the first output. An effect has no result: ABSENT.
    """
    first: Artifact | None = None
    for place in _places(instance, paths):
        if is_thrown_away(place):
            return Finding(Presence.ABSENT, reason="its result is in the trash of the store")
        finding = look(place)
        if finding.artifact is None:
            return finding
        first = first or finding.artifact
    if first is None:
        return Finding(Presence.ABSENT, reason="changes something elsewhere")
    return Finding(Presence.COMPLETE, first)


def is_sealed(instance: Instance, paths: ProjectPaths) -> bool:
    """Return whether all outputs of `instance` seem to have a COMPLETE: a glance, before a look."""
    places = _places(instance, paths)
    return bool(places) and all(os.access(f"{place}/{COMPLETE}", os.F_OK) for place in places)


def _places(instance: Instance, paths: ProjectPaths) -> list[str]:
    """Return the store's folder for each output, as text; none for an effect."""
    outputs = () if instance.effect else instance.outputs
    return [paths.artifact_text(instance.key, output_name(name)) for name in outputs]


def cached_words(artifact: Artifact) -> str:
    """Return why a step that has this result is skipped."""
    made_by = artifact.meta.get("made_by", {})
    return f"cached: {made_by.get('run', 'made elsewhere')}"


def lost_words(finding: Finding) -> str:
    """Return what is wrong with a result that is there and not whole; empty when none is there."""
    if finding.presence is Presence.PURGED:
        return f"its result was purged: {finding.reason}"
    if finding.presence is Presence.FOREIGN:
        return f"what stands in the store is not complete: {finding.reason}"
    return ""
