"""A project's own handlers run as their files are now, whatever was loaded or compiled before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexa_hpc import Pipeline, Step
from nexa_hpc.core.handlers import find_handler
from nexa_hpc.errors import UserError

SOURCE = "from helper import WORD\ndef make(out_dir):\n    (out_dir / 'word').write_text(WORD)\n"


@pytest.fixture
def own(project: Path) -> Iterator[Path]:
    (project / "own_steps.py").write_text(SOURCE)
    (project / "helper.py").write_text("WORD = 'one'\n")
    yield project
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(project.parent))]
    for name in ("own_steps", "helper"):
        sys.modules.pop(name, None)


def word(project: Path) -> str:
    step = Step(id="make", uses="own_steps:make")
    run = Pipeline("own", [step], project=project).run()
    return (run.result("make") / "word").read_text()


def test_an_edit_counts_in_a_process_that_has_run_the_old_code(own: Path) -> None:
    assert word(own) == "one"
    (own / "helper.py").write_text("WORD = 'two'\n")
    assert word(own) == "two"
    (own / "helper.py").write_text("WORD = 'one'\n")
    assert word(own) == "one"


def test_byte_code_of_the_same_size_and_second_is_not_run(own: Path) -> None:
    helper = own / "helper.py"
    times = (helper.stat().st_atime_ns, helper.stat().st_mtime_ns)
    sys.path.insert(0, str(own))
    import helper as compiled  # type: ignore[import-not-found]  # writes the byte code

    assert compiled.WORD == "one"
    del sys.modules["helper"]
    helper.write_text("WORD = 'two'\n")
    os.utime(helper, ns=times)
    assert word(own) == "two"


def test_code_that_has_not_changed_is_loaded_once(own: Path) -> None:
    first = find_handler("own_steps:make", own)
    assert find_handler("own_steps:make", own).target is first.target


def test_projects_with_modules_of_one_name_each_run_their_own(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_steps.py").write_text(SOURCE)
    (other / "helper.py").write_text("WORD = 'other'\n")
    assert [word(root) for root in (own, other, own, other)] == ["one", "other", "one", "other"]
    (own / "helper.py").write_text("WORD = 'two'\n")
    assert [word(root) for root in (other, own)] == ["other", "two"]


def test_a_file_with_a_mistake_is_named_and_its_mending_seen(own: Path) -> None:
    (own / "helper.py").write_text("WORD = (\n")
    with pytest.raises(UserError, match=r"helper\.py:1"):
        find_handler("own_steps:make", own)
    (own / "helper.py").write_text("WORD = 'mended'\n")
    assert word(own) == "mended"


def test_an_installed_module_is_imported_as_ever(project: Path) -> None:
    import json

    assert find_handler("json:dumps", project).target is json.dumps
