"""The register and promote steps, as planning and the worker call them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc import Pipeline
from nexa_hpc.core.handlers import StepView, Task, find_handler
from nexa_hpc.core.publishing import create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import ArtifactError, RegistryError, SpecError, UnknownNameError

REGISTER = "core.registry.register"
PROMOTE = "core.registry.promote"


def problems(
    uses: str, params: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> list[tuple[str | None, str]]:
    view = StepView("s", uses, None, None, params, inputs or {}, {}, {}, Path("/nowhere"))
    return find_handler(uses, Path("/nowhere")).validate(view)


@pytest.fixture
def model(project: Path) -> Path:
    """A published artifact."""
    folder = project / "artifacts/.store/ab/abcd"
    create_artifact(folder, lambda out: (out / "model.bin").write_text("weights"))
    return folder


@pytest.fixture
def registry(project: Path) -> Registry:
    return Registry(project / "artifacts/.registry", project=project)


@pytest.fixture
def task(project: Path, registry: Registry):
    """Return a task as the worker builds it."""

    def build(
        uses: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, Path] | None = None,
        upstream: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Task:
        return Task(
            step_id="the_step",
            uses=uses,
            backend=None,
            key="f" * 64,
            attempt=1,
            params=params,
            inputs=inputs or {},
            revisions={},
            outputs={},
            work_dir=project / "work",
            resume=None,
            resources={},
            project=project,
            registry=registry.folder,
            upstream=upstream or {},
            labels={"team": "nlp"},
        )

    return build


def run(task: Task) -> None:
    find_handler(task.uses, task.project).run(task)


def holds(task: Task) -> str | None:
    return find_handler(task.uses, task.project).holds(task)


# ---------------------------------------------------------------------------------------- register


def test_both_are_effects_and_uri_and_meta_are_inputs(project: Path) -> None:
    register, promote = find_handler(REGISTER, project), find_handler(PROMOTE, project)
    assert register.effect
    assert promote.effect
    assert register.input_params == {"uri": "path", "meta": "path"}
    assert register.signature_problem() is promote.signature_problem() is None


@pytest.mark.parametrize("name", ["uri", "artifact", "input"])
def test_a_run_registers_the_artifact_with_its_meta(
    task, registry: Registry, model: Path, project: Path, capsys, name: str
) -> None:
    (project / "metrics.json").write_text('{"accuracy": 0.85}')
    step = task(REGISTER, {"name": "m"}, {name: model, "meta": project / "metrics.json"})
    assert holds(step) is None
    run(step)
    version = registry.resolve("m@1")
    assert version.path == model
    assert version.meta == {"accuracy": 0.85}
    assert version.source == {"step": "the_step", "labels": {"team": "nlp"}}
    assert capsys.readouterr().out == f"registered m version 1 ({model})\n"


def test_the_same_artifact_and_meta_hold_and_running_again_adds_nothing(
    task, registry: Registry, model: Path, capsys
) -> None:
    step = task(REGISTER, {"name": "m"}, {"uri": model})
    run(step)
    run(step)
    assert holds(step) == "m version 1 is this artifact"
    assert [version.number for version in registry.versions("m")] == [1]
    assert capsys.readouterr().out.splitlines()[1] == "m version 1 is this artifact"


def test_other_meta_or_a_deleted_version_do_not_hold(
    task, registry: Registry, model: Path, project: Path
) -> None:
    meta = project / "meta.json"
    step = task(REGISTER, {"name": "m"}, {"uri": model, "meta": meta})
    for number in (1, 2):
        meta.write_text(json.dumps({"n": number}))
        assert holds(step) is None
        run(step)
    registry.delete("m", 2)
    assert holds(step) is None
    meta.write_text(json.dumps({"n": 1}))
    assert holds(step) == "m version 1 is this artifact"


def test_an_artifact_that_is_not_there_fails_the_step(task, project: Path) -> None:
    with pytest.raises(ArtifactError, match="no complete artifact"):
        run(task(REGISTER, {"name": "m"}, {"uri": project / "absent"}))


def test_a_meta_file_that_is_no_object_fails_the_step(task, model: Path, project: Path) -> None:
    (project / "meta.json").write_text("[]")
    with pytest.raises(RegistryError, match=r"meta\.json: must be a JSON object"):
        run(task(REGISTER, {"name": "m"}, {"uri": model, "meta": project / "meta.json"}))


@pytest.mark.parametrize(
    ("params", "inputs"),
    [
        ({"name": "m", "uri": "train", "meta": "eval/metrics.json"}, {}),
        ({"name": "m"}, {"uri": "train"}),
        ({"name": "m"}, {"artifact": "train", "meta": "eval/metrics.json"}),
        ({"name": "m"}, {"input": "train"}),
        ({"name": "m", "uri": "train"}, {"gate": "eval"}),
    ],
)
def test_a_register_step_may_name_its_artifact_in_several_ways(params, inputs) -> None:
    assert problems(REGISTER, params, inputs) == []


@pytest.mark.parametrize(
    ("params", "inputs", "key", "words"),
    [
        ({"uri": "train"}, {}, "params.name", "is required"),
        ({"name": "a b", "uri": "train"}, {}, "params.name", "is not a name"),
        ({"name": 3, "uri": "train"}, {}, "params.name", "is not a name"),
        ({"name": "m", "uri": "t", "metta": "x"}, {}, "params.metta", "did you mean 'meta'?"),
        ({"name": "m", "uri": "t", "x": 1}, {}, "params.x", "it takes: name, uri, meta"),
        ({"name": "m"}, {}, "params.uri", "what is to be registered"),
        ({"name": "m"}, {"meta": "x"}, "params.uri", "what is to be registered"),
        ({"name": "m"}, {"a": "x", "b": "y"}, "params.uri", "which input is the artifact: a, b"),
    ],
)
def test_a_mistake_in_a_register_step_is_found_at_planning(params, inputs, key, words) -> None:
    ((found_key, message),) = problems(REGISTER, params, inputs)
    assert found_key == key
    assert words in message


# ----------------------------------------------------------------------------------------- promote


@pytest.mark.parametrize("version", [1, "1", "latest", "registered"])
def test_a_promote_step_says_its_version_as_number_latest_or_registered(version) -> None:
    assert problems(PROMOTE, {"name": "m", "version": version, "tag": "production"}) == []


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"name": "a/b"}, "params.name", "is not a name"),
        ({"version": 0}, "params.version", "a number from 1, or latest, or registered"),
        ({"version": True}, "params.version", "is not a version"),
        ({"tag": "latest"}, "params.tag", "cannot be a tag"),
        ({"tag": "12"}, "params.tag", "cannot be a tag"),
        ({"require": {"metric": "accuracy"}}, "params.require", "asks for nothing"),
        ({"tags": "x"}, "params.tags", "did you mean 'tag'?"),
    ],
)
def test_a_mistake_in_a_promote_step_is_found_at_planning(changes, key, words) -> None:
    params = {"name": "m", "version": 1, "tag": "production", **changes}
    ((found_key, message),) = problems(PROMOTE, params)
    assert found_key == key
    assert words in message


def test_all_missing_params_of_a_promote_step_are_named_together() -> None:
    found = problems(PROMOTE, {})
    assert [key for key, _ in found] == ["params.name", "params.version", "params.tag"]


def test_a_run_promotes_once_and_then_holds(task, registry: Registry, model: Path, capsys) -> None:
    for number in (1, 2, 3):
        registry.register("m", model, {"n": number})
    registry.promote("m", 2, "production")
    step = task(PROMOTE, {"name": "m", "version": 3, "tag": "production"})
    assert holds(step) is None
    run(step)
    run(step)
    assert holds(step) == "production is already version 3"
    assert capsys.readouterr().out.splitlines() == [
        "production → version 3 (was version 2)",
        "production is already version 3",
    ]
    assert len(registry.history("m", "production")) == 2


def test_latest_is_the_newest_version_at_the_time(task, registry: Registry, model: Path) -> None:
    step = task(PROMOTE, {"name": "m", "version": "latest", "tag": "production"})
    for number in (1, 2):
        registry.register("m", model, {"n": number})
        run(step)
        assert registry.tags("m") == {"production": number}


def above(
    model: Path, meta: Path | None = None, name: str = "m", distance: int = 1
) -> dict[str, Any]:
    """A register step as a task's `upstream` tells of it."""
    inputs = {"artifact": model, **({"meta": meta} if meta else {})}
    told = {"uses": REGISTER, "params": {"name": name}, "inputs": inputs, "key": "e" * 64}
    return {**told, "distance": distance}


