"""The source files that a user's handler depends on: what goes into the key for `module:function`.

Found by reading `import` statements, never by importing: every module that resolves to a file below
the project root counts, and what it imports in turn; installed packages do not. Called by planning.
Standard library alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nexa_hpc.errors import UserError


def imported_sources(module: str, project: Path) -> list[Path]:
    """Return the project files behind `module` and all its imports, sorted; empty if it is
    installed.

    Raises UserError when one of them is not valid Python.
    """
    found: set[Path] = set()
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for file in _files_of(name, project):
            if file not in found:
                found.add(file)
                waiting.extend(_imports(file, _package_of(name, file)))
    return sorted(found)


def _files_of(module: str, project: Path) -> Iterator[Path]:
    """Yield the files that importing `module` executes: its packages' `__init__.py` and itself."""
    folder = project
    parts = module.split(".")
    for part in parts[:-1]:
        folder = folder / part
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
    for file in (folder / f"{parts[-1]}.py", folder / parts[-1] / "__init__.py"):
        if file.is_file():
            yield file


def _package_of(module: str, file: Path) -> str:
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


def _imports(file: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte, in older Pythons
        line = getattr(error, "lineno", None)
        place = f"{file}:{line}" if line is not None else str(file)
        raise UserError(f"{place}: not valid Python: {getattr(error, 'msg', error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])
