"""The columns of a dataset's files, told from their first rows: planning reads no more of them.

Called by planning. Standard library alone: of Parquet files and of folders that `datasets` saved
nothing is told.
"""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

_ROWS = 100
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def columns(dataset: Path) -> list[str] | None:
    """Return the columns of a file, or of all splits in a folder; None where they are not told so.

    Splits may differ: those to be predicted have no labels.
    """
    if dataset.is_dir():
        files = sorted(file for file in dataset.iterdir() if file.suffix in (".jsonl", ".csv"))
        readable = [file for file in files if file.name.startswith(("test", "valid", "train"))]
        found = [columns(file) for file in readable]
        return [*dict.fromkeys(itertools.chain(*filter(None, found)))] if all(found) else None
    try:
        with dataset.open(encoding="utf-8-sig", newline="") as file:
            if dataset.suffix in _DELIMITERS:
                return next(csv.reader(file, delimiter=_DELIMITERS[dataset.suffix]), None)
            if dataset.suffix == ".jsonl":
                rows = [json.loads(line) for line in itertools.islice(file, _ROWS)]
                return list(dict.fromkeys(name for row in rows for name in row)) or None
    except (OSError, ValueError, TypeError, csv.Error):
        return None  # What is wrong with it, the library tells when the step runs.
    return None
