"""What `sweep show` says below its table: the best point, the failed ones, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nexa_hpc.cli.tables import print_table
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import State
from nexa_hpc.core.sweep_figures import COUNT, DEVIATION, MAX, MEAN, Best
from nexa_hpc.core.sweep_table import LABEL, STATUS, TROUBLE, WHOLE, SweepResults, Table, is_whole
from nexa_hpc.core.table_formats import cell_text

_COMMANDS_SHOWN = 3


def said_of_points(table: Table) -> str:
    """Return how many points there are, and how they stand."""
    if not table.parameters and len(table.rows) == 1:
        return f"one point, {table.rows[0][STATUS]}"
    whole, failed, open_ = _counts(table)
    return ", ".join([f"{len(table.rows)} points: {whole} whole", *_others(failed, open_)])


def _counts(table: Table) -> tuple[int, int, int]:
    """Return how many points are whole, have failed, and may still become whole."""
    whole = sum(map(is_whole, table.rows))
    failed = sum(State(row[STATUS]) in TROUBLE for row in table.rows)
    return whole, failed, len(table.rows) - whole - failed


def _others(failed: int, open_: int) -> list[str]:
    said = [f"{failed} failed"] if failed else []
    return [*said, f"{open_} not finished"] if open_ else said


def print_left_out(table: Table, shown: Sequence[str]) -> None:
    """Say how many metrics have no column among those `shown`."""
    left_out = [metric for metric in table.metrics if metric not in shown]
    if left_out:
        print(f"({len(left_out)} more columns: --all; --metrics 'PATTERN' chooses)")


def print_best(found: Best, results: SweepResults, column: str) -> None:
    """Print the best row by `column`, of how many it is the best, and how that was judged; then
    the metrics that belong to no point.
    """
    _print_best(found, results.table, column)
    if results.of_the_whole:
        said = ", ".join(f"{name} {cell_text(v)}" for name, v in results.of_the_whole.items())
        print(f"of the whole sweep: {printable(said)}")


def _print_best(found: Best, points: Table, column: str) -> None:
    _, *others = _counts(points)
    if found.row is None:
        aside = "".join(f"; {text}" for text in _others(*others))
        print(f"\nbest: no whole point has {column} yet{aside}")
        return
    metric = column.removesuffix(f".{MEAN}") if WHOLE in found.row else column
    figure = cell_text(found.row[column])
    if WHOLE in found.row:
        deviation = cell_text(found.row[f"{metric}.{DEVIATION}"])
        figure += f" ± {deviation}" if deviation else ""
        figure += f", n {found.row[f'{metric}.{COUNT}']}"
    kind = "groups of whole points" if WHOLE in found.row else "whole points"
    kind = kind.replace("points", "point").replace("groups", "group") if found.of == 1 else kind
    aside = "; ".join([f"of {found.of} {kind}", *_others(*others)])
    print(f"\nbest: {printable(found.row[LABEL])}  {column} {figure} ({aside})")
    if found.guessed:
        which, other = ("higher", "min") if found.mode == MAX else ("lower", "max")
        print(f"      {which} is better, judging by the name; --metric and --mode {other} choose")


def print_troubles(run: Run, results: SweepResults) -> None:
    """Print the failed points with their reasons, and the commands that go on from there."""
    if not results.troubles:
        return
    print("\nfailed:")
    print_table(
        ["POINT", "STEP", "STATE", "REASON", "MESSAGE"],
        [
            [
                trouble.label or "(the whole sweep)",
                run.instances[trouble.step].step_id,
                trouble.standing.state.value,
                trouble.standing.reason or "",
                (trouble.standing.message.splitlines() or [""])[0],
            ]
            for trouble in results.troubles
        ],
    )
    failed = dict.fromkeys(t.step for t in results.troubles if t.standing.state is State.FAILED)
    print()
    for step in list(failed)[:_COMMANDS_SHOWN]:
        print(f"log:        nexa-hpc logs {shlex.quote(step)} {run.id}")
    if len(failed) > _COMMANDS_SHOWN:
        more = len(failed) - _COMMANDS_SHOWN
        print(f"            and {more} more: logs STEP {run.id} --point POINT")
    print(f"try again:  nexa-hpc resume {run.id}")
