"""Tables for pandas and in Parquet; the libraries are imported when they are asked for.

Called by `PipelineRun.results` and by `sweep show`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nexa_hpc.errors import UserError


def to_pandas(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a pandas DataFrame; raises UserError where pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise UserError(
            "to_pandas() needs pandas, which is not installed here", hint="pip install pandas"
        ) from error
    return pandas.DataFrame([[row[c] for c in columns] for row in rows], columns=list(columns))


def to_parquet(columns: Mapping[str, list[Any]]) -> bytes:
    """Return a Parquet file of columns that hold one type each (`table_formats.typed_columns`).

    Raises UserError where no library that writes it is installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet needs pyarrow, which is not installed here",
            hint="pip install pyarrow (it comes with nexa-hpc[hf]); --format csv needs nothing",
        ) from error
    # A column without any value would get a type of its own, which some readers do not know.
    arrays = {
        name: pyarrow.array(values, None if any(v is not None for v in values) else "string")
        for name, values in columns.items()
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
