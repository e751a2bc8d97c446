"""The source files behind a handler: found by reading imports, never by importing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_hpc.core.code import imported_sources
from nexa_hpc.errors import UserError


def write(project: Path, **sources: str) -> None:
    """Write modules: `a__b` is `a/b.py`, and a folder named on the way is a package."""
    for name, text in sources.items():
        file = project / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def found(project: Path, module: str) -> list[str]:
    return [path.relative_to(project).as_posix() for path in imported_sources(module, project)]


def test_a_module_counts_with_all_that_it_imports_in_turn(project: Path) -> None:
    write(project, steps="import middle\nimport json, numpy", middle="from leaf import f", leaf="")
    write(project, unused="import steps")
    assert found(project, "steps") == ["leaf.py", "middle.py", "steps.py"]


def test_installed_packages_do_not_count(project: Path) -> None:
    write(project, steps="import os\nimport pytest\nfrom nexa_hpc import Task")
    assert found(project, "steps") == ["steps.py"]
    assert found(project, "json.decoder") == []


def test_imports_within_functions_and_conditions_count(project: Path) -> None:
    write(project, steps="def f():\n  if 0:\n    import late\n", late="")
    assert found(project, "steps") == ["late.py", "steps.py"]


def test_what_a_package_executes_on_import_counts(project: Path) -> None:
    (project / "lib/deep").mkdir(parents=True)
    (project / "lib/__init__.py").write_text("import side")
    (project / "lib/deep/__init__.py").write_text("")
    write(project, lib__deep__mod="", side="", lib__beside="")
    assert found(project, "lib.deep.mod") == [
        "lib/__init__.py",
        "lib/deep/__init__.py",
        "lib/deep/mod.py",
        "side.py",
    ]


def test_a_package_itself_counts_by_its_init(project: Path) -> None:
    (project / "lib").mkdir()
    (project / "lib/__init__.py").write_text("from . import part\nfrom .other import x")
    write(project, lib__part="", lib__other="", lib__unused="")
    assert found(project, "lib") == ["lib/__init__.py", "lib/other.py", "lib/part.py"]


def test_relative_imports_are_told_from_where_they_stand(project: Path) -> None:
    write(
        project,
        lib__sub__mod="from . import near\nfrom ..up import x\nfrom .. import top",
        lib__sub__near="",
        lib__up="",
        lib__top="",
        near="",
        up="",
        top="",
    )
    names = ["lib/sub/mod.py", "lib/sub/near.py", "lib/top.py", "lib/up.py"]
    assert found(project, "lib.sub.mod") == names


def test_names_imported_from_a_package_may_be_modules(project: Path) -> None:
    write(project, steps="from lib import one, two as other", lib__one="", lib__two="")
    assert found(project, "steps") == ["lib/one.py", "lib/two.py", "steps.py"]


def test_modules_that_import_each_other_end_the_search(project: Path) -> None:
    write(project, one="import two", two="import one")
    assert found(project, "one") == ["one.py", "two.py"]


def test_nothing_is_executed(project: Path) -> None:
    write(project, steps="import bomb", bomb="raise SystemExit('executed')")
    assert found(project, "steps") == ["bomb.py", "steps.py"]


@pytest.mark.parametrize(
    ("text", "place"), [("x = 1\ndef (:\n", "broken.py:2"), ("x = 1\0", "broken.py")]
)
def test_what_is_not_python_is_refused_with_its_place(project: Path, text: str, place: str) -> None:
    write(project, steps="import broken", broken=text)
    with pytest.raises(UserError, match=f"/{place}: not valid Python"):
        imported_sources("steps", project)
