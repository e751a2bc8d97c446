"""Tables of named columns as text for other programs: CSV, JSON, a table for GitHub.

Numbers are written so that reading them gives the same again. Called by `sweep show`. Standard
library alone; what needs a library is `backends.frames`'s.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nexa_hpc.core.quoting import printable

Rows = Iterable[Mapping[str, Any]]
_INT64 = 2**63


def to_csv(columns: Sequence[str], rows: Rows) -> str:
    """Return CSV with a header; what is missing is empty, true and false and lists are JSON."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([_harmless(column) for column in columns])
    writer.writerows([_csv_cell(row[column]) for column in columns] for row in rows)
    return "".join(lines)


class _Lines(list[str]):
    """Takes rows from a csv writer; they end as lines do, though it is told otherwise.

    Until Python 3.13 the writer quotes a lone carriage return only where lines end in one.
    """

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else _text(value)


def to_json(columns: Sequence[str], rows: Rows) -> str:
    """Return a JSON list, an object to a line; NaN and infinities, which JSON lacks, are null."""
    lines = [json.dumps({column: _plain(row[column]) for column in columns}) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(columns: Sequence[str], rows: Rows) -> str:
    """Return a table as GitHub shows it, figures to four digits, aligned to the right."""
    listed = [[row[column] for column in columns] for row in rows]
    figures = [
        all(isinstance(row[i], int | float | None) for row in listed) for i in range(len(columns))
    ]
    rule = ["---:" if is_figure else "---" for is_figure in figures]
    lines = [[_md_cell(column) for column in columns], rule]
    lines += [[_md_cell(cell_text(value)) for value in row] for row in listed]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _md_cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")


def cell_text(value: Any) -> str:
    """Return `value` as a person reads it: figures to four digits, nothing for what is missing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def typed_columns(columns: Sequence[str], rows: Rows) -> dict[str, list[Any]]:
    """Return column -> its values, of one type each: truth values, integers, floats or texts."""
    listed = list(rows)
    return {_harmless(column): _typed([row[column] for row in listed]) for column in columns}


def _typed(values: list[Any]) -> list[Any]:
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return values
    if all(_fits(value) for value in there):
        if all(isinstance(value, int) for value in there):
            return values
        # Beyond 2^53 not every integer is a float.
        if all(float(value) == value or math.isnan(value) for value in there):
            return [None if value is None else float(value) for value in values]
    return [None if value is None else _text(value) for value in values]


def _fits(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or -_INT64 <= value < _INT64


def _text(value: Any) -> str:
    return _harmless(value) if isinstance(value, str) else json.dumps(value)


def _harmless(text: str) -> str:
    """Return `text` as UTF-8 can hold it: a lone half of a surrogate pair becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
