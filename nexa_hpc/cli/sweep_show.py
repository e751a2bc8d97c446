"""`nexa-hpc sweep show`: the table of a run's points, the best one, the failed ones, pictures.

Light: matplotlib, pyarrow and pandas are loaded for a picture and for Parquet alone.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.completion import RUN_ARGUMENT
from nexa_hpc.cli.observing import observer_of
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.sweep_choice import Asked, Choice, choose
from nexa_hpc.cli.sweep_words import print_best, print_left_out, print_troubles, said_of_points
from nexa_hpc.cli.tables import plain_table, print_table
from nexa_hpc.core import atomic
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.runs import Run
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.sweep_figures import best
from nexa_hpc.core.sweep_table import SweepResults, Table, read_results
from nexa_hpc.core.table_formats import cell_text, to_csv, to_json, to_markdown, typed_columns
from nexa_hpc.errors import UserError

FORMATS = ("table", "csv", "json", "parquet", "md")


@click.command()
@RUN_ARGUMENT
@click.option("--metric", metavar="STEP.METRIC", help="What the best point is judged by.")
@click.option("--mode", type=click.Choice(["max", "min"]), help="Whether more or less is better.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column; default: the sweep's order.")
@click.option("--descending", is_flag=True, help="Sort from high to low.")
@click.option(
    "--over",
    multiple=True,
    metavar="PARAM",
    help="One row for all values of PARAM: mean, deviation, n. May be repeated.",
)
@click.option(
    "--metrics", multiple=True, metavar="PATTERN", help="Only these metrics, as `evaluate.*`."
)
@click.option("--all", "all_columns", is_flag=True, help="Show every column.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Default: by the ending of --output, else a table.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write it there.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw into DIR; default: multirun/PIPELINE/RUN.",
)
@click.option("--no-pictures", is_flag=True, help="Draw nothing.")
@click.pass_obj
def show(
    session: Session,
    /,
    run: str | None,
    format_: str | None,
    output: Path | None,
    pictures: Path | None,
    no_pictures: bool,
    **options: Any,
) -> None:
    """Show a run's points, what they override, and the metrics that any step wrote.

    \b
    Example:
      nexa-hpc sweep show
      nexa-hpc sweep show lr_sweep-3 --sort evaluate.accuracy --descending
      nexa-hpc sweep show --over seed --metric evaluate.loss --mode min
      nexa-hpc sweep show --output points.csv

    Columns are called as in the exports. CSV, JSON and Parquet have all columns, `table` and `md`
    the swept parameters, the status and the metrics that differ, unless --all is given.
    """
    if pictures is not None and no_pictures:
        raise UserError("--pictures and --no-pictures exclude each other")
    asked = Asked(**options)
    chosen_format = format_ or _format_of(output)
    for_people = output is None and chosen_format == "table"
    found = session.find_run(run)
    results = read_results(found, fold_all(found, observer_of(found)))
    width = shutil.get_terminal_size().columns if for_people and sys.stdout.isatty() else None
    choice = choose(results.table, asked, width)
    for problem in results.unread:
        print(f"warning: {printable(problem)}", file=sys.stderr)
    if for_people:
        print(f"run {found.id}: {said_of_points(results.table)}")
        print_table(choice.shown, _cells(choice.table, choice.shown))
        print_left_out(choice.table, choice.shown)
    else:
        _export(choice, chosen_format, output)
    if for_people or output is not None:
        _print_rest(found, results, choice, asked.mode)
    if pictures is not None or (for_people and not no_pictures):
        _draw(found, results, choice, asked.mode, pictures)


def _print_rest(run: Run, results: SweepResults, choice: Choice, mode: str | None) -> None:
    if choice.column is None:
        print("\nno step has written metrics.json with a number yet")
    else:
        print_best(best(choice.table, choice.column, mode), results, choice.column)
    print_troubles(run, results)


def _cells(table: Table, columns: Sequence[str]) -> list[list[str]]:
    return [[cell_text(row[column]) for column in columns] for row in table.rows]


def _format_of(output: Path | None) -> str:
    ending = output.suffix.lstrip(".").lower() if output is not None else ""
    return ending if ending in FORMATS else "table"


def _export(choice: Choice, format_: str, output: Path | None) -> None:
    content = _content(choice, format_)
    if output is not None:
        atomic.write_file(output.absolute(), content)
        print(f"wrote {output}: {len(choice.table.rows)} rows")
    elif isinstance(content, str):
        sys.stdout.write(content)
    elif sys.stdout.isatty():
        raise UserError("Parquet is nothing for a terminal", hint="--output FILE.parquet")
    else:
        sys.stdout.buffer.write(content)


def _content(choice: Choice, format_: str) -> str | bytes:
    table, shown = choice.table, choice.shown
    if format_ == "csv":
        return to_csv(table.columns, table.rows)
    if format_ == "json":
        return to_json(table.columns, table.rows)
    if format_ == "md":
        return to_markdown(shown, table.rows)
    if format_ == "table":
        cells = [[printable(cell) for cell in row] for row in _cells(table, shown)]
        return plain_table(shown, cells) + "\n"
    # Imported here: the library behind it is large.
    from nexa_hpc.backends.frames import to_parquet

    return to_parquet(typed_columns(table.columns, table.rows))


def _draw(
    run: Run, results: SweepResults, choice: Choice, mode: str | None, folder: Path | None
) -> None:
    # Imported here: most calls draw nothing, and what draws is large.
    from nexa_hpc.cli.sweep_pictures import draw_all

    draw_all(run, results.table, choice.metric, choice.over, mode, folder)