def test_registered_is_the_version_of_the_nearest_register_step_even_when_it_is_not_the_newest(
    task, registry: Registry, model: Path, project: Path
) -> None:
    other = project / "other"
    create_artifact(other, lambda out: (out / "model.bin").write_text("other weights"))
    registry.register("m", model)
    registry.register("m", other)
    upstream = {
        "reg": above(model),
        "reg_n": above(other, name="n"),
        "base": above(other, distance=3),
        "train": {
            "uses": "runners.train", "params": {}, "inputs": {}, "key": "d" * 64, "distance": 2,
        },
    }  # fmt: skip
    step = task(
        PROMOTE, {"name": "m", "version": "registered", "tag": "production"}, upstream=upstream
    )
    assert holds(step) is None
    run(step)
    assert registry.tags("m") == {"production": 1}
    assert holds(step) == "production is already version 1"


def test_registered_tells_versions_apart_that_differ_in_meta_alone(
    task, registry: Registry, model: Path, project: Path
) -> None:
    meta = project / "meta.json"
    for number in (1, 2):
        registry.register("m", model, {"n": number})
    params = {"name": "m", "version": "registered", "tag": "production"}
    step = task(PROMOTE, params, upstream={"reg": above(model, meta)})
    for content, number in (({"n": 1}, 1), ({"n": 2}, 2), ({"changed": "since"}, 2)):
        meta.write_text(json.dumps(content))
        run(step)
        assert registry.tags("m") == {"production": number}


