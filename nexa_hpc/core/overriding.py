"""Overrides on a plain document: set, add or delete a value, with steps named by their ids.

    steps.train.params.lr = 3e-5        pipeline.labels.project = x        ~steps.train.after

Nothing is changed in place: containers on the way are copied, the rest is shared, and the lines of
what was copied stay known. A path that is not there is refused, with the nearest name; fields that
a step may have, and names that are the user's own (params, labels, …), may be set without being
there, and `+` sets anything. Called by `compose` and `Pipeline.sweep`. Standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from nexa_hpc.core.document import Document
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import UserError, nearest

Path = tuple["str | int", ...]
Kind = Literal["set", "add", "force", "delete"]

_SIGNS: dict[str, Kind] = {"": "set", "+": "add", "++": "force", "~": "delete"}
_KEY = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<path>.*)", re.DOTALL)
_NOTHING: Any = object()

STEP_FIELDS = (
    "id", "uses", "backend", "scheduler", "in", "out", "params", "after", "cache_hint", "resources",
    "env", "labels", "key_resources", "retry", "light", "snapshot", "scope",
)  # fmt: skip
SECTION_FIELDS = {
    "resources": (
        "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "gpus_per_task", "mem_gb",
        "mem_per_cpu_gb", "mem_per_gpu_gb", "timeout_min", "signal_delay_s", "array_parallelism",
        "partition", "account", "qos", "constraint", "reservation", "gres", "nodelist", "exclude",
        "exclusive", "slurm",
    ),
    "env": (
        "name", "venv", "conda", "python", "modules", "container", "setup", "variables", "secrets",
    ),
    "retry": ("out_of_memory", "timeout", "node_fail", "exception", "total_time_min"),
}  # fmt: skip
_FREE = frozenset({"params", "labels", "in", "out", "retry"})
"""Fields below which a name may be new: the user's own, or checked with the whole document."""
_FREE_BELOW = frozenset({("env", "variables"), ("resources", "slurm")})


@dataclass(frozen=True)
class Change:
    """One override: what is done at which path."""

    path: str
    """As written, without its sign: `steps.train.params.lr`."""
    value: Any = _NOTHING
    kind: Kind = "set"
    text: str = ""
    """The whole of it as given, for messages."""

    @classmethod
    def of(cls, key: str, value: Any = _NOTHING, text: str = "") -> Change:
        """Return the change that `key`, with its sign, and `value` ask for."""
        match = _KEY.fullmatch(key)
        assert match is not None
        return cls(match["path"], value, _SIGNS[match["sign"]], text or _text(key, value))

    @property
    def has_value(self) -> bool:
        """Whether a value was given; `~key` needs none."""
        return self.value is not _NOTHING

    def refused(self, why: str, hint: str | None = None) -> UserError:
        """Return the error that says why this cannot be done."""
        return UserError(f"override '{shown(self.text)}': {why}", hint=hint)


def override(document: Document, values: Mapping[str, Any]) -> Document:
    """Return `document` with `values`: override path, with its sign if any, -> value.

    Raises UserError for a path that does not exist, naming the nearest.
    """
    return apply(document, [Change.of(key, value) for key, value in values.items()])


def apply(
    document: Document,
    changes: Iterable[Change],
    expand: Callable[[Any, str], Any] | None = None,
) -> Document:
    """Return `document` after `changes`, in order; `expand(top, text)` gives the mapping that a
    text such as `${train}` stands for, where a path goes on below one.
    """
    editor = _Editor(document, expand)
    for change in changes:
        editor.apply(change)
    return editor.document()


class _Overlay(Mapping[int, Any]):
    """The lines of a document, and of those of its containers that were copied."""

    def __init__(self, base: Document) -> None:
        # The ids in its lines stay its own only as long as it lives.
        self._base = base
        self.added: dict[int, Any] = {}
        self.kept: list[Any] = []

    def __getitem__(self, key: int) -> Any:
        found = self.added.get(key)
        return self._base.lines[key] if found is None else found

    def __iter__(self) -> Iterator[int]:
        return iter({**self._base.lines, **self.added})

    def __len__(self) -> int:
        return len({**self._base.lines, **self.added})


