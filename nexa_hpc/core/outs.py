"""Where a pipeline's `out`s may lie: each in a place of its own, inside the project, and not taken.

`out` becomes a symbolic link into the store, so nothing else may be there, and no link may be on
the way. Reads each folder once and writes nothing. Called by planning. Standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nexa_hpc.core.links import leads_into
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem

if TYPE_CHECKING:
    from nexa_hpc.core.document import Document
    from nexa_hpc.core.spec import PipelineSpec

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Linux has 255 and 4096; the rest is for the temporary names that publishing puts beside a path.
_MAX_NAME_BYTES = 200
_MAX_PATH_BYTES = 4000
_LINK, _FOLDER, _FILE = "a symbolic link", "a folder", "a file"


@dataclass(frozen=True)
class _Out:
    """One declared output: its text, and where it stands in the document."""

    step: str
    key: str
    text: str
    place: tuple[str | int, ...]
    document: Document

    @property
    def line(self) -> int | None:
        """Where it is written; looked up for messages alone."""
        return self.document.line_of(self.place)

    def problem(self, message: str) -> Problem:
        """Return `message` as a Problem at this output."""
        return Problem(
            message, file=self.document.name, line=self.line, step=self.step, key=self.key
        )


def check_outs(
    spec: PipelineSpec, document: Document, paths: ProjectPaths, allow_absolute: bool
) -> list[Problem]:
    """Return what is wrong with the `out`s of `spec`, against the disk and against each other."""
    checker = _Checker(paths, allow_absolute)
    problems = []
    targets: list[tuple[str, _Out]] = []
    for out in _declared(spec, document):
        target, message = checker.check(out.text)
        if message is not None:
            problems.append(out.problem(f"'{shown(out.text)}' {message}"))
        else:
            targets.append((target, out))
    return problems + _clashes(targets)


def _declared(spec: PipelineSpec, document: Document) -> Iterator[_Out]:
    for number, step in enumerate(spec.steps):
        for name, text in step.outputs.items():
            keys = ("out",) if isinstance(step.out, str) else ("out", name)
            place = ("pipeline", "steps", number, *keys)
            yield _Out(step.id, ".".join(keys), text, place, document)


class _Checker:
    """Checks single `out`s; remembers what it has read of the disk."""

    def __init__(self, paths: ProjectPaths, allow_absolute: bool) -> None:
        self._root = os.path.abspath(paths.root)
        self._store = paths.store
        self._allow_absolute = allow_absolute
        kept = {
            "the store": paths.store,
            "the registry": paths.registry,
            "the work folder": paths.work,
            "the state folder": paths.state,
        }
        self._kept = [(what, os.path.abspath(path)) for what, path in kept.items()]
        # The same folders under their real names, for absolute `out`s that reach them by links.
        self._kept += [(what, os.path.realpath(path)) for what, path in kept.items()]
        self._listings: dict[str, dict[str, str]] = {}

    def check(self, text: str) -> tuple[str, str | None]:
        """Return the absolute path that `text` means, and what is wrong with it."""
        message = _text_problem(text) or self._form_problem(text)
        if message is not None:
            return "", message
        target = os.path.normpath(os.path.join(self._root, text))
        if not _is_inside(target, self._root):
            target = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(text))
        if len(os.fsencode(target)) > _MAX_PATH_BYTES:
            return target, f"is too long: more than {_MAX_PATH_BYTES} bytes as an absolute path"
        try:
            return target, self._place_problem(target) or self._disk_problem(target)
        except OSError as error:
            return target, f"cannot be looked at: {error.strerror} ({error.filename})"

    def _form_problem(self, text: str) -> str | None:
        if text.startswith("~"):
            return "begins with `~`, which is not expanded; write the path from the project root"
        if os.path.isabs(text) and not self._allow_absolute:
            return (
                "is absolute; write it from the project root, or allow it by "
                "`paths: {allow_absolute_out: true}` in nexa.yaml"
            )
        normal = os.path.normpath(text)
        if normal == ".." or normal.startswith("../"):
            return "leads outside the project root"
        if ".." in text.split("/"):
            return f"goes back by `..`; write '{shown(normal)}'"
        return None

    def _place_problem(self, target: str) -> str | None:
        if _is_inside(self._root, target):
            return "is the project root itself, or contains it"
        for what, path in self._kept:
            if _is_inside(target, path):
                return f"lies inside {what} ({self._relative(path)})"
        for what, path in self._kept:
            if _is_inside(path, target):
                return f"contains {what} ({self._relative(path)})"
        return None

    def _disk_problem(self, target: str) -> str | None:
        folder, name = os.path.split(target)
        if _is_inside(target, self._root):
            *parents, name = os.path.relpath(target, self._root).split("/")
            folder = self._root
            for part in parents:
                kind = self._listing(folder).get(part)
                folder = f"{folder}/{part}"
                if kind in (_LINK, _FILE):
                    return f"leads through '{self._relative(folder)}', which is {kind}"
        kind = self._listing(folder).get(name)
        if kind is None or (kind == _LINK and leads_into(Path(target), self._store)):
            return None
        return f"is {kind} that nexa_hpc did not make; it is left alone"

    def _listing(self, folder: str) -> dict[str, str]:
        """Return name -> kind of what is in `folder`, by a fresh listing the first time."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = {entry.name: _kind(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = {}
        return self._listings[folder]

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root) if _is_inside(path, self._root) else path


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return _LINK
    return _FOLDER if entry.is_dir(follow_symlinks=False) else _FILE


def _text_problem(text: str) -> str | None:
    if not text.strip():
        return "is empty"
    if _CONTROL.search(text):
        return "holds control characters"
    try:
        names = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:
        return "is no valid text"
    if max(map(len, names)) > _MAX_NAME_BYTES:
        return f"is too long: a name has at most {_MAX_NAME_BYTES} bytes"
    return None


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _clashes(targets: list[tuple[str, _Out]]) -> list[Problem]:
    """Return a problem for each `out` that is another's place, or inside of it."""
    problems = []
    first: dict[str, _Out] = {}
    for target, out in targets:
        other = first.setdefault(target, out)
        if other is not out:
            problems.append(
                out.problem(f"'{shown(out.text)}' is the `out` of {_named(other)}, too")
            )
    around: list[str] = []
    # Sorted by names, what lies inside a folder follows it at once: no pair is compared twice.
    for target in sorted(first, key=lambda target: target.split("/")):
        while around and not _is_inside(target, around[-1]):
            around.pop()
        if around:
            out, outer = first[target], first[around[-1]]
            inside = f"'{shown(out.text)}' lies inside '{shown(outer.text)}'"
            problems.append(out.problem(f"{inside}, the `out` of {_named(outer)}"))
        around.append(target)
    return problems


def _named(out: _Out) -> str:
    line = f" (line {out.line})" if out.line is not None else ""
    return f"step '{out.step}'{line}"
