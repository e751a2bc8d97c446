"""What `sweep show` is asked for, and what of a run's table that is: rows, columns, the metric."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from nexa_hpc.core.sweep_figures import (
    COUNT,
    DEVIATION,
    MEAN,
    by_interest,
    differs,
    find_column,
    find_metric,
    find_parameter,
    ordered,
    over,
)
from nexa_hpc.core.sweep_table import LABEL, REASON, Table
from nexa_hpc.core.table_formats import cell_text
from nexa_hpc.errors import UnknownNameError, UserError, nearest

_METRICS_SHOWN = 6
_METRICS_SHOWN_OVER = 2
"""Over a parameter each metric has three columns."""
_BETWEEN_COLUMNS = 2


@dataclass(frozen=True)
class Asked:
    """The options, as given."""

    metric: str | None = None
    mode: str | None = None
    sort: str | None = None
    descending: bool = False
    over: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    all_columns: bool = False


@dataclass(frozen=True)
class Choice:
    """What of a run's table is asked for."""

    table: Table
    """As it is shown: in order, over what is named."""
    metric: str | None
    """The metric that the best is judged by, as in the run's table; None without metrics."""
    column: str | None
    """Its column in `table`: the metric itself, or its mean."""
    over: tuple[str, ...]
    """The columns of the parameters that `table` is over."""
    shown: tuple[str, ...]
    """The columns for people."""


def choose(table: Table, asked: Asked, width: int | None = None) -> Choice:
    """Return what of `table` is asked for; `shown` fits into `width` characters, if it can.

    Raises UnknownNameError, naming the nearest, for what the table does not have.
    """
    if asked.descending and asked.sort is None:
        raise UserError("--descending says how --sort sorts: name a column")
    table = _matching(table, asked)
    interest = by_interest(table)
    judged = find_metric(table, asked.metric) if asked.metric else next(iter(interest), None)
    parameters = tuple(find_parameter(table, word) for word in asked.over)
    found = over(table, parameters) if parameters else table
    if asked.sort is not None:
        sorted_by = find_column(found, asked.sort)
        found = ordered(found, sorted_by, descending=asked.descending)
    if asked.all_columns:
        shown = found.columns
    elif asked.metrics:
        shown = _with(found, found.metrics)
    else:
        shown = _of_interest(table, found, judged, interest, width)
    column = f"{judged}.{MEAN}" if judged and parameters else judged
    return Choice(found, judged, column, parameters, shown)


def _matching(table: Table, asked: Asked) -> Table:
    """Return the table with the metrics that match a pattern, and the one that is judged by."""
    if not asked.metrics:
        return table
    kept = [m for m in table.metrics if any(fnmatchcase(m, p) for p in asked.metrics)]
    if not kept:
        said = ", ".join(asked.metrics)
        raise UnknownNameError(
            f"no metric matches {said}" + nearest(asked.metrics[0], table.metrics)
        )
    judged = [find_metric(table, asked.metric)] if asked.metric else []
    return table.with_metrics([*kept, *judged])


def _of_interest(
    table: Table, found: Table, judged: str | None, interest: list[str], width: int | None
) -> tuple[str, ...]:
    """Return the columns that a person looks at first, fewer metrics where there is no room.

    What is the same at every point is nothing to look at, unless it is all that there is.
    """
    differing = [metric for metric in interest if differs(table, metric)] or interest
    ranked = [*filter(None, [judged]), *(metric for metric in differing if metric != judged)]
    is_over = found.before != table.before
    most = min(len(ranked), _METRICS_SHOWN_OVER if is_over else _METRICS_SHOWN)
    for count in range(most, -1, -1):
        kept = ranked[:count]
        if is_over:
            kept = [f"{metric}.{end}" for metric in kept for end in (MEAN, DEVIATION, COUNT)]
        columns = _with(found, [metric for metric in found.metrics if metric in kept])
        if width is None or count <= 1 or _width(found, columns) <= width:
            return columns
    raise AssertionError("unreachable")


def _with(table: Table, metrics: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Return the columns for `metrics`; the label stands in where no parameter is swept."""
    between = [column for column in table.between if column != REASON]
    return (*(table.parameters or [LABEL]), *between, *metrics)


def _width(table: Table, columns: tuple[str, ...]) -> int:
    widest = [max([len(c), *(len(cell_text(row[c])) for row in table.rows)]) for c in columns]
    return sum(widest) + _BETWEEN_COLUMNS * (len(columns) - 1)
