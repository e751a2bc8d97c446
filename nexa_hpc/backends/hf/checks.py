"""Checks of settings at planning: names against those known, values against what each one takes.

Called by the handlers' `validate`. Standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nexa_hpc.errors import nearest

Found = Iterator[tuple[str, str]]
"""(key, message) of each problem."""


@dataclass(frozen=True)
class Kind:
    """What a setting takes, in words and as a test."""

    words: str
    admits: Callable[[Any], bool]


def one_of(*choices: str) -> Kind:
    """Return the kind that takes one of `choices`."""
    return Kind(" or ".join(choices), lambda value: value in choices)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_columns(value: Any) -> bool:
    return _is_text(value) or (
        isinstance(value, (list, tuple)) and 1 <= len(value) <= 2 and all(map(_is_text, value))
    )


TEXT = Kind("text", _is_text)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
MAPPING = Kind("a mapping", lambda value: isinstance(value, Mapping))
COLUMNS = Kind("a column name, or a list of one or two", _is_columns)
COUNT = Kind("a whole number above 0", lambda value: type(value) is int and value > 0)
SHA256 = Kind(
    "64 hex digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
)

_SIMPLE: Mapping[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
}


def annotated(annotation: str) -> Kind:
    """Return the kind that a field annotated `annotation` takes; anything unless it is simple."""
    parts = [part.strip() for part in annotation.split("|")]
    if not all(part in _SIMPLE for part in parts):
        return Kind(annotation, lambda _: True)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return Kind(
        " or ".join(words.get(part, "null") for part in parts),
        lambda value: any(_SIMPLE[part](value) for part in parts),
    )


def check(
    values: Mapping[str, Any], known: Mapping[str, Kind], place: str, *, complete: bool = True
) -> Found:
    """Yield each unknown name and wrong value in `values`; `place` is where they are written.

    Unknown names pass unless `known` is `complete`.
    """
    for name, value in values.items():
        kind = known.get(name)
        if kind is None and not complete:
            continue
        if kind is None:
            yield f"{place}.{name}", f"unknown name '{name}'" + nearest(name, known)
        elif not kind.admits(value):
            yield f"{place}.{name}", f"expected {kind.words}, got {value!r}"
