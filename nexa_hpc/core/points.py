"""Points of a sweep: what each overrides, its stable name, and the label that people read.

    steps.train.params.learning_rate=3e-5, steps.train.params.seed=1
        name   9c1f04aa                        the same in every run, however the sweep grows
        label  learning_rate=3e-05,seed=1      of the words that the sweep itself varies

Recorded with the run; a plain run has none. Called by planning, `status`, `sweep show` and whoever
names an instance. Standard library alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.instances import Instance
from nexa_hpc.errors import UnknownNameError, nearest

Overrides = Mapping[str, Any]

_NAME_DIGITS = 8
_LABEL_LENGTH = 80
_NOT_IN_A_LABEL = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Point:
    """One set of overrides of a sweep."""

    name: str
    label: str
    overrides: Overrides
    """Override path, as `steps.train.params.seed`, -> value."""

    def to_json(self) -> dict[str, Any]:
        """Return the point as `run.json` holds it; `from_json` is its inverse."""
        return {"name": self.name, "label": self.label, "overrides": dict(self.overrides)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        """Return the point that `to_json` wrote."""
        return cls(value["name"], value["label"], value["overrides"])


def point_name(overrides: Overrides) -> str:
    """Return the name of the point with these overrides, in whatever order they come."""
    text = canonical_json(dict(overrides))
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def make_points(overrides: Iterable[Overrides]) -> tuple[Point, ...]:
    """Return a point for each of `overrides`, without those that say the same once more."""
    found = {point_name(one): one for one in overrides}
    varied = varied_keys(list(found.values()))
    words = short_names(varied)
    labels = [label(one, words) for one in found.values()]
    times = Counter(labels)
    return tuple(
        Point(name, text if text and times[text] == 1 else f"{text}~{name}".lstrip("~"), one)
        for (name, one), text in zip(found.items(), labels, strict=True)
    )


def varied_keys(points: Sequence[Overrides]) -> list[str]:
    """Return the override paths that do not have one value in all `points`, in their order."""
    keys = dict.fromkeys(key for point in points for key in point)
    return [
        key
        for key in keys
        if len({canonical_json(p[key]) if key in p else None for p in points}) > 1
    ]


def short_names(keys: Collection[str]) -> dict[str, str]:
    """Return for each override path the shortest end of it that no other one has.

    `params` is left out: `steps.train.params.seed` is `seed`, or `train.seed` where it must be.
    """
    parts = {key: [p for p in key.lstrip("+~").split(".") if p not in _SILENT] for key in keys}
    found: dict[str, str] = {}
    for key, words in parts.items():
        others = [other for name, other in parts.items() if name != key]
        for count in range(1, len(words) + 1):
            if not any(other[-count:] == words[-count:] for other in others):
                found[key] = ".".join(words[-count:])
                break
        else:
            found[key] = key
    return found


_SILENT = frozenset({"pipeline", "steps", "params"})


def label(overrides: Overrides, words: Mapping[str, str]) -> str:
    """Return `overrides` of the paths in `words` as a text that can be the name of a folder."""
    said = (f"{word}={_value(overrides[key])}" for key, word in words.items() if key in overrides)
    text = ",".join(said)
    if len(text) <= _LABEL_LENGTH:
        return text
    return f"{text[: _LABEL_LENGTH - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return _NOT_IN_A_LABEL.sub("-", text).strip("-") or "-"


def find_point(points: Sequence[Point], word: str) -> Point:
    """Return the point that a user's word names: its name, its label, or part of one label.

    Raises UnknownNameError, naming the nearest.
    """
    for point in points:
        if word in (point.name, point.label):
            return point
    inside = [p for p in points if word in p.label or p.name.startswith(word)]
    if len(inside) == 1:
        return inside[0]
    if not points:
        raise UnknownNameError(f"no point '{word}': the run is no sweep")
    if inside:
        some = ", ".join(p.label for p in inside[:5])
        raise UnknownNameError(f"'{word}' names {len(inside)} points: {some}")
    raise UnknownNameError(f"no point '{word}'" + nearest(word, [p.label for p in points]))


def find_instances(
    instances: Mapping[str, Instance], points: Sequence[Point], word: str
) -> dict[str, Instance]:
    """Return the instances that a user's word names: a step's id (all of them), the name of one,
    or `step@point`, with the point as `find_point` takes it.

    Raises UnknownNameError, naming the nearest.
    """
    if word in instances and instances[word].step_id != word:
        return {word: instances[word]}
    of_step = {name: i for name, i in instances.items() if i.step_id == word}
    if of_step:
        return of_step
    step, _, at = word.partition("@")
    steps = list(dict.fromkeys(i.step_id for i in instances.values()))
    if step not in steps:
        raise UnknownNameError(f"no step '{step}'" + nearest(step, steps))
    if not points or not at:
        raise UnknownNameError(f"no step '{word}'" + nearest(word, instances))
    point = find_point(points, at)
    return {
        name: i for name, i in instances.items() if i.step_id == step and point.name in i.points
    }
