"""What a user says about a version: one JSON object of modest size, read without trusting it.

Called by `registry`, by the register step and by `models register`. Standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from nexa_hpc.core import atomic
from nexa_hpc.core.reading import read_bytes
from nexa_hpc.errors import RegistryError

LIMIT_BYTES = 1 << 20
METRICS = "metrics.json"


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; of a folder, the one in its `metrics.json`.

    Raises RegistryError for what is missing, no regular file, above 1 MiB, or no plain JSON object
    (duplicate keys, NaN and bottomless nesting are refused, too).
    """
    file = path / METRICS if path.is_dir() else path
    if not file.is_file():
        raise RegistryError(f"meta {file}: no such file", hint="name a JSON file with one object")
    if file.stat().st_size > LIMIT_BYTES:
        raise RegistryError(f"meta {file}: larger than 1 MiB", hint="keep figures, not data, in it")
    try:
        value = json.loads(
            read_bytes(file), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
        return checked_meta(value)
    except OSError as error:
        raise RegistryError(f"meta {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"meta {file}: not valid JSON ({error})") from error
    except RegistryError as error:
        raise RegistryError(f"meta {file}: {error}") from error


def checked_meta(value: object) -> dict[str, Any]:
    """Return `value` as it will read back from the registry's file, or raise RegistryError."""
    if not isinstance(value, Mapping):
        raise RegistryError(f"must be a JSON object, not {type(value).__name__}")
    try:
        content: dict[str, Any] = json.loads(atomic.encode_json(dict(value)))
    except (ValueError, TypeError, RecursionError) as error:
        raise RegistryError(f"cannot be written as JSON ({error})") from error
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key '{key}' stands there twice")
        value[key] = item
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
