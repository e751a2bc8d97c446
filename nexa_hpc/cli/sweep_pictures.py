"""Which pictures of a sweep are drawn, from its table; `backends.sweep_*` draw them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_hpc.core import atomic
from nexa_hpc.core.best import number
from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.runs import Run
from nexa_hpc.core.sharing import is_own
from nexa_hpc.core.sweep_figures import DEVIATION, MEAN, MIN, guess_mode, over
from nexa_hpc.core.sweep_table import Table, is_whole
from nexa_hpc.errors import NexaError

if TYPE_CHECKING:
    from nexa_hpc.backends.sweep_plots import Dot

_SEEDS = frozenset({"seed", "random_state", "random_seed"})
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._+-]+")
_AXES_AT_MOST = 10
_GROUPS_AT_MOST = 6

Picture = tuple[str, bytes]


def draw_all(
    run: Run,
    table: Table,
    metric: str | None,
    over_: Sequence[str],
    mode: str | None,
    folder: Path | None,
) -> None:
    """Draw `metric` of a sweep and say where the pictures are; or why there are none.

    `over_` are the parameters whose values are drawn as one dot with its deviation; by default
    the seeds. Without `folder` it is the run's own below multirun/, of one's own runs alone.
    """
    if metric is None or not table.parameters:
        return
    rows = [row for row in table.rows if is_whole(row) and number(row[metric]) is not None]
    if len(rows) < 2:
        return
    if folder is None and not is_own(run.place.folder):
        print("\npictures: not drawn beside another user's run; --pictures DIR says where")
        return
    target = folder or run.paths.pictures(run.pipeline, run.id)
    whole = Table(table.parameters, (metric,), tuple(rows))
    try:
        drawn = list(_pictures(whole, metric, over_, mode or guess_mode(metric)))
    except ImportError:
        _say("not drawn: matplotlib is not installed here: pip install matplotlib")
        return
    try:
        for name, content in drawn:
            atomic.write_file(target.absolute() / name, content)
    except (OSError, NexaError) as error:
        if folder is not None:
            raise
        _say(f"not written: {error}")
        return
    print(f"\npictures:   {run.paths.relative(target.absolute())}/")
    for name, _ in drawn:
        print(f"  {name}")


def _say(text: str) -> None:
    print(f"pictures: {printable(text)}", file=sys.stderr)


def _pictures(table: Table, metric: str, over_: Sequence[str], mode: str) -> Iterator[Picture]:
    # Imported here: this is what a call without pictures is to be spared.
    from nexa_hpc.backends.sweep_parallel import draw_parallel
    from nexa_hpc.backends.sweep_plots import draw_against

    joined = list(over_) or [p for p in table.parameters if _is_seed(p)]
    for parameter in table.parameters:
        others = [p for p in joined if p != parameter]
        grouped_by = _colour(table, parameter, others)
        dots = _dots(table, metric, parameter, others, grouped_by)
        content = draw_against(
            parameter, metric, dots, grouped_by=grouped_by or "", note=_note(others)
        )
        yield _file_name(f"{metric}-by-{parameter}"), content
    shown = over(table, joined) if joined else table
    axes = list(shown.parameters)[:_AXES_AT_MOST]
    if len(axes) >= 2:
        column = f"{metric}.{MEAN}" if joined else metric
        rows = [row for row in shown.rows if row[column] is not None]
        values = {axis: [_value(axis, row[axis]) for row in rows] for axis in axes}
        scores = [float(row[column]) for row in rows]
        lowest = mode == MIN
        content = draw_parallel(metric, values, scores, lowest=lowest, note=_note(joined))
        yield _file_name(f"{metric}-parallel"), content


def _is_seed(parameter: str) -> bool:
    return parameter.rpartition(".")[2] in _SEEDS


def _note(joined: Sequence[str]) -> str:
    return f"mean ± deviation over {', '.join(joined)}" if joined else ""


def _colour(table: Table, parameter: str, joined: Sequence[str]) -> str | None:
    """Return the parameter with the fewest values, if they are few, that is not drawn otherwise."""
    counts = {
        other: len({canonical_json(row[other]) for row in table.rows})
        for other in table.parameters
        if other != parameter and other not in joined
    }
    few = [other for other, count in counts.items() if 2 <= count <= _GROUPS_AT_MOST]
    return min(few, key=counts.__getitem__, default=None)


def _dots(
    table: Table, metric: str, parameter: str, joined: Sequence[str], grouped_by: str | None
) -> list[Dot]:
    from nexa_hpc.backends.sweep_plots import Dot

    shown = over(table, joined) if joined else table
    column = f"{metric}.{MEAN}" if joined else metric
    return [
        Dot(
            x=_value(parameter, row[parameter]),
            y=float(row[column]),
            spread=row[f"{metric}.{DEVIATION}"] if joined else None,
            group=_text(row[grouped_by]) if grouped_by else "",
        )
        for row in shown.rows
        if row[column] is not None
    ]


def _value(parameter: str, value: Any) -> Any:
    """Return a number or truth value as it is, all else as text: so are seeds, mere names."""
    is_figure = number(value) is not None and not _is_seed(parameter)
    return value if value is None or is_figure else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _file_name(name: str) -> str:
    return f"{_NOT_IN_A_NAME.sub('-', name)}.png"
