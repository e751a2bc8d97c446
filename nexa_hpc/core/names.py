"""What the instances of a sweep are called, and which parameters it varies for nothing.

An instance is named after its step and what its points, and no others of the step, have in common:
`prepare` where all points share it, `train@learning_rate=3e-05`, `eval@learning_rate=3e-05,k=2`.
Called by `planning`. Standard library alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.points import Point, label, short_names, varied_keys


def named(instances: Mapping[str, Instance], points: Sequence[Point]) -> dict[str, Instance]:
    """Return `instances` under the names that people read; a plain run's stay as they are."""
    if not points:
        return dict(instances)
    words = short_names(varied_keys([point.overrides for point in points]))
    overrides = {point.name: point.overrides for point in points}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for old, instance in instances.items():
        step = old.partition("#")[0]
        common = _common([overrides[point] for point in instance.points], words)
        said = label(common, words)
        name = f"{step}@{said}" if said else step
        if name in taken:
            name = f"{step}@{said}~{instance.points[0]}".replace("@~", "@")
        taken.add(name)
        names[old] = name
    return {
        names[old]: instance.renamed(names, old.partition("#")[0])
        for old, instance in instances.items()
    }


def _common(overrides: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return what all of `overrides` say, of `keys`."""
    first = overrides[0] if overrides else {}
    return {
        key: first[key]
        for key in keys
        if key in first and all(key in o and o[key] == first[key] for o in overrides)
    }


def unvaried(instances: Mapping[str, Instance], points: Sequence[Point]) -> Iterator[str]:
    """Yield a warning for each parameter of the sweep that changes no key."""
    keys: dict[str, list[str]] = defaultdict(list)
    for instance in instances.values():
        for name in instance.points:
            keys[name].append(instance.key)
    for swept in varied_keys([point.overrides for point in points]):
        alike: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for point in points:
            others = {key: value for key, value in point.overrides.items() if key != swept}
            alike[canonical_json(others)].add(tuple(keys[point.name]))
        if len(alike) < len(points) and all(len(found) == 1 for found in alike.values()):
            yield (
                f"{swept} is swept and changes no step's key: points that differ in it alone share "
                "all their results"
            )
