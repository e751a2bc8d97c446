"""Documents: YAML files as plain Python, with the line of everything.

What a large one came to is remembered, and its text only looked at for lines. Refused, always as
SpecError: what `yaml_reading` refuses, large files, binary. Called by `spec` and `settings`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nexa_hpc.core.remembered import recall, remember
from nexa_hpc.errors import Problem, SpecError, nearest

MAX_BYTES = 8 * 2**20

Lines = Mapping[int, "dict[str, int] | list[int]"]


@dataclass(frozen=True)
class Document:
    """A YAML document: its top mapping, and where each part of it stands.

    Aliased parts are shared, not copied: treat `value` as read-only.
    """

    value: dict[str, Any]
    lines: Lines
    """The id of each mapping or list in `value` -> the line of each of its entries."""
    name: str
    """The file, as messages name it."""
    text: str = ""
    """What it was read from; empty for a pipeline made in Python."""

    def line_of(self, location: tuple[str | int, ...]) -> int | None:
        """Return the line of `location`, or of the nearest enclosing part that there is."""
        value: Any = self.value
        line = None
        for part in location:
            entries: Any = self.lines.get(id(value), {})
            try:
                line, value = entries[part], value[part]
            except (KeyError, IndexError, TypeError):
                break
        return line


def read_document(path: Path) -> Document:
    """Return the document in the file `path`; raises SpecError, also when it cannot be read."""
    return parse_document(read_text(path), str(path))


def read_text(path: Path) -> bytes:
    """Return the bytes of the file `path`; raises SpecError when it is no file or far too large."""
    name = str(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise _refusal(name, None, _TOO_LARGE)
            # A pipe or a device has no size of its own, hence the bound here, too.
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise _refusal(name, None, "no such file" + nearest(path.name, siblings)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refusal(name, None, f"cannot be read: {reason}") from error


def parse_document(text: bytes, name: str) -> Document:
    """Return the document in `text`, which messages call `name`; raises SpecError."""
    decoded = _checked_text(text, name)
    known = recall(text)
    if known is not None:
        return Document(known, _LinesWhenAsked(known, text, name), name, decoded)
    # Imported here: YAML itself costs more than what is remembered of a document.
    from nexa_hpc.core.yaml_reading import read_yaml

    value, lines = read_yaml(text, name)
    remember(text, value)
    return Document(value, lines, name, decoded)


class _LinesWhenAsked(Mapping[int, "dict[str, int] | list[int]"]):
    """The lines of a remembered value, for which its text is read: hardly anybody asks."""

    def __init__(self, value: dict[str, Any], text: bytes, name: str) -> None:
        self._value, self._text, self._name = value, text, name

    @cached_property
    def _known(self) -> Lines:
        from nexa_hpc.core.yaml_reading import read_yaml

        again, lines = read_yaml(self._text, self._name)
        return dict(_carried_over(lines, again, self._value))

    def __getitem__(self, key: int) -> dict[str, int] | list[int]:
        return self._known[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _carried_over(lines: Lines, old: Any, new: Any) -> Iterator[tuple[int, Any]]:
    """Yield the lines of all parts of `old` for those of `new`, which equals it."""
    if id(old) in lines:
        yield id(new), lines[id(old)]
    if isinstance(old, dict):
        for key, inner in old.items():
            yield from _carried_over(lines, inner, new[key])
    elif isinstance(old, list):
        for inner, other in zip(old, new, strict=True):
            yield from _carried_over(lines, inner, other)


_TOO_LARGE = f"larger than {MAX_BYTES >> 20} MB; this is no pipeline document"


def _checked_text(text: bytes, name: str) -> str:
    if len(text) > MAX_BYTES:
        raise _refusal(name, None, _TOO_LARGE)
    zero = text.find(b"\0")
    if zero >= 0:
        raise _refusal(name, text.count(b"\n", 0, zero) + 1, "a binary file: it holds a NUL byte")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _refusal(name, line, f"not UTF-8 text: {error.reason}") from error


def _refusal(name: str, line: int | None, message: str) -> SpecError:
    return SpecError([Problem(message, file=name, line=line)])
