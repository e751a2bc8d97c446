"""What a run has come to, as a table: a row for each point, with its overrides, state and metrics.

    label  name  learning_rate  seed  status  reason  train.loss  eval.accuracy

A metric is a number, a truth value or a short text in the `metrics.json` of any step's result,
named `step.metric`; what is nested is joined by dots, lists are left out. A plain run has one row.
Called by `sweep show` and by `PipelineRun.results`; what follows from a table is
`core.sweep_figures`'s. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_hpc.core.best import flat, read_metrics
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.points import Point, short_names, varied_keys
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State
from nexa_hpc.errors import StateError

LABEL, NAME, STATUS, REASON = "label", "name", "status", "reason"
POINTS, WHOLE = "points", "whole"
"""The columns that a table over some parameter has besides: how many points, how many whole."""
_RESERVED = frozenset({LABEL, NAME, STATUS, REASON, POINTS, WHOLE})
_LONGEST_TEXT = 80

Row = Mapping[str, Any]
"""Column -> value; None where there is none."""

_WORST_FIRST = (
    State.FAILED,
    State.CANCELLED,
    State.BLOCKED,
    State.RUNNING,
    State.SUBMITTED,
    State.PENDING,
    State.COMPLETED,
    State.SKIPPED,
)
_RANK = {state: rank for rank, state in enumerate(_WORST_FIRST)}
TROUBLE = frozenset(_WORST_FIRST[:3])
"""The states of an instance whose point has failed."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; every row has every column."""

    parameters: Mapping[str, str]
    """Column of a swept parameter -> its override path."""
    metrics: tuple[str, ...]
    """The columns of metrics, in the order of the steps."""
    rows: tuple[Row, ...]
    before: tuple[str, ...] = (LABEL, NAME)
    """The columns before those of parameters, and between parameters and metrics."""
    between: tuple[str, ...] = (STATUS, REASON)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in their order."""
        return (*self.before, *self.parameters, *self.between, *self.metrics)

    def with_metrics(self, metrics: Iterable[str]) -> Table:
        """Return the table with those metrics alone, in its own order."""
        kept = frozenset(metrics)
        return replace(self, metrics=tuple(name for name in self.metrics if name in kept))

    def picked(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows with those columns alone."""
        return [{column: row[column] for column in columns} for row in self.rows]


@dataclass(frozen=True)
class Trouble:
    """A point that has failed, and the instance that stands worst."""

    label: str
    """The point's; empty for a step of the whole sweep."""
    step: str
    """The instance's name in the run."""
    standing: Standing


@dataclass(frozen=True)
class SweepResults:
    """A run's table, and what a table cannot say."""

    table: Table
    troubles: tuple[Trouble, ...]
    """The failed points, in their order; then failed steps of the whole sweep."""
    of_the_whole: Row
    """The metrics of steps of the whole sweep, which belong to no point."""
    unread: tuple[str, ...]
    """In words, each `metrics.json` that could not be read."""


def is_whole(row: Row) -> bool:
    """Return whether all results of a row's point are there; of a group, those of some point."""
    if STATUS in row:
        return row[STATUS] in (State.COMPLETED.value, State.SKIPPED.value)
    return bool(row[WHOLE])


def read_results(run: Run, standings: Mapping[str, Standing]) -> SweepResults:
    """Return the table of `run`; `standings` is what is true of its instances (`fold_all`).

    Each `metrics.json` is read once, however many points share the instance.
    """
    unread: list[str] = []
    metrics = dict(_all_metrics(run, standings, unread))
    points = run.points or (Point(run.id, run.id, {}),)
    members = _members(run, points)
    whole = [name for name in metrics if run.points and not run.instances[name].points]
    of_the_whole = _merged(metrics.pop(name) for name in whole)
    names = _in_order_of_steps(run, metrics)
    parameters = _parameters([p.overrides for p in points], names)
    empty: dict[str, Any] = dict.fromkeys(names)
    rows, troubles = [], []
    for point in points:
        worst = _worst(members[point.name], standings)
        trouble = _trouble(point.label, worst, standings)
        troubles += trouble
        rows.append(
            {
                LABEL: point.label,
                NAME: point.name,
                **{column: point.overrides.get(path) for column, path in parameters.items()},
                STATUS: standings[worst].state.value if worst else State.PENDING.value,
                REASON: in_words(trouble[0]) if trouble else None,
                **empty,
                **_merged(metrics[i.step] for i in members[point.name] if i.step in metrics),
            }
        )
    if run.points:
        troubles += _troubles_of_the_whole(run, standings)
    table = Table(parameters, names, tuple(rows))
    return SweepResults(table, tuple(troubles), of_the_whole, tuple(unread))


def in_words(trouble: Trouble) -> str:
    """Return which step of a point failed and why, in one line."""
    standing = trouble.standing
    first = standing.message.splitlines()[0] if standing.message else standing.state.value
    return ": ".join(filter(None, (trouble.step, standing.reason, first)))


def _members(run: Run, points: Sequence[Point]) -> Mapping[str, list[Instance]]:
    """Return the name of each point -> its instances, in graph order."""
    members: dict[str, list[Instance]] = {point.name: [] for point in points}
    for instance in run.instances.values():
        served = instance.points if run.points else tuple(members)
        for name in served:
            members[name].append(instance)
    return members


def _worst(instances: Sequence[Instance], standings: Mapping[str, Standing]) -> str | None:
    """Return the first of those instances whose state is the worst."""
    names = (instance.step for instance in instances)
    return min(names, key=lambda name: _RANK[standings[name].state], default=None)


def _trouble(label: str, worst: str | None, standings: Mapping[str, Standing]) -> list[Trouble]:
    if worst is None or standings[worst].state not in TROUBLE:
        return []
    return [Trouble(label, worst, standings[worst])]


def _troubles_of_the_whole(run: Run, standings: Mapping[str, Standing]) -> Iterator[Trouble]:
    for instance in run.instances.values():
        if not instance.points:
            yield from _trouble("", instance.step, standings)


def _parameters(points: Sequence[Mapping[str, Any]], taken: Iterable[str]) -> dict[str, str]:
    """Return the column of each parameter that the sweep varies -> its override path.

    The column is the short name, unless a metric or another column is called so.
    """
    used = {*_RESERVED, *taken}
    columns: dict[str, str] = {}
    for path, short in short_names(varied_keys(points)).items():
        free = [name for name in (short, path) if name not in used]
        columns[free[0] if free else f"override.{path}"] = path
    return columns


def _all_metrics(
    run: Run, standings: Mapping[str, Standing], unread: list[str]
) -> Iterator[tuple[str, Row]]:
    """Yield each instance with results, and its metrics by column; note in `unread` what fails."""
    for name, instance in run.instances.items():
        if standings[name].state.succeeded:
            try:
                found = flat(read_metrics(instance, run.paths), f"{instance.step_id}.")
            except (StateError, OSError) as error:
                unread.append(f"{name}: {error}")
                continue
            yield name, {metric: value for metric, value in found if _is_shown(value)}


def _is_shown(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and len(value) <= _LONGEST_TEXT
    )


def _in_order_of_steps(run: Run, metrics: Mapping[str, Row]) -> tuple[str, ...]:
    by_step: dict[str, dict[str, None]] = {}
    for name, instance in run.instances.items():
        by_step.setdefault(instance.step_id, {}).update(dict.fromkeys(metrics.get(name, ())))
    return tuple(dict.fromkeys(column for columns in by_step.values() for column in columns))


def _merged(found: Iterable[Row]) -> dict[str, Any]:
    return {column: value for metrics in found for column, value in metrics.items()}
