"""Keys as planning computes them from real files: what changes them, and what does not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planned import command, key_of, plan

HANDLER = """
import {helper}

class Handler:
    version = "{version}"
    def run(self, out_dir): ...

handler = Handler()
"""


@pytest.fixture
def data(project: Path) -> Path:
    (project / "data").mkdir()
    (project / "data/train.csv").write_text("a,b\n")
    return project / "data"


@pytest.fixture
def key(project: Path, data: Path) -> Callable[..., str]:
    """The key of a step with an input and everything else set, but for some changes to it."""

    def find(**changes: Any) -> str:
        options = changes.pop("options", {})
        fields = {
            "params": {"lr": 0.1, "nested": {"list": [1, {"x": 2}]}},
            "in": {"data": "data/train.csv"},
            "out": "artifacts/model",
            "cache_hint": "v1",
            "env": {"variables": {"A": "1"}},
            "resources": {"cpus_per_task": 1},
            "labels": {"team": "nlp"},
        }
        name, text = changes.pop("id", "s"), changes.pop("text", "true")
        return key_of(project, command(name, text, **{**fields, **changes}), **options)

    return find


@pytest.fixture
def source(project: Path) -> Iterator[Callable[..., str]]:
    """Write a handler and the module that it imports, and return the key of a step using it."""
    path, number = list(sys.path), 0

    def write(version: str = "1", helper: str = "x = 1") -> str:
        nonlocal number
        (project / "key_changes_helper.py").write_text(helper)
        text = HANDLER.format(helper="key_changes_helper", version=version)
        (project / "key_changes_handler.py").write_text(text)
        forget()
        step = {"id": "s", "uses": "key_changes_handler:handler", "backend": None}
        return key_of(project, step)

    def forget() -> None:
        for name in ("key_changes_helper", "key_changes_handler"):
            sys.modules.pop(name, None)
        shutil.rmtree(project / "__pycache__", ignore_errors=True)

    yield write
    sys.path[:] = path
    forget()


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "false"},
        {"params": {"lr": 0.2, "nested": {"list": [1, {"x": 2}]}}},
        {"params": {"lr": 0.1, "nested": {"list": [1, {"x": 3}]}}},
        {"params": {"lr": 0.1, "nested": {"list": [1, {"x": True}]}}},
        {"params": {"lr": 0.1, "nested": {"list": [1, {"x": 2, "y": None}]}}},
        {"cache_hint": "v2"},
        {"cache_hint": None},
        {"out": "artifacts/other"},
        {"out": {"model": "artifacts/model"}},
        {"out": None},
        {"env": {"variables": {"A": "2"}}},
        {"env": {"variables": {"A": "1", "B": "1"}}},
        {"env": {}},
        {"in": {"train": "data/train.csv"}},
        {"in": {"data": "data"}},
        {"in": {}},
        {"in": {"data": {"path": "data/train.csv", "digest": "stat"}}},
        {"in": {"data": {"path": "data/train.csv", "digest": "none"}}},
        {"scheduler": "local"},
        {"options": {"rerun_from": "s"}},
    ],
)
def test_a_change_that_may_change_the_result_changes_the_key(
    key: Callable[..., str], changes: dict[str, Any]
) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {}},
        {"resources": {"mem_gb": 64, "timeout_min": 5, "partition": "gpu"}},
        {"labels": {}},
        {"labels": {"team": "vision", "more": "x"}},
        {"env": {"variables": {"A": "1"}, "secrets": ["PATH"]}},
        {"id": "renamed"},
        {"options": {"scheduler": "local"}},
        {"params": {"nested": {"list": [1, {"x": 2}]}, "lr": 0.1}},
        {"in": {"data": "./data/../data/train.csv"}},
        {"out": "./artifacts//model/"},
    ],
)
def test_nothing_else_changes_the_key(key: Callable[..., str], changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


def test_the_content_of_an_input_is_in_the_key_and_its_name_is_not(
    key: Callable[..., str], data: Path
) -> None:
    before = key()
    (data / "train.csv").rename(data / "renamed.csv")
    assert key(**{"in": {"data": "data/renamed.csv"}}) == before
    (data / "renamed.csv").write_text("a,c\n")
    assert key(**{"in": {"data": "data/renamed.csv"}}) != before
    (data / "renamed.csv").write_text("a,b\n")
    assert key(**{"in": {"data": "data/renamed.csv"}}) == before


def test_a_param_beside_an_input_of_its_name_is_in_the_key(key: Callable[..., str]) -> None:
    # A command sees both, as $PARAM_data and $IN_data.
    assert key(params={"data": 1}) != key(params={"data": 2}) != key(params={})


def test_moving_the_whole_project_changes_no_key(project: Path, tmp_path: Path, data: Path) -> None:
    (project / "run.sh").write_text("true\n")
    (project / "steps").mkdir()
    (project / "steps/prepare.py").write_text("x = 1\n")

    def keys(root: Path) -> list[str]:
        first = command(
            "first",
            "bash run.sh",
            params={"code": ["run.sh", "steps"], "log": f"{root}/logs", "list": [f"{root}/x"]},
            env={"variables": {"HERE": str(root)}},
            out="artifacts/first",
            **{"in": {"data": f"{root}/data", "stat": {"path": "data", "digest": "none"}}},
        )
        second = command("second", **{"in": "artifacts/first/part"})
        return [i.key for i in plan(root, first, second).instances.values()]

    before = keys(project)
    moved = tmp_path / "elsewhere/deeper"
    shutil.copytree(project, moved)
    assert keys(moved) == before


def test_the_code_of_a_handler_and_of_what_it_imports_is_in_the_key(
    source: Callable[..., str],
) -> None:
    first = source()
    assert source() == first
    assert source(helper="x = 2") != first
    assert source(version="2") != first
    assert source() == first


def test_the_version_of_a_handler_is_in_the_document(
    project: Path, source: Callable[..., str]
) -> None:
    source(version="7")
    step = {"id": "s", "uses": "key_changes_handler:handler", "backend": "mine"}
    document = plan(project, step).instances["s"].document
    assert document["handler_version"] == "7"
    assert document["backend"] == "mine"
    assert sorted(document["code"]) == ["key_changes_handler.py", "key_changes_helper.py"]


def test_the_listed_code_of_a_command_is_in_the_key(project: Path) -> None:
    (project / "run.py").write_text("x = 1\n")
    (project / "unlisted.py").write_text("x = 1\n")
    step = command("s", params={"code": ["run.py"]})
    first = key_of(project, step)
    (project / "unlisted.py").write_text("x = 2\n")
    assert key_of(project, step) == first
    (project / "run.py").write_text("x = 2\n")
    assert key_of(project, step) != first


def test_a_step_below_follows_the_key_above_and_a_step_beside_does_not(project: Path) -> None:
    def keys(text: str) -> dict[str, str]:
        steps = [
            command("above", text),
            command("below", **{"in": "above"}),
            command("further", **{"in": {"x": "below/file"}}),
            command("beside", after=["above"]),
        ]
        return {name: i.key for name, i in plan(project, *steps).instances.items()}

    one, other = keys("true"), keys("false")
    assert {name for name in one if one[name] != other[name]} == {"above", "below", "further"}


def test_which_part_of_a_result_is_read_is_in_the_key(project: Path) -> None:
    def key_below(text: str) -> str:
        above = command("above", out={"one": "artifacts/one", "two": "artifacts/two"})
        return plan(project, above, command("s", **{"in": {"x": text}})).instances["s"].key

    texts = ["above/one", "above/two", "above/one/file", "above/one/other"]
    assert len({key_below(text) for text in texts}) == len(texts)
    assert key_below("artifacts/one/file") == key_below("above/one/file")
