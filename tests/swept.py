"""Runs of sweeps made by hand: real points, instances, records and artifacts, nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planned import instance

from nexa_hpc.core import records
from nexa_hpc.core.canonical import sha256_json
from nexa_hpc.core.drivers import Driver
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.points import Point, label, make_points, short_names
from nexa_hpc.core.publishing import Publication
from nexa_hpc.core.runs import Run, create_run
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Reason, State
from nexa_hpc.core.sweep_table import SweepResults, read_results

PATH = "steps.train.params."
Metrics = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class SweptStep:
    """A step of a sweep, and what becomes of it at each point."""

    id: str
    of: tuple[str, ...] = ()
    """The parameters, as `seed`, that its key depends on: points that agree share it."""
    metrics: Metrics | None = None
    """The content of metrics.json, given the parameters of its first point."""
    fate: Callable[[Mapping[str, Any]], str] = lambda _: "done"
    """`done`, `failed`, `blocked` or `waiting`, given the same."""
    after: tuple[str, ...] = ()
    whole: bool = False
    """Whether it is a step of the whole sweep."""


def sweep(root: Path, overrides: Sequence[Mapping[str, Any]], *steps: SweptStep) -> Run:
    """Record the sweep of `steps` over points whose parameters are `overrides`."""
    paths = ProjectPaths.at(root)
    points = make_points([{PATH + k: v for k, v in one.items()} for one in overrides])
    planned: dict[str, tuple[Instance, SweptStep, Mapping[str, Any]]] = {}
    for step in steps:
        planned.update(_planned(step, points, planned))
    instances = [found for found, _, _ in planned.values()]
    request = {"file": None, "document": [], "points": [point.to_json() for point in points]}
    run = create_run(paths, "demo", request, instances)
    for found, step, chosen in planned.values():
        _let_it_be(run, found, step, chosen)
    return run


def results(run: Run) -> SweepResults:
    """The results of `run`, as they are on disk."""
    return read_results(run, fold_all(run))


def _planned(
    step: SweptStep, points: Sequence[Point], above: Mapping[str, Any]
) -> dict[str, tuple[Instance, SweptStep, Mapping[str, Any]]]:
    found: dict[str, tuple[Instance, SweptStep, Mapping[str, Any]]] = {}
    shared: dict[str, list[Point]] = {}
    words = short_names([PATH + k for k in step.of])
    for point in points:
        text = "" if step.whole else label(point.overrides, words)
        shared.setdefault(f"{step.id}@{text}" if text else step.id, []).append(point)
    for name, served in shared.items():
        names = () if step.whole else tuple(point.name for point in served)
        parents = [
            other for other, (i, _, _) in above.items()
            if i.step_id in step.after and (not names or not i.points or {*names} & {*i.points})
        ]  # fmt: skip
        chosen = {k.removeprefix(PATH): v for k, v in served[0].overrides.items()}
        made = instance(
            sha256_json(name),
            step=name,
            declared_step=step.id,
            points=names,
            parents=tuple(parents),
        )
        found[name] = (made, step, chosen)
    return found


def _let_it_be(run: Run, found: Instance, step: SweptStep, chosen: Mapping[str, Any]) -> None:
    fate = step.fate(chosen)
    if fate == "done":
        publish(run, found, step.metrics(chosen) if step.metrics else None)
    elif fate == "failed":
        fail(run, found)


def publish(run: Run, found: Instance, metrics: Any = None) -> None:
    """Publish a result of `found`; a text is taken for metrics.json as it is."""
    publication = Publication.begin(run.paths.artifact(found.key))
    (publication.folder / "model").write_text("x")
    if metrics is not None:
        text = metrics if isinstance(metrics, str) else json.dumps(metrics)
        (publication.folder / "metrics.json").write_text(text)
    publication.publish(kind="artifact", step_key=found.key)


def fail(run: Run, found: Instance, message: str = "no luck\nat all") -> None:
    """Record that the first attempt at `found` failed."""
    folder = run.paths.records(found.key)
    driver = Driver.this_process(run.place.drivers, run.paths.state)
    assert records.claim(folder, 1, {"run": run.id, "driver": driver.to_json()})
    records.start(folder, 1, {})
    records.end(folder, 1, State.FAILED, reason=Reason.OUT_OF_MEMORY, message=message)
