"""Settings: `nexa.yaml` at the project root, all of it optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment

from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.settings import Settings, read_settings
from nexa_hpc.errors import SpecError


def problems_of(root: Path, text: str) -> list[str]:
    (root / "nexa.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_settings(root)
    lines = str(caught.value).replace(f"{root / 'nexa.yaml'}:", "").splitlines()
    return [line.partition(" (allowed")[0] for line in lines]


@pytest.mark.parametrize("text", [None, "", "# a mark\n", "\n  # a mark\n", "{}\n", "paths:\n"])
def test_without_settings_the_defaults_hold(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "nexa.yaml").write_text(text)
    found = read_settings(tmp_path)
    assert found == Settings()
    assert (found.hash_limit_gb, found.allow_absolute_out, found.group) == (50, False, None)
    assert found.project_paths(tmp_path) == ProjectPaths.at(tmp_path)


def test_everything_may_be_set(tmp_path: Path) -> None:
    (tmp_path / "nexa.yaml").write_text(
        "paths:\n  state: state\n  store: /scratch/store\n  registry: models\n  work: /tmp/work\n"
        "  group: lab\n  hash_limit_gb: 2.5\n  allow_absolute_out: true\n"
    )
    found = read_settings(tmp_path)
    assert (found.group, found.hash_limit_gb, found.allow_absolute_out) == ("lab", 2.5, True)
    paths = found.project_paths(tmp_path)
    assert paths.state == tmp_path / "state"
    assert paths.store == Path("/scratch/store")
    assert paths.registry == tmp_path / "models"
    assert paths.work == Path("/tmp/work")


def test_work_follows_the_state_folder_unless_set(tmp_path: Path) -> None:
    (tmp_path / "nexa.yaml").write_text("paths: {state: s, store: }\n")
    assert read_settings(tmp_path).project_paths(tmp_path).work == tmp_path / "s" / "work"


def test_all_mistakes_are_told_together_with_the_nearest_name(tmp_path: Path) -> None:
    text = (
        "path: {}\npaths:\n  hash_limit: 3\n  store: 1\n  group: ''\n"
        "  allow_absolute_out: 1\n  hash_limit_gb: -1\n"
    )
    assert problems_of(tmp_path, text) == [
        "1: path: unknown key 'path'; did you mean 'paths'?",
        "3: paths.hash_limit: unknown key 'hash_limit'; did you mean 'hash_limit_gb'?",
        "4: paths.store: expected text",
        "5: paths.group: expected text",
        "7: paths.hash_limit_gb: expected a number of gigabytes above 0",
        "6: paths.allow_absolute_out: expected true or false",
    ]


@pytest.mark.parametrize("value", ["yes", "0", "''", "[1]"])
def test_the_limit_is_a_number(tmp_path: Path, value: str) -> None:
    (message,) = problems_of(tmp_path, f"paths: {{hash_limit_gb: {value}}}\n")
    assert message.endswith("expected a number of gigabytes above 0")


@pytest.mark.parametrize("value", ['"a\\nb"', '"  "', '"\\e[0m"', "{}"])
def test_a_place_is_printable_text(tmp_path: Path, value: str) -> None:
    assert problems_of(tmp_path, f"paths: {{store: {value}}}\n") == [
        "1: paths.store: expected text"
    ]


def test_paths_is_a_mapping(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "paths: x\n") == ["1: paths: expected a mapping"]


@pytest.mark.parametrize("text", ["a: [", "- x\n", "a: 1\na: 2\n", "a: !!python/name:os.system\n"])
def test_what_is_no_settings_document_is_refused(tmp_path: Path, text: str) -> None:
    problems_of(tmp_path, text)


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "nexa.yaml").mkdir()
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_settings(tmp_path)


@pytest.mark.parametrize("text", [None, "paths: {group: lab}\n"])
def test_reading_them_loads_no_more_than_it_must(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "nexa.yaml").write_text(text)
    code = (
        "import sys; from pathlib import Path; from nexa_hpc.core.settings import read_settings\n"
        "read_settings(Path('.')); print('yaml' in sys.modules, 'pydantic' in sys.modules)"
    )
    plain = {k: v for k, v in child_environment().items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=plain, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(text is not None), "False"], done.stderr
