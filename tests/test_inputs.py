"""What an input's text means, how it is digested, and what is handed to the worker."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from planned import command, plan, run

from nexa_hpc import create_artifact
from nexa_hpc.core.digests import Digester
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.inputs import Reference, References, Resolver, StepPlace, package_path
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.spec import Step
from nexa_hpc.errors import SpecError, UserError


class Trains:
    """A handler some of whose params are inputs."""

    input_params: ClassVar[dict[str, str]] = {"model": "model", "dataset": "dataset", "c": "path"}

    def run(self) -> None: ...

    def revision(self, kind: str, name: str) -> str | None:
        return f"{kind} {name} today" if name != "unknown/there" else None


@pytest.fixture
def handler() -> Handler:
    return Handler("t", Trains())


@pytest.fixture
def references(project: Path) -> References:
    """The references of a pipeline of three steps; `s` is the one that reads."""
    places = [
        StepPlace("one", {"out": project / "artifacts/one"}, effect=False),
        StepPlace("two", {"a": project / "artifacts/a", "b": project / "artifacts/b"}, False),
        StepPlace("bare", {}, effect=False),
        StepPlace("promote", {}, effect=True),
        StepPlace("s", {"out": project / "artifacts/s"}, effect=False),
    ]
    return References(project, places)


def one_step(handler: Handler, references: References, **fields: Any) -> Any:
    """What the only input of step `s` means."""
    (found,) = references.of_step(Step(id="s", uses="t", **fields), handler)
    return found


def resolved(project: Path, text: str, **options: Any) -> Instance:
    """The instance of a step that reads `text`."""
    step = command("s", **{"in": {"x": {"path": text, **options} if options else text}})
    return plan(project, step).instances["s"]


# ------------------------------------------------------------------------------------------ meaning


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("artifacts/one", ("one", "out", "")),
        ("artifacts/one/deep/file", ("one", "out", "deep/file")),
        ("./artifacts/../artifacts/one/", ("one", "out", "")),
        ("artifacts/b/x", ("two", "b", "x")),
        ("one", ("one", "out", "")),
        ("one/deep/file", ("one", "out", "deep/file")),
        ("two/a", ("two", "a", "")),
        ("two/a/x", ("two", "a", "x")),
        ("bare", ("bare", "out", "")),
        ("bare/file", ("bare", "out", "file")),
    ],
)
def test_a_text_may_name_the_result_of_a_step(
    handler: Handler, references: References, text: str, meant: tuple[str, str, str]
) -> None:
    found = one_step(handler, references, inputs={"x": text})
    assert (found.kind, found.name, found.place) == ("step", "x", "in.x")
    assert (found.step, found.output, found.below) == meant


def test_an_absolute_path_below_an_out_names_its_step(
    handler: Handler, references: References, project: Path
) -> None:
    found = one_step(handler, references, inputs=f"{project}/artifacts/one/x")
    assert (found.step, found.below) == ("one", "x")


def test_a_steps_result_goes_before_a_file_of_that_name(
    handler: Handler, references: References, project: Path
) -> None:
    (project / "one").write_text("a file")
    assert one_step(handler, references, inputs="one").kind == "step"


def test_a_step_does_not_read_itself_by_a_folder_of_its_name(
    handler: Handler, references: References, project: Path
) -> None:
    (project / "s").mkdir()
    assert one_step(handler, references, inputs="s").kind == "path"


def test_a_name_that_begins_like_an_out_is_not_below_it(
    handler: Handler, references: References, project: Path
) -> None:
    (project / "artifacts").mkdir()
    (project / "artifacts/one_more").write_text("")
    assert one_step(handler, references, inputs="artifacts/one_more").kind == "path"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two", "has several outputs; write two/a or two/b"),
        ("two/c/x", "has several outputs; write two/a or two/b"),
        ("promote", "step 'promote' changes something elsewhere; it has no files"),
        ("artifact/one", "no such file or folder.*did you mean 'artifacts/one'"),
        ("bear", "did you mean 'bare'"),
        ("pkg://no_such_package/x", r"no package 'no_such_package' is installed \(pip install"),
        ("pkg://../x", "no package '..' is installed"),
        ("pkg://pytest/no/such", "'pytest' holds no 'no/such'"),
        ("x" * 3000, "cannot be looked at: File name too long"),
    ],
)
def test_a_text_that_means_nothing_is_told_with_what_it_might_mean(
    handler: Handler, references: References, text: str, words: str
) -> None:
    place, message = one_step(handler, references, inputs={"x": text})
    assert place == "in.x"
    assert re.search(words, message), message


def test_hub_names_are_for_models_and_datasets_only(
    handler: Handler, references: References
) -> None:
    assert one_step(handler, references, params={"model": "org/bert-base"}).kind == "hub"
    assert one_step(handler, references, params={"dataset": "glue"}).kind == "hub"
    assert one_step(handler, references, inputs={"model": "org/bert-base"}).kind == "hub"
    assert "no such file" in one_step(handler, references, params={"c": "org/bert-base"})[1]
    assert "no such file" in one_step(handler, references, params={"model": "a/b/c"})[1]
    assert "no such file" in one_step(handler, references, params={"model": "../bert"})[1]


def test_a_local_path_goes_before_a_hub_name(
    handler: Handler, references: References, project: Path
) -> None:
    (project / "bert").mkdir()
    found = one_step(handler, references, params={"model": "bert"})
    assert (found.kind, found.place) == ("path", "params.model")


def test_an_input_given_twice_or_as_no_text_is_refused(
    handler: Handler, references: References
) -> None:
    fields: dict[str, Any] = {"inputs": {"model": "one"}, "params": {"model": "org/bert", "c": 3}}
    third, first, second = references.of_step(Step(id="s", uses="t", **fields), handler)
    assert first == ("params.model", "'model' is given in `in` as well; keep one")
    assert second == ("params.c", "expected text, got int")
    assert isinstance(third, Reference)


def test_params_that_are_not_set_are_no_inputs(handler: Handler, references: References) -> None:
    step = Step(id="s", uses="t", params={"model": None, "other": "one"})
    assert list(references.of_step(step, handler)) == []


def test_a_path_that_may_not_be_looked_at_is_a_problem_and_no_crash(
    handler: Handler, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    found = one_step(handler, references, inputs={"x": "secret/file"})
    assert found == ("in.x", "cannot be looked at: Permission denied")


# ----------------------------------------------------------------------------------------- packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported."""
    folder = tmp_path / "site/inputs_package"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "model/weights.bin").write_text("w")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_a_package_path_is_found_without_importing_the_package(package: Path) -> None:
    assert package_path("pkg://inputs_package/model") == package / "model"
    assert package_path("pkg://inputs_package") == package
    assert "inputs_package" not in sys.modules


