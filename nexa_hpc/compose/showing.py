"""What was composed, leaf by leaf, and where each value is from; for `config show` and `groups`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.compose.document import Composed
from nexa_hpc.compose.layers import SECTIONS, Layer, find_option, group_options
from nexa_hpc.compose.origins import Origin, find
from nexa_hpc.compose.overrides import parse_override
from nexa_hpc.compose.site import SiteConfig
from nexa_hpc.core.document import Document, read_document
from nexa_hpc.core.overriding import split_path

_WHOLE = re.compile(r"\$\{([\w-]+(?:\.[\w-]+)*)\}")
Place = tuple["str | int", ...]


class Leaf(NamedTuple):
    """One value of what was composed."""

    place: Place
    path: str
    """As an override would name it: `steps.train.params.lr`."""
    value: Any
    origin: str


class Option(NamedTuple):
    """One option of a group."""

    group: str
    name: str
    layer: str
    file: str
    is_chosen: bool


def site_leaves(config: SiteConfig, root: Path) -> Iterator[Leaf]:
    """Yield the values of scheduler, cluster, paths and retention that anybody has set."""
    for section, values in config.sections().items():
        for place, value in _leaves(values, (section,)) if values else ():
            path = ".".join(map(str, place))
            origin = config.origins.get(path, Origin("?"))
            yield Leaf(place, path, value, origin.shown(root))


def pipeline_leaves(composed: Composed, root: Path) -> Iterator[Leaf]:
    """Yield the values of the pipeline, as they are planned."""
    origins = _Origins(composed, root)
    for place, value in _leaves(composed.document.value, ()):
        path = _as_override(composed.document, place)
        yield Leaf(place, path, value, origins.of(place, path))


def options_of(
    layers: Sequence[Layer], config: SiteConfig, chosen: Mapping[str, str], root: Path
) -> list[Option]:
    """Return all options of all groups, each with the layer whose file holds."""
    holding = {**config.choices, **chosen}
    groups = sorted({group for layer in layers for group in layer.groups()})
    found = []
    for group in groups:
        for name, layer in sorted((group_options(layers, group) or {}).items()):
            file = layer.option(group, name)
            place = Origin(layer.name, str(file)).place(root)
            found.append(Option(group, name, layer.name, place, holding.get(group) == name))
    return found


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*place, key))
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*place, number))
    else:
        yield place, value


def _as_override(document: Document, place: Place) -> str:
    parts = [str(part) for part in place]
    if place[:2] == ("pipeline", "steps") and len(place) > 2 and isinstance(place[2], int):
        step = document.value["pipeline"]["steps"][place[2]]
        parts = ["steps", str(step.get("id", place[2])), *parts[3:]]
    return ".".join(parts)


class _Origins:
    """Finds where the values of one composed pipeline are from."""

    def __init__(self, composed: Composed, root: Path) -> None:
        self._composed = composed
        self._root = root
        self._raw = composed.source.raw
        self._overrides = dict(_overridden(composed))
        self._options: dict[str, tuple[Layer, Document] | None] = {}

    def of(self, place: Place, path: str) -> str:
        text = self._override(path)
        return text if text is not None else self._in_file(self._raw_place(place))

    def _override(self, path: str) -> str | None:
        for key, text in self._overrides.items():
            if path == key or path.startswith(f"{key}."):
                return f"override {text}"
        return None

    def _raw_place(self, place: Place) -> Place:
        """Return the place in the file of what is composed at `place`: steps may have gone."""
        if place[:2] != ("pipeline", "steps") or len(place) < 3:
            return place
        step = self._composed.document.value["pipeline"]["steps"][place[2]]
        ids = self._composed.source.step_ids()
        wanted = step.get("id") if isinstance(step, dict) else None
        return (*place[:2], ids.index(wanted), *place[3:]) if wanted in ids else place

    def _in_file(self, place: Place) -> str:
        value: Any = self._raw.value
        for number, part in enumerate(place):
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                break
            match = _WHOLE.fullmatch(value) if isinstance(value, str) else None
            if match is not None and self._composed.source.is_primary:
                rest = place[number + 1 :]
                there = self._line(place[: number + 1])
                return f"{self._referred((*match[1].split('.'), *rest))}, by {value} at {there}"
        return f"pipeline {self._line(place)}"

    def _line(self, place: Place) -> str:
        return Origin("pipeline", self._raw.name, self._raw.line_of(place)).place(self._root)

    def _referred(self, place: Place) -> str:
        """Return where the value at `place` of the whole configuration is from."""
        path = ".".join(map(str, place))
        overridden = self._override(path)
        if overridden is not None:
            return overridden
        if place[0] in SECTIONS:
            return self._composed.config.origins.get(path, Origin("?")).shown(self._root)
        option = self._option(str(place[0]))
        if option is None or find(self._raw.value, path)[0]:
            return self._in_file(place)
        layer, document = option
        line = document.line_of(tuple(place[1:]))
        return Origin(layer.name, document.name, line).shown(self._root)

    def _option(self, group: str) -> tuple[Layer, Document] | None:
        if group not in self._options:
            name = self._composed.choices.get(group)
            layers = self._composed.source.all_layers
            found = find_option(layers, group, name) if name is not None else None
            self._options[group] = (
                (found[0], read_document(found[1])) if found is not None else None
            )
        return self._options[group]


def _overridden(composed: Composed) -> Iterator[tuple[str, str]]:
    """Yield path, as `_as_override` has it, and text of each override, the last first."""
    for text in reversed(composed.overrides):
        one = parse_override(text, lambda group: composed.source.options(group))
        if one.is_group:
            continue
        parts = split_path(one.change.path)
        yield ".".join(parts[1:] if parts[:2] == ("pipeline", "steps") else parts), text