class _Editor:
    """Applies changes to copies of what they touch."""

    def __init__(self, document: Document, expand: Callable[[Any, str], Any] | None) -> None:
        self._base = document
        self._expand = expand
        self._lines = _Overlay(document)
        self._own: set[int] = set()
        self._top: Any = self._copy(document.value)

    def document(self) -> Document:
        """Return what has become of the document."""
        return replace(self._base, value=self._top, lines=self._lines)

    def apply(self, change: Change) -> None:
        path = self._path(change)
        if change.kind in ("set", "add", "force") and not change.has_value:
            raise change.refused("a value is missing; write KEY=VALUE")
        if path[-1] == "id" and len(path) == 4 and path[1] == "steps":
            raise change.refused("a step's id cannot be overridden")
        parent = self._parent(path, change)
        if change.kind == "delete":
            self._delete(parent, path, change)
        else:
            self._set(parent, path, change)

    def _path(self, change: Change) -> Path:
        """Return the path from the document's top, a step's id in it as its place in the list."""
        parts = split_path(change.path)
        if not all(parts):
            raise change.refused("a path is names joined by dots, as steps.train.params.lr")
        if parts[0] == "steps":
            parts = ("pipeline", *parts)
        if parts[:2] != ("pipeline", "steps") or len(parts) < 3:
            return parts
        steps = self._steps(change)
        ids = [step.get("id") if isinstance(step, dict) else None for step in steps]
        rest = ".".join(str(part) for part in parts[2:])
        # An id may itself have dots in it: the longest that fits is meant.
        fitting = [i for i in ids if isinstance(i, str) and f"{rest}.".startswith(f"{i}.")]
        if fitting:
            found = max(fitting, key=len)
            below = rest[len(found) + 1 :]
            return (*parts[:2], ids.index(found), *(split_path(below) if below else ()))
        known = [i for i in ids if isinstance(i, str)]
        if change.kind != "delete" and len(parts) == 3 and change.kind != "set":
            return (*parts[:2], len(steps))
        name = str(parts[2])
        instead = "; steps are named by their ids, not by number" if name.isdigit() else ""
        raise change.refused(
            f"no step '{shown(name)}'{instead or nearest(name, known)} (steps: "
            f"{shown(', '.join(known))})"
        )

    def _steps(self, change: Change) -> list[Any]:
        steps = self._listed()
        if steps is None:
            raise change.refused("the file has no list of steps")
        return steps

    def _listed(self) -> list[Any] | None:
        pipeline = self._top.get("pipeline")
        steps = pipeline.get("steps") if isinstance(pipeline, dict) else None
        return steps if isinstance(steps, list) else None

    def _parent(self, path: Path, change: Change) -> Any:
        """Return the container that holds the last part of `path`, and may be written to."""
        here = self._top
        for place, part in enumerate(path[:-1], start=1):
            below = self._at(here, part)
            if isinstance(below, str) and self._expand is not None and "${" in below:
                below = self._separate(self._expand(self._top, below))
            if below is _NOTHING or below is None:
                if change.kind == "delete" or not (
                    below is None or change.kind != "set" or self._may_appear(path[:place], change)
                ):
                    raise self._absent(here, path[:place], change)
                below = {}
            elif not isinstance(below, (dict, list)):
                said = ".".join(str(p) for p in path[1:place] if not isinstance(p, int))
                raise change.refused(f"'{shown(said)}' is a plain value, nothing is below it")
            below = self._copy(below)
            self._put(here, part, below)
            here = below
        return here

    def _set(self, parent: Any, path: Path, change: Change) -> None:
        present = self._at(parent, path[-1])
        value = change.value
        if path[1:2] == ("steps",) and len(path) == 3:
            _mapping(value, change)
        if present is _NOTHING:
            if path[1:2] == ("steps",) and len(path) == 3:
                parent.append({"id": split_path(change.path)[-1], **_mapping(value, change)})
                return
            if not self._may_appear(path, change):
                raise self._absent(parent, path, change)
        elif change.kind == "add" and present is not None and not isinstance(value, (dict, list)):
            raise change.refused("it is there already", hint="leave away the `+`")
        if isinstance(present, dict) and isinstance(value, dict):
            value = self._merged(present, value, path, change)
        if type(value) is type(present) and value == present and not isinstance(value, dict):
            return
        self._put(parent, path[-1], value)

    def _merged(self, present: Any, value: Any, path: Path, change: Change) -> Any:
        """Return `present` with the entries of `value`, as Hydra merges a mapping into another."""
        found = self._copy(present)
        kind: Kind = "force" if change.kind == "add" else change.kind
        for key, inner in value.items():
            self._set(found, (*path, key), replace(change, value=inner, kind=kind))
        return found

    def _delete(self, parent: Any, path: Path, change: Change) -> None:
        present = self._at(parent, path[-1])
        if present is _NOTHING:
            raise self._absent(parent, path, change)
        if change.has_value and change.value is not None and change.value != present:
            raise change.refused(f"its value is {shown(str(present))}, so this does not delete it")
        if isinstance(parent, list):
            lines = self._lines.added.get(id(parent))
            if lines is not None:
                del lines[path[-1]]
        del parent[path[-1]]

    def _may_appear(self, path: Path, change: Change) -> bool:
        """Whether the last part of `path` may be set although it is not there; raises where a step
        can have no such field at all.
        """
        if change.kind != "set" and path[:2] != ("pipeline", "steps"):
            return True
        if path[:1] != ("pipeline",):
            return False
        if path[1] != "steps":
            return path[1] == "labels"
        below = [str(part) for part in path[3:]]
        for field, known in ((below[:1], STEP_FIELDS), (below[1:2], SECTION_FIELDS.get(below[0]))):
            if field and known is not None and field[0] not in known:
                allowed = f"{nearest(field[0], known)} (allowed: {', '.join(known)})"
                raise change.refused(f"unknown key '{shown(field[0])}'{allowed}")
        is_field = len(below) == 1 or (len(below) == 2 and below[0] in SECTION_FIELDS)
        return (
            is_field or below[0] in _FREE or tuple(below[:2]) in _FREE_BELOW or change.kind != "set"
        )

    def _absent(self, parent: Any, path: Path, change: Change) -> UserError:
        """Return the error that `path`, whose beginning there is, does not exist."""
        known = [key for key in parent if isinstance(key, str)] if isinstance(parent, dict) else []
        if path[:-1] == ():
            known = [*known, "steps"]
        elif path[1:2] == ("steps",) and len(path) > 3:
            known = [*known, *(STEP_FIELDS if len(path) == 4 else ())]
        is_step = len(path) == 1 and self._is_step(path[0])
        hint = f"; did you mean 'steps.{path[0]}'?" if is_step else nearest(path[-1], known)
        there = f" (there: {shown(', '.join(known))})" if known else ""
        why = f"there is no '{shown(str(path[-1]))}'{hint}{there}"
        adds = not is_step and change.kind != "delete"
        add = f"`+{shown(change.text)}` adds it" if adds else None
        return change.refused(why, hint=add)

    def _is_step(self, name: str | int) -> bool:
        steps = self._listed() or ()
        return any(isinstance(step, dict) and step.get("id") == name for step in steps)

    @staticmethod
    def _at(container: Any, part: str | int) -> Any:
        if isinstance(container, list):
            index = int(part) if str(part).isdigit() else -1
            return container[index] if 0 <= index < len(container) else _NOTHING
        return container.get(part, _NOTHING)

    @staticmethod
    def _put(container: Any, part: str | int, value: Any) -> None:
        container[int(part) if isinstance(container, list) else part] = value

    def _copy(self, container: Any) -> Any:
        return container if id(container) in self._own else self._fresh(container)

    def _separate(self, value: Any) -> Any:
        """Return a copy of `value` through and through: what it was taken from is to stay."""
        if not isinstance(value, (dict, list)):
            return value
        found = self._fresh(value)
        for key, inner in list(found.items() if isinstance(found, dict) else enumerate(found)):
            found[key] = self._separate(inner)
        return found

    def _fresh(self, container: Any) -> Any:
        found = container.copy()
        # Kept alive with the lines, so that no other object gets the id.
        self._lines.kept.append(found)
        self._own.add(id(found))
        lines = self._lines.get(id(container))
        if lines is not None:
            self._lines.added[id(found)] = lines.copy()
        return found


def split_path(text: str) -> tuple[str, ...]:
    """Return the parts of the path `text`; `a[b].c` is `a.b.c`."""
    return tuple(re.sub(r"\[([^\]]*)\]", r".\1", text).split("."))


def _mapping(value: Any, change: Change) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise change.refused("a step is a mapping: {uses: …}")
    return value


def _text(key: str, value: Any) -> str:
    return key if value is _NOTHING else f"{key}={value}"