def test_a_module_that_no_file_holds_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(UserError, match="no package '__main__' is installed"):
        package_path("pkg://__main__/x")


def test_a_package_path_cannot_leave_its_package(package: Path) -> None:
    (package.parent / "secret").write_text("")
    with pytest.raises(UserError, match="holds no"):
        package_path("pkg://inputs_package/../secret")


def test_the_content_of_a_package_path_is_digested(project: Path, package: Path) -> None:
    found = resolved(project, "pkg://inputs_package/model")
    assert found.inputs["x"]["path"] == str(package / "model")
    (package / "model/weights.bin").write_text("other")
    assert resolved(project, "pkg://inputs_package/model").key != found.key


# ------------------------------------------------------------------------------------------ digests


def test_a_file_is_digested_by_content_and_handed_over_with_its_signature(project: Path) -> None:
    (project / "data.csv").write_text("a")
    found = resolved(project, "data.csv")
    digest = Digester().digest(project / "data.csv")
    assert found.sources["x"] == {"sha256": digest.sha256}
    assert found.inputs["x"] == {"path": f"{project}/data.csv", "signature": digest.signature}


def test_stat_and_none_say_so_in_the_key(project: Path) -> None:
    (project / "data.csv").write_text("a")
    os.utime(project / "data.csv", (5, 5))
    by_stat = resolved(project, "data.csv", digest="stat")
    by_none = resolved(project, "data.csv", digest="none")
    assert by_stat.sources["x"] == {"stat": by_stat.inputs["x"]["signature"]}
    assert by_none.sources["x"] == {"none": "none"}
    assert by_none.inputs["x"]["signature"] is None
    (project / "data.csv").write_text("b")
    os.utime(project / "data.csv", (5, 5))
    assert resolved(project, "data.csv", digest="stat").key == by_stat.key
    (project / "data.csv").write_text("longer")
    assert resolved(project, "data.csv", digest="stat").key != by_stat.key
    assert resolved(project, "data.csv", digest="none").key == by_none.key


