"""The rules of ARCHITECTURE.md that a machine can check: who imports whom, who writes, how long."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, child_environment

import nexa_hpc

PACKAGE = Path(nexa_hpc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "pydantic", "rich", "hydra", "omegaconf", "submitit", "numpy", "pandas", "sklearn",
    "matplotlib", "torch", "transformers", "datasets", "peft", "accelerate", "fastapi", "uvicorn",
}  # fmt: skip


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


each_module = pytest.mark.parametrize("path", MODULES, ids=_name)


def test_every_import_contract_of_pyproject_is_kept() -> None:
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -------------------------------------------------------------- what is loaded on the quick ways in


def _loaded_by(code: str, cwd: Path) -> set[str]:
    """Return the top-level names of the modules that `code` loads into a fresh interpreter."""
    program = f"import sys; before = set(sys.modules)\n{code}\n"
    program += "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    # Without coverage, which would start in that interpreter, too, and load what it likes.
    plain = {k: v for k, v in child_environment().items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=plain, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


_COMMAND = """
import io, contextlib
from nexa_hpc.cli.main import main
sys.argv = ["nexa-hpc", *{args!r}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        main()
    except SystemExit:
        pass
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "status",
        "logs train",
        "cancel",
        "list",
        "models list",
        "sweep show",
        "serve list",
        "serve url x",
        "serve stop x",
        "serve logs x",
    ],
)
def test_a_quick_command_loads_nothing_heavy(project: Path, command: str) -> None:
    loaded = _loaded_by(_COMMAND.format(args=command.split()), project)
    assert "nexa_hpc" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module",
    ["worker", "core.records", "core.artifacts", "core.handlers", "core.checkpoints", "core.paths"],
)
def test_the_way_into_a_job_is_standard_library_alone(tmp_path: Path, module: str) -> None:
    loaded = _loaded_by(f"import nexa_hpc.{module}", tmp_path)
    assert loaded - sys.stdlib_module_names == {"nexa_hpc"}


# --------------------------------------------------------------------------------------- who writes

# Handlers write into the folders that they are given; those are published by core/artifacts.py.
WRITING_CALLS = {"os.replace", "os.rename", "os.link", "os.symlink"}
WRITING_METHODS = {"write_text", "write_bytes", "symlink_to", "hardlink_to"}
# `on_node.py` is a script that runs where nothing of ours is known to work yet.
ON_NODE = "schedulers/slurm/on_node.py"
MAY_WRITE = ("core/atomic.py", "core/exchange.py", "runners/", "backends/", ON_NODE)


def _writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every call that writes, renames or links."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in WRITING_CALLS or called.rpartition(".")[2] in WRITING_METHODS:
                yield node.lineno, called
            elif called.rpartition(".")[2] == "open" and _opens_to_write(node):
                yield node.lineno, ast.unparse(node)


def _opens_to_write(call: ast.Call) -> bool:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(ast.unparse(argument) == "os.devnull" for argument in arguments):
        return False
    return any(
        (
            isinstance(argument, ast.Constant)
            and isinstance(argument.value, str)
            and 0 < len(argument.value) <= 3
            and set(argument.value) <= set("rwxabt+")
            and bool(set(argument.value) & set("wxa+"))
        )
        or any(flag in ast.unparse(argument) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        for argument in arguments
    )


@each_module
def test_only_atomic_writes(path: Path) -> None:
    if _name(path).startswith(MAY_WRITE):
        return
    found = [f"line {line}: {call}" for line, call in _writes(ast.parse(path.read_text()))]
    assert not found, "core/atomic.py and its part core/exchange.py write, nobody else"


def test_the_search_for_writers_finds_them() -> None:
    calls = (
        "open(p, 'w'); p.open('ab'); p.write_text(''); os.replace(a, b); open(p, mode='r+');"
        "os.open(p, os.O_WRONLY); a.symlink_to(b)"
    )
    assert len(list(_writes(ast.parse(calls)))) == 7
    reads = "open(p); p.open('rb'); os.open(p, os.O_RDONLY); open('w.txt'); registry.open(version)"
    assert list(_writes(ast.parse(reads))) == []


# --------------------------------------------------------------------------------------------- form


@each_module
def test_a_module_has_at_most_350_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def _undocumented(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_"):
            continue
        name = within + node.name
        overloaded = any("overload" in ast.unparse(d) for d in node.decorator_list)
        if not overloaded and ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {name}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, name + ".")


@each_module
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is for"
    assert not list(_undocumented(tree.body))
