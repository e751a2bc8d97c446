"""The best point of a sweep: which of several results a step is given, by a metric of each.

Chosen when the step starts, from the `metrics.json` of finished results; the key of the step holds
all candidates, so the choice is as reproducible as they are. Called by `tasks` and
`preconditions`. Standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import StepError

METRICS = "metrics.json"
"""The file in a result that holds its figures, at their names, nested ones joined by dots."""


class Best(NamedTuple):
    """A choice and what it rests on."""

    step: str
    """The instance that was chosen."""
    value: float


def choose(
    handed: Mapping[str, Any], instances: Mapping[str, Instance], paths: ProjectPaths
) -> Best:
    """Return the best of the candidates in `handed`, an input with a "best".

    Of equally good ones, the first. Raises StepError when one has no such figure.
    """
    best = handed["best"]
    figures = [
        Best(result, _figure(instances[judged], best["metric"], paths))
        for result, judged in best["of"]
    ]
    known = [figure for figure in figures if not math.isnan(figure.value)]
    if not known:
        raise StepError(f"{best['metric']} is no number (NaN) at every point: none is the best")
    pick = max if best["mode"] == "max" else min
    return pick(known, key=lambda figure: figure.value)


def _figure(instance: Instance, metric: str, paths: ProjectPaths) -> float:
    figures = dict(flat(read_metrics(instance, paths)))
    value = figures.get(metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        there = ", ".join(name for name, v in figures.items() if isinstance(v, (int, float)))
        raise StepError(
            f"step '{instance.step}': its {METRICS} has no number '{metric}'"
            + (f" (it has: {there})" if there else "")
        )
    return float(value)


def number(value: Any) -> float | None:
    """Return `value` as a finite number (true is 1), or None where it is none."""
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def read_metrics(instance: Instance, paths: ProjectPaths) -> Mapping[str, Any]:
    """Return the figures of a result, of its first output that has some; empty without any.

    Raises StateError, OSError for a file that cannot be read.
    """
    for place in instance.artifact_paths(paths).values():
        found = read_json_or_none(place / METRICS)
        if isinstance(found, dict):
            return found
    return {}


def flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of everything in `metrics`; names of what is nested are joined by
    dots.
    """
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