def test_an_artifact_made_elsewhere_is_known_by_its_hash_and_never_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_artifact(project / "made", lambda out: (out / "x").write_text("1"))
    (project / "link").symlink_to("made")
    monkeypatch.setattr(Digester, "digest", None)
    found = resolved(project, "link")
    assert found.sources["x"] == {"artifact": made.hash}
    assert found.inputs["x"] == {"path": str(made.path)}


def test_two_artifacts_of_the_same_content_are_one_input(project: Path) -> None:
    for name in ("one", "two"):
        create_artifact(project / name, lambda out: (out / "x").write_text("1"))
    assert resolved(project, "one").key == resolved(project, "two").key


def test_a_damaged_artifact_is_a_problem(project: Path) -> None:
    create_artifact(project / "made", lambda out: (out / "x").write_text("1"))
    (project / "made/x").unlink()
    with pytest.raises(SpecError, match=r"step 's': in\.x: .*purged: x is gone"):
        resolved(project, "made")


def test_an_input_is_handed_over_where_it_lies_not_through_a_link(project: Path) -> None:
    (project / "real").mkdir()
    (project / "link").symlink_to("real")
    assert resolved(project, "link").inputs["x"]["path"] == f"{project}/real"


def test_a_model_version_is_resolved_at_planning(project: Path) -> None:
    made = create_artifact(project / "made", lambda out: (out / "x").write_text("1"))
    registry = Registry(project / "artifacts/.registry")
    registry.register("m", made.path)
    registry.promote("m", 1, "prod")
    found = resolved(project, "models:m@prod")
    assert found.sources["x"] == {"artifact": made.hash}
    assert found.inputs["x"]["version"] == "m@1"
    assert found.resolved == {"x": "m@1"}
    with pytest.raises(SpecError, match=r"in\.x: .*staging"):
        resolved(project, "models:m@staging")


def test_a_hub_name_enters_with_the_revision_it_has_now(
    project: Path, handler: Handler, references: References
) -> None:
    resolver = Resolver(Registry(project / "r"), Digester())

    def resolve(**params: Any) -> Any:
        return resolver.resolve(one_step(handler, references, params=params), {}, handler)

    known = resolve(model="org/bert")
    assert known.source == {"hub": "org/bert", "revision": "model org/bert today"}
    assert known.handed == {"revision": "model org/bert today"}
    assert resolve(dataset="unknown/there").source == {"hub": "unknown/there", "revision": None}


def test_a_steps_result_is_known_by_its_key_before_it_exists(project: Path) -> None:
    above = command("above", out="artifacts/above")
    below = command("s", **{"in": {"x": "artifacts/above/part"}})
    found = plan(project, above, below).instances
    where = {"output": "out", "below": "part"}
    assert found["s"].sources["x"] == {"step_key": found["above"].key, **where}
    assert found["s"].inputs["x"] == {"step": "above", **where}


def test_what_a_step_reads_reaches_its_command(project: Path) -> None:
    above = command("above", "echo made > $OUT/file", out="artifacts/above")
    below = command("s", "cat $IN_x > $OUT/copy", **{"in": {"x": "artifacts/above/file"}})
    assert (run(project, above, below).result("s") / "copy").read_text() == "made\n"
