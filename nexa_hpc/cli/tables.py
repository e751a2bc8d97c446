"""Tables: rich on a terminal, aligned plain text when piped, so that `grep` and `awk` work.

rich is imported on a terminal only: it costs more than all the rest of `status`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nexa_hpc.core.quoting import printable

if TYPE_CHECKING:
    from nexa_hpc.core.handlers import Progress

STYLES = {
    "COMPLETED": "green",
    "SKIPPED": "cyan",
    "SKIP": "cyan",
    "RUN": "yellow",
    "RUNNING": "bold yellow",
    "SUBMITTED": "yellow",
    "FAILED": "bold red",
    "BLOCKED": "red",
    "CANCELLED": "magenta",
    "PENDING": "dim",
}


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `header` to standard output."""
    harmless = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(header, harmless)
    else:
        print(plain_table(header, harmless))


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as aligned text; the last column is as long as it is."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, overflow="fold" if index == len(header) - 1 else "ellipsis")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    width = shutil.get_terminal_size().columns
    Console(width=width).print(table)


def duration(seconds: float) -> str:
    """Return `seconds` as people say it: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(size_bytes: float) -> str:
    """Return a size in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def local_time(timestamp: str) -> str:
    """Return a recorded time in the reader's zone, to the second."""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def progress_text(progress: Progress) -> str:
    """Return how far a step is, and its latest figures, in one line."""
    done = f"{progress.done:g}"
    if progress.total:
        percent = 100 * progress.done / progress.total
        done = f"{done}/{progress.total:g} {progress.unit} ({percent:.0f} %)"
    else:
        done = f"{done} {progress.unit}"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
    return f"{done}, {figures}" if figures else done
