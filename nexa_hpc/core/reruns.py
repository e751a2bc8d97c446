"""Which rerun counts are raised so that a step, and all below it, get new keys.

In a sweep a count stands for the step at all points, or for the step at one. Called by `pipeline`,
which keeps the counts. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from nexa_hpc.core.checks import rerun_name
from nexa_hpc.core.graph import Graph
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.points import Point, find_instances


class Planned(Protocol):
    """What is asked of a plan."""

    @property
    def instances(self) -> Mapping[str, Instance]:
        """By their names, in graph order."""

    @property
    def graph(self) -> Graph:
        """Of the instances."""

    @property
    def points(self) -> Sequence[Point]:
        """Of a sweep."""


def raised(plan: Planned, counts: Mapping[str, int], word: str) -> dict[str, int]:
    """Return `counts` under which the step that `word` names, and all below it, have new keys.

    `word` is as `find_instances` takes it. An instance that reads a new result has a new key by
    itself; one that is only ordered after it needs its own count raised. Raises UnknownNameError.
    """
    first = find_instances(plan.instances, plan.points, word)
    everywhere = any(instance.step_id == word for instance in plan.instances.values())
    found = dict(counts)
    renewed: set[str] = set()
    for name in plan.graph.order:
        instance = plan.instances[name]
        if name not in first and not renewed.intersection(plan.graph.parents[name]):
            continue
        if name in first or not renewed.intersection(plan.graph.data_parents[name]):
            for counted in _counted(instance, everywhere=everywhere):
                found[counted] = counts.get(counted, 0) + 1
        renewed.add(name)
    return found


def _counted(instance: Instance, *, everywhere: bool) -> Iterator[str]:
    """Yield under which names the reruns of `instance` are counted."""
    if everywhere or not instance.points:
        yield instance.step_id
    else:
        yield from (rerun_name(instance.step_id, point) for point in instance.points)