@pytest.mark.parametrize("names", [[], ["reg_b", "reg_a"]])
def test_registered_needs_exactly_one_nearest_register_step(task, model: Path, names) -> None:
    step = task(
        PROMOTE,
        {"name": "m", "version": "registered", "tag": "production"},
        upstream={name: above(model) for name in names},
    )
    with pytest.raises(RegistryError, match=f"there are {len(names)}") as caught:
        run(step)
    assert all(name in str(caught.value) for name in names)
    assert "after" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (["made"], "needs one step above that registers m; there are 0"),
        (["one", "two"], "there are 2 as near: one, two"),
        (["one"], None),
    ],
)
def test_which_step_registers_what_is_promoted_is_known_at_planning(
    project: Path, after: list[str], words: str | None
) -> None:
    def step(id_: str, uses: str, after: list[str], **params: Any) -> dict[str, Any]:
        return {"id": id_, "uses": uses, "after": after, "params": params}

    promoted = {"name": "m", "version": "registered", "tag": "t"}
    steps = [
        step("made", "runners.command", [], command="true"),
        step("one", REGISTER, [], name="m", uri="made"),
        step("two", REGISTER, ["made"], name="m", uri="made", meta="made/meta.json"),
        step("promote", PROMOTE, after, **promoted),
    ]
    file = project / "p.yaml"
    file.write_text(json.dumps({"pipeline": {"name": "p", "steps": steps}}))
    pipeline = Pipeline.from_yaml(file, project=project)
    if words is None:
        assert pipeline.plan().instances["promote"].action == "RUN"
        return
    with pytest.raises(SpecError) as found:
        pipeline.plan()
    assert words in str(found.value) and "params.version" in str(found.value)
    assert not (project / ".nexa_state").exists()


def test_registered_says_so_when_its_version_was_deleted(
    task, registry: Registry, model: Path
) -> None:
    registry.register("m", model)
    registry.delete("m", 1)
    params = {"name": "m", "version": "registered", "tag": "production"}
    with pytest.raises(RegistryError, match="was it deleted"):
        run(task(PROMOTE, params, upstream={"reg": above(model)}))


def test_promoting_an_unknown_model_fails_the_step(task) -> None:
    with pytest.raises(UnknownNameError, match="no model 'm'"):
        run(task(PROMOTE, {"name": "m", "version": 1, "tag": "production"}))


def test_damaged_files_fail_a_promote_step_and_leave_the_tag(
    task, registry: Registry, model: Path
) -> None:
    registry.register("m", model)
    (model / "model.bin").write_text("wEights")
    with pytest.raises(ArtifactError, match="damaged"):
        run(task(PROMOTE, {"name": "m", "version": 1, "tag": "production"}))
    assert registry.tags("m") == {}
