"""YAML text to plain Python values, with the line of everything, and without a way to do harm.

Built from libyaml's events rather than by a YAML loader: about seven times cheaper, and duplicate
keys, depth, size and lines come with it. Refused, always as SpecError: custom tags, duplicate keys,
keys that are no text, NaN, alias bombs, absurd nesting. Called by `document`, which has looked at
the text as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from nexa_hpc.core import scalars
from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, SpecError

MAX_DEPTH = 100
MAX_NODES = 1_000_000
"""Nodes once aliases are expanded; 10,000 steps of thirty lines have a third of it."""

Lines = dict[int, "dict[str, int] | list[int]"]
"""The id of each mapping or list -> the line of each of its entries."""

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_CORE + kind: kind for kind in scalars.KINDS}
_NO_TAG = (None, "!")
_MERGE = "<<"
# Only for its events. PyYAML without libyaml, as some machines have it, reads the same, slowly.
_EventSource: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read_yaml(text: bytes, name: str) -> tuple[dict[str, Any], Lines]:
    """Return the top mapping of the YAML in `text`, which messages call `name`, and its lines.

    Raises SpecError. Aliased parts are shared, not copied.
    """
    try:
        with without_gc():
            return _Builder(text, name).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark is not None else None
        raise _refusal(name, line, f"not valid YAML: {message}") from error
    except yaml.YAMLError as error:
        raise _refusal(name, None, f"not valid YAML: {' '.join(str(error).split())}") from error


def _refusal(name: str, line: int | None, message: str) -> SpecError:
    return SpecError([Problem(message, file=name, line=line)])


@dataclass(frozen=True)
class _Anchored:
    """What an anchor stands for, and what each alias of it costs."""

    value: Any
    nodes: int
    depth: int


class _Builder:
    """Turns one stream of events into values."""

    def __init__(self, text: bytes, name: str) -> None:
        self._next = _EventSource(text).get_event
        self._name = name
        self._lines: Lines = {}
        self._anchors: dict[str, _Anchored] = {}
        self._nodes = 0
        self._deepest = 0

    def document(self) -> tuple[dict[str, Any], Lines]:
        """Return the only document of the stream, and its lines."""
        self._next()
        event = self._next()
        if type(event) is StreamEndEvent:
            raise self._refuse(event, "empty: nothing but comments")
        first = self._next()
        value = self._node(first, 0)
        if not isinstance(value, dict):
            raise self._refuse(first, "expected a mapping (`key: value` lines) at the top")
        self._check_cost(first, 0)
        self._next()
        event = self._next()
        if type(event) is not StreamEndEvent:
            raise self._refuse(event, "a second document (`---`); keep one in each file")
        return value, self._lines

    def _node(self, event: Any, depth: int) -> Any:
        if type(event) is ScalarEvent and event.anchor is None:
            return self._scalar(event)
        if type(event) is AliasEvent:
            return self._alias(event, depth)
        if event.anchor is None:
            return self._bare_node(event, depth)
        # Forgotten while it is being built, so that it cannot contain itself.
        self._anchors.pop(event.anchor, None)
        nodes, deepest = self._nodes, self._deepest
        self._deepest = depth
        value = self._bare_node(event, depth)
        self._anchors[event.anchor] = _Anchored(value, self._nodes - nodes, self._deepest - depth)
        self._deepest = max(deepest, self._deepest)
        return value

    def _bare_node(self, event: Any, depth: int) -> Any:
        if type(event) is ScalarEvent:
            return self._scalar(event)
        self._check_cost(event, depth)
        if type(event) is MappingStartEvent:
            self._check_tag(event, "map")
            return self._mapping(depth + 1)
        self._check_tag(event, "seq")
        return self._list(depth + 1)

    def _scalar(self, event: Any) -> Any:
        tag = event.tag
        try:
            if tag is None:
                return scalars.resolve(event.value) if event.implicit[0] else event.value
            if tag == "!":
                return event.value
            if tag in _SCALAR_TAGS:
                return scalars.convert(event.value, _SCALAR_TAGS[tag])
        except ValueError as error:
            raise self._refuse(event, f"{error}; quote it if it is text") from error
        raise self._refuse_tag(event)

    def _list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        lines: list[int] = []
        while type(event := self._next()) is not SequenceEndEvent:
            lines.append(event.start_mark.line + 1)
            values.append(self._node(event, depth))
        self._keep(values, lines)
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Any]] = []
        while type(event := self._next()) is not MappingEndEvent:
            line = event.start_mark.line + 1
            key = self._key(event, depth)
            if key in lines:
                raise self._refuse(
                    event, f"duplicate key '{shown(key)}', first in line {lines[key]}"
                )
            lines[key] = line
            if key == _MERGE and type(event) is ScalarEvent and event.implicit[0]:
                merged = self._merge_sources(depth)
            else:
                values[key] = self._node(self._next(), depth)
        self._merge(merged, values, lines)
        self._keep(values, lines)
        return values

    def _keep(self, values: dict[str, Any] | list[Any], lines: dict[str, int] | list[int]) -> None:
        self._nodes += len(values) + 1
        if lines:
            self._lines[id(values)] = lines

    def _key(self, event: Any, depth: int) -> str:
        key = self._node(event, depth)
        if isinstance(key, str):
            return key
        if type(event) is ScalarEvent:
            kind = scalars.kind_of(key)
            word = shown(event.value) or "null"
            raise self._refuse(event, f"the key {word} reads as {kind}; quote it")
        raise self._refuse(event, "a key must be text; quote it")

    def _merge_sources(self, depth: int) -> list[dict[str, Any]]:
        """Return the mappings that follow a `<<`; raises when it is something else."""
        event = self._next()
        merged = self._node(event, depth)
        sources = merged if isinstance(merged, list) else [merged]
        if not all(isinstance(source, dict) for source in sources):
            raise self._refuse(event, "`<<` merges a mapping or a list of mappings, nothing else")
        return sources

    def _merge(
        self, sources: list[dict[str, Any]], values: dict[str, Any], lines: dict[str, int]
    ) -> None:
        """Add what `values` lacks; of several sources, the first that has a key gives it."""
        for source in sources:
            source_lines: Any = self._lines.get(id(source))
            for key, value in source.items():
                if key not in values:
                    values[key] = value
                    lines[key] = source_lines[key]

    def _alias(self, event: Any, depth: int) -> Any:
        anchored = self._anchors.get(event.anchor)
        if anchored is None:
            message = (
                f"the alias *{shown(event.anchor)} has no anchor before it, or is inside of it"
            )
            raise self._refuse(event, message)
        self._nodes += anchored.nodes
        self._check_cost(event, depth + anchored.depth)
        return anchored.value

    def _check_cost(self, event: Any, depth: int) -> None:
        self._deepest = max(self._deepest, depth)
        if depth > MAX_DEPTH:
            raise self._refuse(event, f"nested more than {MAX_DEPTH} deep")
        if self._nodes > MAX_NODES:
            raise self._refuse(event, f"more than {MAX_NODES:,} values, once aliases are expanded")

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (*_NO_TAG, _CORE + kind):
            raise self._refuse_tag(event)

    def _refuse_tag(self, event: Any) -> SpecError:
        tag = shown(event.tag.replace(_CORE, "!!"))
        return self._refuse(event, f"the tag {tag} is not allowed; only plain values are")

    def _refuse(self, event: Any, message: str) -> SpecError:
        return _refusal(self._name, event.start_mark.line + 1, message)
