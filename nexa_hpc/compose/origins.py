"""Where a value is from: a line of a layer's file, or an override; and mappings laid over others.

Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Place = tuple[str, ...]


class Origin(NamedTuple):
    """Where one value is from."""

    layer: str
    """package, site, user, project, --config-dir, pipeline, override."""
    file: str | None = None
    """Or the text of the override."""
    line: int | None = None

    def shown(self, root: Path) -> str:
        """Return layer and place, as people read them."""
        return f"{self.layer} {self.place(root)}" if self.file is not None else self.layer

    def place(self, root: Path) -> str:
        """Return file and line, what is below `root` named from there; or the override's text."""
        if self.file is None:
            return self.layer
        path = Path(self.file)
        inside = self.layer != "override" and path.is_relative_to(root)
        text = path.relative_to(root).as_posix() if inside else self.file
        return f"{text}:{self.line}" if self.line is not None else text


Origins = dict[str, Origin]
"""A value's path, dotted -> where it is from."""


def lay_over(
    below: dict[str, Any],
    above: Mapping[str, Any],
    origin: Callable[[Place], Origin],
    origins: Origins,
    place: Place = (),
) -> None:
    """Put the entries of `above` into `below`, mapping by mapping, and note where they are from.

    `origin` is asked for the origin of a place in `above`.
    """
    for key, value in above.items():
        here = (*place, key)
        if isinstance(value, Mapping) and value:
            inner = below.get(key)
            below[key] = dict(inner) if isinstance(inner, Mapping) else {}
            origins.pop(".".join(here), None)
            lay_over(below[key], value, origin, origins, here)
        elif not isinstance(value, Mapping) or key not in below:
            forget(origins, here)
            below[key] = value
            origins[".".join(here)] = origin(here)


def forget(origins: Origins, place: Place) -> None:
    """Forget where what is at `place`, or below it, was from."""
    name = ".".join(place)
    for key in [key for key in origins if key == name or key.startswith(f"{name}.")]:
        del origins[key]


def leaves(value: Any, place: Place = ()) -> dict[str, Any]:
    """Return dotted path -> value, for all values in the mapping `value`."""
    if not isinstance(value, Mapping) or not value:
        return {".".join(place): value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, (*place, str(key)))
    return found


def find(value: Any, path: str) -> tuple[bool, Any]:
    """Return whether there is something at the dotted `path` in `value`, and what."""
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def nearest_origin(origins: Mapping[str, Origin], path: str) -> Origin | None:
    """Return the origin of `path`, of what it is in, or of the first value in it."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        found = origins.get(".".join(parts[:length]))
        if found is not None:
            return found
    return next((o for key, o in origins.items() if key.startswith(f"{path}.")), None)
