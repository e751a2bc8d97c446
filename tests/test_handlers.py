"""Handlers: found by name, given what they ask for, and refused in words."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.core import handlers
from nexa_hpc.core.handlers import Handler, Progress, StepView, Task, find_handler
from nexa_hpc.errors import UserError


@pytest.fixture
def write_module(project: Path) -> Iterator[Callable[[str, str], None]]:
    """Write a module into the project; what was imported is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def write(name: str, source: str) -> None:
        (project / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(project) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def _task(project: Path, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "step_id": "s", "uses": "m:f", "backend": None, "key": "ab", "attempt": 1,
        "params": {"x": 1}, "inputs": {}, "revisions": {}, "outputs": {"out": project / "out"},
        "work_dir": project / "work", "resume": None, "resources": {}, "project": project,
        "registry": project / "registry",
    }  # fmt: skip
    return Task(**{**fields, **changes})


def _step(project: Path, **changes: Any) -> StepView:
    fields: dict[str, Any] = {
        "id": "s", "uses": "m:f", "backend": None, "scheduler": None, "params": {}, "inputs": {},
        "outputs": {}, "resources": {}, "project": project,
    }  # fmt: skip
    return StepView(**{**fields, **changes})


# ---------------------------------------------------------------------------------------- arguments


def test_a_function_gets_the_arguments_it_names(
    project: Path, write_module: Callable[[str, str], None]
) -> None:
    write_module(
        "mine_args",
        "seen = {}\n"
        "def f(out_dir, params, *, work_dir, task, backend='unset', own=7):\n"
        "    seen.update(locals())\n",
    )
    task = _task(project, backend="hf")
    handler = find_handler("mine_args:f", project)
    assert handler.signature_problem() is None
    handler.run(task)
    assert sys.modules["mine_args"].seen == {
        "out_dir": project / "out", "params": {"x": 1}, "work_dir": project / "work",
        "task": task, "backend": "hf", "own": 7,
    }  # fmt: skip


def test_an_argument_that_nobody_offers_is_named_with_the_nearest(
    project: Path, write_module: Callable[[str, str], None]
) -> None:
    write_module("mine_typo", "def f(outdir): ...\ndef g(zzz): ...\n")
    problem = find_handler("mine_typo:f", project).signature_problem()
    assert problem is not None
    assert "'outdir'" in problem
    assert "did you mean 'out_dir'?" in problem
    problem = find_handler("mine_typo:g", project).signature_problem()
    assert problem is not None
    assert "it may take: attempt, backend" in problem


def test_what_cannot_be_called_is_a_problem_not_a_crash(
    project: Path, write_module: Callable[[str, str], None]
) -> None:
    write_module("mine_constant", "ANSWER = 42\n")
    for uses in ("mine_constant:ANSWER", "mine_constant:__doc__"):
        problem = find_handler(uses, project).signature_problem()
        assert problem is not None
        assert "neither a function" in problem


def test_what_a_handler_raises_passes_through(project: Path) -> None:
    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Handler("m:f", run).run(_task(project))


def test_out_dir_is_for_steps_with_one_output(project: Path) -> None:
    several = _task(project, outputs={"a": project / "a", "b": project / "b"})
    with pytest.raises(UserError, match=r"several outputs \(a, b\)"):
        Handler("m:f", lambda out_dir: None).run(several)
    Handler("m:f", lambda outputs: None).run(several)


def test_progress_reaches_whoever_watches(project: Path) -> None:
    seen: list[Progress] = []

    def run(progress: Callable[..., None]) -> None:
        progress(1, 10, metrics={"loss": 0.5})
        progress(3, unit="MB")

    Handler("m:f", run).run(_task(project, on_progress=seen.append))
    Handler("m:f", run).run(_task(project))
    assert seen == [Progress(1, 10, "steps", {"loss": 0.5}), Progress(3, None, "MB", {})]


# ------------------------------------------------------------------------------- the optional parts


class _Full:
    version = 3
    effect = True
    input_params: Mapping[str, str] = {"model": "model"}

    def validate(self, step: StepView) -> Iterator[Any]:
        if "lr" not in step.params:
            yield "lr", "is missing"
        yield "too small"

    def resolve(self, step: StepView) -> Mapping[str, Any]:
        return {"lr": 1, **step.params}

    def revision(self, kind: str, name: str) -> str | None:
        return f"{kind}:{name}"

    def holds(self, task: Task) -> str | None:
        return "done already"

    def run(self, task: Task) -> None: ...


def test_an_object_says_everything_of_itself(project: Path) -> None:
    handler = Handler("m:f", _Full())
    step = _step(project)
    assert (handler.version, handler.effect) == ("3", True)
    assert handler.input_params == {"model": "model"}
    assert handler.validate(step) == [("lr", "is missing"), (None, "too small")]
    assert handler.resolve(step) == {"lr": 1}
    assert handler.revision("model", "x") == "model:x"
    assert handler.holds(_task(project)) == "done already"


def test_a_function_has_sensible_answers_for_the_rest(project: Path) -> None:
    handler = Handler("m:f", lambda params: None)
    step = _step(project, params={"a": 1})
    assert (handler.version, handler.effect, handler.input_params) == ("1", False, {})
    assert handler.validate(step) == []
    assert handler.resolve(step) == {"a": 1}
    assert handler.revision("model", "x") is None
    assert handler.holds(_task(project)) is None


def test_a_validate_that_raises_valueerror_reports_it(project: Path) -> None:
    class Raising:
        def validate(self, step: StepView) -> None:
            raise ValueError("no such split")

        def run(self) -> None: ...

    assert Handler("m:f", Raising()).validate(_step(project)) == [(None, "no such split")]


def test_a_name_is_looked_up_in_inputs_then_params(project: Path) -> None:
    step = _step(project, inputs={"model": "folder"}, params={"model": "hub", "dataset": "glue"})
    assert step.param_or_input("model") == "folder"
    assert step.param_or_input("dataset") == "glue"
    assert step.param_or_input("other") is None


# ------------------------------------------------------------------------------------------ finding


def test_a_module_with_run_and_an_attribute_of_a_class_are_handlers(
    project: Path, write_module: Callable[[str, str], None]
) -> None:
    write_module(
        "mine_forms",
        "class Steps:\n"
        "    @staticmethod\n"
        "    def train(out_dir): out_dir.mkdir()\n"
        "class H:\n"
        "    def run(self, params): ...\n"
        "handler = H()\n",
    )
    find_handler("mine_forms:Steps.train", project).run(_task(project))
    assert (project / "out").is_dir()
    assert find_handler("mine_forms:handler", project).signature_problem() is None


@pytest.mark.parametrize(
    ("uses", "told"),
    [
        ("runners.trian", "unknown handler 'runners.trian'; did you mean 'runners.train'"),
        ("nonsense", "unknown handler 'nonsense'"),
        ("mine_bad:f", "mine_bad.py:1: not valid Python"),
        ("mine_raises:f", "cannot import 'mine_raises': KeyError: 'HOME_OF_DATA'"),
        ("mine_missing:f", "cannot import 'mine_missing': No module named 'mine_missing'"),
        ("mine_needs:f", "cannot import 'mine_needs': No module named 'not_installed'"),
        ("mine_good:trian", "'mine_good' has no 'trian'; did you mean 'train'"),
        ("mine_good:", "'mine_good' has no ''"),
        (":f", "cannot import ''"),
        (".relative:f", "cannot import '.relative'"),
    ],
)
def test_a_name_that_leads_nowhere_is_the_users_to_mend(
    project: Path, write_module: Callable[[str, str], None], uses: str, told: str
) -> None:
    write_module("mine_bad", "def f(:\n")
    write_module("mine_raises", "raise KeyError('HOME_OF_DATA')\n")
    write_module("mine_needs", "import not_installed\n")
    write_module("mine_good", "def train(): ...\n")
    with pytest.raises(UserError) as caught:
        find_handler(uses, project)
    assert told in str(caught.value)


def test_installed_packages_offer_handlers_by_entry_point(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "acme_steps-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nexa_hpc.handlers]\nacme.clean = acme_steps_module:clean\n"
    )
    (site / "acme_steps_module.py").write_text("def clean(out_dir): out_dir.mkdir()\n")
    monkeypatch.syspath_prepend(site)
    find_handler("acme.clean", project).run(_task(project))
    assert (project / "out").is_dir()
    with pytest.raises(UserError, match=r"did you mean 'acme\.clean'"):
        find_handler("acme.cleen", project)


def test_every_built_in_name_says_where_its_handler_is() -> None:
    for uses, reference in handlers.BUILTIN.items():
        module, _, attribute = reference.partition(":")
        assert module.startswith("nexa_hpc.runners."), uses
        assert attribute == "handler", uses
