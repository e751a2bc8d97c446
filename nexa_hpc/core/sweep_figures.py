"""What follows from the table of a sweep: its order, its best row, its figures over some parameter.

Only points whose results are whole take part in a figure or can be the best; a value that is no
finite number takes part nowhere. Called by `sweep show`. Standard library alone.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_hpc.core.best import number
from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.points import label
from nexa_hpc.core.sweep_table import LABEL, POINTS, WHOLE, Row, Table, is_whole
from nexa_hpc.errors import UnknownNameError, UserError, nearest

MIN, MAX = "min", "max"
MEAN, DEVIATION, COUNT = "mean", "std", "n"
"""How the three columns of a metric over some parameter end."""

_LOWER_IS_BETTER = (
    "loss", "nll", "error", "errors", "err", "perplexity", "ppl", "time", "runtime", "seconds",
    "duration", "latency", "brier", "ece", "mse", "rmse", "mae", "wer", "cer",
)  # fmt: skip
_HIGHER_IS_BETTER = (
    "accuracy", "acc", "f1", "auc", "auroc", "mcc", "precision", "recall", "score", "bleu",
    "reward", "r2", "match", "rougel", "rouge1", "rouge2", "rougelsum",
)  # fmt: skip


@dataclass(frozen=True)
class Best:
    """The best row by a metric."""

    row: Row | None
    """None where no point takes part."""
    mode: str
    """`max` or `min`."""
    guessed: bool
    """Whether `mode` was guessed from the metric's name."""
    of: int
    """How many rows took part."""


def find_metric(table: Table, word: str) -> str:
    """Return the metric that `word` names: its column, or the end of one column alone.

    Raises UnknownNameError, naming the nearest; UserError for a metric that has no number.
    """
    found = _found(word, table.metrics, "metric")
    if not any(number(row[found]) is not None for row in table.rows):
        raise UserError(f"metric '{found}' is a number in no point")
    return found


def find_parameter(table: Table, word: str) -> str:
    """Return the swept parameter that `word` names: its column, its path, or the end of one.

    Raises UnknownNameError, naming the nearest.
    """
    columns = {path: column for column, path in table.parameters.items()}
    return columns.get(word) or _found(word, list(table.parameters), "swept parameter")


def find_column(table: Table, word: str) -> str:
    """Return the column that `word` names; a metric's is that of its mean where there are means.

    Raises UnknownNameError, naming the nearest.
    """
    means = [c for c in table.columns if c == f"{word}.{MEAN}" or c.endswith(f".{word}.{MEAN}")]
    if word not in table.columns and len(means) == 1:
        return means[0]
    return _found(word, table.columns, "column")


