"""Importing a project's own handlers: what runs is what the files say now, and nothing older.

A notebook keeps modules loaded after their files were edited, and Python takes byte code for
current when a file's size and second of change agree. Either would publish an old function's result
under the new source's key. So project files are compiled from their text, and loaded again when one
of them has changed, or when another project's module of that name has come between. Called by
`handlers.find_handler`. Standard library alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from nexa_hpc.core.code import imported_sources
from nexa_hpc.core.sharing import refuse_if_anybodys

_States = dict[Path, tuple[int, ...]]
# Module name and project root -> the module, and its project files as they were.
_loaded: dict[tuple[str, Path], tuple[ModuleType, _States]] = {}


def import_project_module(name: str, project: Path) -> ModuleType:
    """Return the module `name`, from `project` or installed, as its project files are now.

    Whatever the module raises on import passes through; UserError when a file is not valid Python,
    or when anybody may put files into `project`.
    """
    refuse_if_anybodys(project, "the project root")
    _put_first(str(project))
    known = _loaded.get((name, project))
    if known is not None:
        module, states = known
        if sys.modules.get(name) is module and states == _states(list(states)):
            return module
    files = imported_sources(name, project)
    states = _states(files)
    _forget({*files, *_files_of_others(project)})
    importlib.invalidate_caches()
    finder = _FromText(set(files))
    sys.meta_path.insert(0, finder)
    try:
        module = importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
    _loaded[name, project] = module, states
    return module


def _put_first(folder: str) -> None:
    """Have Python look for modules in `folder` before it looks in other projects."""
    if sys.path[:1] != [folder]:
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]


def _files_of_others(project: Path) -> set[Path]:
    """Return the files that were loaded for projects other than this one."""
    return {
        file for (_, root), (_, states) in _loaded.items() if root != project for file in states
    }


class _FromText(MetaPathFinder):
    """Finds the given files as Python would, but has them compiled from their text."""

    def __init__(self, files: set[Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec with another loader, or None for files that are not ours."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or Path(spec.origin) not in self._files:
            return None
        spec.loader = _TextLoader(fullname, spec.origin)
        return spec


class _TextLoader(SourceFileLoader):
    """Neither reads byte code nor writes it."""

    def path_stats(self, path: str | bytes) -> Any:
        """Raise OSError: Python then compiles the text."""
        raise OSError("byte code is not asked for")


def _forget(files: set[Path]) -> None:
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is not None and Path(origin) in files:
            del sys.modules[name]


def _states(files: Sequence[Path]) -> _States:
    states: _States = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            states[file] = ()
        else:
            states[file] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return states