def _found(word: str, names: Sequence[str], what: str) -> str:
    if word in names:
        return word
    ending = [name for name in names if name.endswith(f".{word}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UnknownNameError(f"'{word}' names {len(ending)} of the run's: {', '.join(ending)}")
    meant = nearest(word, names) or nearest_ending(word, names)
    known = f"it has {', '.join(names[:20])}" if names else "it has none (yet)"
    raise UnknownNameError(f"the run has no {what} '{word}'{meant}", hint=known)


def nearest_ending(word: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'step.x'?` where `word` comes close to the last part of a name."""
    ends = {name.rpartition(".")[2]: name for name in names}
    told = nearest(word, ends)
    for end, name in ends.items():
        if f"'{end}'" in told:
            return told.replace(f"'{end}'", f"'{name}'")
    return ""


def guess_mode(metric: str) -> str:
    """Return whether less (`min`) or more (`max`) of a metric is better, from its name alone."""
    for part in reversed(metric.split(".")[1:]):
        words = re.split(r"[^a-z0-9]+", part.lower())
        if not set(_LOWER_IS_BETTER).isdisjoint(words):
            return MIN
        if not set(_HIGHER_IS_BETTER).isdisjoint(words):
            return MAX
    return MAX


def best(table: Table, metric: str, mode: str | None = None) -> Best:
    """Return the row with the best `metric`, the first of equals; `mode`: `max`, `min` or guessed.

    Of a table over some parameter `metric` is a column of means.
    """
    chosen = mode or guess_mode(metric.removesuffix(f".{MEAN}"))
    sign = -1 if chosen == MIN else 1
    taking_part = [row for row in table.rows if is_whole(row) and number(row[metric]) is not None]
    row = max(taking_part, key=lambda row: sign * (number(row[metric]) or 0), default=None)
    return Best(row, chosen, mode is None, len(taking_part))


def by_interest(table: Table) -> list[str]:
    """Return the metrics that have numbers, those first that a reader most likely asks for.

    What differs between points comes before what does not, a figure of merit before others, a later
    step before an earlier one.
    """
    steps = list(dict.fromkeys(metric.partition(".")[0] for metric in table.metrics))

    def rank(metric: str) -> tuple[bool, int, int]:
        step, _, rest = metric.partition(".")
        return not differs(table, metric), _merit(rest), -steps.index(step)

    found = [m for m in table.metrics if any(number(row[m]) is not None for row in table.rows)]
    return sorted(found, key=rank)


def differs(table: Table, metric: str) -> bool:
    """Return whether `metric` has several numbers in the rows of `table`."""
    return len({number(row[metric]) for row in table.rows} - {None}) > 1


def _merit(name: str) -> int:
    """Return how far down the list of figures of merit a metric's name is."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    for rank, word in enumerate((*_HIGHER_IS_BETTER, "loss", "perplexity", "error")):
        if words == [word]:
            return rank
        if word in words and "baseline" not in words:
            return 100 + rank
    return 200


def over(table: Table, parameters: Sequence[str]) -> Table:
    """Return the table with one row for all points that differ in `parameters` alone.

    Of each metric it has the mean, the sample standard deviation (None for one value) and the
    number of values; metrics without numbers are left out.
    """
    kept = {c: path for c, path in table.parameters.items() if c not in parameters}
    metrics = by_interest(table)
    metrics = [metric for metric in table.metrics if metric in metrics]
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(canonical_json([row[column] for column in kept]), []).append(row)
    return Table(
        parameters=kept,
        metrics=tuple(f"{m}.{end}" for m in metrics for end in (MEAN, DEVIATION, COUNT)),
        rows=tuple(_group(rows, list(kept), metrics) for rows in groups.values()),
        before=(LABEL,),
        between=(POINTS, WHOLE),
    )


def _group(rows: Sequence[Row], kept: Sequence[str], metrics: Sequence[str]) -> Row:
    whole = [row for row in rows if is_whole(row)]
    values = {column: rows[0][column] for column in kept}
    said = {column: value for column, value in values.items() if value is not None}
    found: dict[str, Any] = {
        LABEL: label(said, {column: column for column in kept}) or "all",
        **values,
        POINTS: len(rows),
        WHOLE: len(whole),
    }
    for metric in metrics:
        numbers = [value for row in whole if (value := number(row[metric])) is not None]
        found[f"{metric}.{MEAN}"] = _finite(statistics.fmean, numbers, least=1)
        found[f"{metric}.{DEVIATION}"] = _finite(statistics.stdev, numbers, least=2)
        found[f"{metric}.{COUNT}"] = len(numbers)
    return found


def _finite(
    figure: Callable[[Sequence[float]], float], numbers: Sequence[float], least: int
) -> float | None:
    if len(numbers) < least:
        return None
    try:
        return number(figure(numbers))
    except OverflowError:
        return None


def ordered(table: Table, column: str, *, descending: bool = False) -> Table:
    """Return the table sorted by `column`: numbers, then texts; rows without a value come last."""
    rows = sorted(table.rows, key=lambda row: _order(row[column]), reverse=descending)
    there = [row for row in rows if not _is_nothing(row[column])]
    return replace(table, rows=(*there, *(r for r in table.rows if _is_nothing(r[column]))))


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _order(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return 0, 0 if _is_nothing(value) else value
    return 1, value if isinstance(value, str) else canonical_json(value)
