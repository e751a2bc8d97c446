"""Specs: what a pipeline document may say, and what is made of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nexa_hpc.core.document import parse_document, read_document
from nexa_hpc.core.spec import PipelineSpec, Step, parse_pipeline, to_json
from nexa_hpc.core.spec_sections import EnvSpec, InputSpec, ResourcesSpec
from nexa_hpc.errors import SpecError

# The example of the original specification, its indentation restored.
ORIGINAL = """\
pipeline:
  name: "general_e2e"
  steps:
    - id: "train_hf"
      uses: "runners.train"
      backend: "hf"
      scheduler: "local"
      params:
        model: "distilbert-base-uncased"
        dataset: "glue"
      out: "artifacts/checkpoints/hf_baseline"
    - id: "eval_hf"
      uses: "runners.eval"
      in:
        config: "nexa_train/configs/baseline.yaml"
        checkpoint: "artifacts/checkpoints/hf_baseline"
      out: "artifacts/eval/hf_baseline"
"""

FULL = """\
x-defaults: &small {nodes: 1, cpus_per_task: 2}
pipeline:
  name: all_of_it
  labels: {project: demo}
  steps:
    - id: prepare
      uses: my.module:prepare
      in: raw/data.csv
      out: {train: data/train, test: data/test}
      after: []
      cache_hint: v2
      resources:
        <<: *small
        mem_gb: 4
        gpus_per_node: 0
        timeout_min: 30
        slurm: {extra: {mail-type: END, requeue: true}}
      env:
        venv: .venv
        modules: [cuda/12.4]
        setup: source ${HOME}/setup.sh
        variables: {OMP_NUM_THREADS: "4"}
        secrets: [HF_TOKEN]
      labels: {owner: me}
    - id: train
      uses: runners.train
      backend: axolotl
      scheduler: slurm
      in:
        data: data/train
        model: {path: "models:base@prod", digest: none}
      out: out/model
      params: {rate: 2e-5, deep: {list: [1, null, true, "x"]}, text: "${not.interpolated}"}
      after: [prepare]
      key_resources: true
    - id: note
      uses: runners.command
      params: {command: date}
"""


def pipeline(text: str) -> PipelineSpec:
    return parse_pipeline(parse_document(text.encode(), "p.yaml"))


def step(**fields: Any) -> Step:
    return Step(id="a", uses="runners.command", **fields)


def test_the_original_example_loads_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(ORIGINAL)
    document = read_document(tmp_path / "p.yaml")
    spec = parse_pipeline(document)
    train, evaluate = spec.steps
    assert (spec.name, train.id, evaluate.id) == ("general_e2e", "train_hf", "eval_hf")
    assert (train.backend, train.scheduler, train.after) == ("hf", "local", None)
    assert train.params == {"model": "distilbert-base-uncased", "dataset": "glue"}
    assert train.outputs == {"out": "artifacts/checkpoints/hf_baseline"}
    assert {name: entry.path for name, entry in evaluate.inputs.items()} == {
        "config": "nexa_train/configs/baseline.yaml",
        "checkpoint": "artifacts/checkpoints/hf_baseline",
    }
    assert document.line_of(("pipeline", "steps", 1, "in", "config")) == 15


def test_everything_that_may_be_said_is_understood() -> None:
    prepare, train, note = pipeline(FULL).steps
    assert prepare.inputs == {"input": InputSpec(path="raw/data.csv")}
    assert prepare.outputs == {"train": "data/train", "test": "data/test"}
    assert (prepare.after, train.after, note.after) == ([], ["prepare"], None)
    assert prepare.resources.nodes == 1
    assert prepare.resources.gpus_per_node == 0
    assert prepare.resources.slurm.extra == {"mail-type": "END", "requeue": True}
    assert prepare.env.setup == ["source ${HOME}/setup.sh"]
    assert prepare.env.secrets == ["HF_TOKEN"]
    assert train.inputs["model"] == InputSpec(path="models:base@prod", digest="none")
    assert train.params["deep"] == {"list": [1, None, True, "x"]}
    assert train.params["text"] == "${not.interpolated}", "nothing is interpolated here"
    assert (train.key_resources, note.key_resources) == (True, False)
    assert (note.inputs, note.outputs, note.out) == ({}, {}, None)


def test_what_is_not_declared_has_its_default() -> None:
    bare = step()
    assert bare.resources == ResourcesSpec()
    assert bare.env == EnvSpec()
    assert (bare.backend, bare.scheduler, bare.after, bare.cache_hint, bare.scope) == (None,) * 5
    assert (bare.params, bare.labels, bare.inputs) == ({}, {}, {})


@pytest.mark.parametrize("key", ["in", "out", "params", "after", "resources", "env", "labels"])
def test_a_key_with_nothing_behind_it_is_as_good_as_absent(key: str) -> None:
    text = (
        f"pipeline:\n  name: p\n  steps:\n    - id: a\n      uses: runners.command\n      {key}:\n"
    )
    assert pipeline(text).steps[0] == step()


@pytest.mark.parametrize("name", ["a", "A.b-c_9", ".hidden", "-x", "x" * 64, "..a", "0"])
def test_a_name_may_be(name: str) -> None:
    assert Step(id=name, uses="x").id == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", ".", "..", "...", "ä", "a\n", "a:b"])
def test_a_name_may_not_be(name: str) -> None:
    with pytest.raises(SpecError, match="id: "):
        Step(id=name, uses="x")
    with pytest.raises(SpecError):
        step(inputs={name: "p"})
    with pytest.raises(SpecError):
        step(out={name: "p"})
    with pytest.raises(SpecError):
        step(labels={name: "x"})


@pytest.mark.parametrize("name", ["records", "work", "digests", "serve"])
def test_a_pipeline_may_not_take_the_name_of_a_folder_of_the_state(name: str) -> None:
    with pytest.raises(SpecError, match=r"folder of \.nexa_state itself"):
        PipelineSpec(name=name, steps=(step(),))


# -------------------------------------------------------------------------------- made in Python


def test_paths_tuples_and_sections_of_our_own_may_be_given_in_python() -> None:
    made = step(
        inputs={"a": Path("x/y"), "b": InputSpec(path="z", digest="stat"), "c": {"path": "w"}},
        out={"model": Path("out/m")},
        after=("b", "c"),
        resources=ResourcesSpec(nodes=2),
        env=EnvSpec(setup="true"),  # type: ignore[arg-type]
    )
    assert {name: entry.path for name, entry in made.inputs.items()} == {
        "a": "x/y", "b": "z", "c": "w",
    }  # fmt: skip
    assert made.outputs == {"model": "out/m"}
    assert made.after == ["b", "c"]
    assert made.resources.nodes == 2
    assert step(inputs=Path("p")).inputs["input"].path == "p"
    assert step(out=Path("p")).outputs == {"out": "p"}


def test_a_mistake_in_python_is_told_in_the_same_words() -> None:
    with pytest.raises(SpecError) as caught:
        step(resources={"gpus_per_nodes": 8}, after="b")
    assert [str(problem).partition(" (allowed")[0] for problem in caught.value.problems] == [
        "step 'a': after: expected a list of step ids, got text: write `after: [b]`",
        "step 'a': resources.gpus_per_nodes: unknown key 'gpus_per_nodes';"
        " did you mean 'gpus_per_node'?",
    ]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), (1, 2), Path("x"), {1: 2}, {"x": [object()]}, b"x"]
)
def test_params_hold_only_what_json_has(value: object) -> None:
    with pytest.raises(SpecError, match=r"step 'a': params\.p: "):
        step(params={"p": value})


def test_a_step_is_frozen() -> None:
    with pytest.raises(ValidationError):
        step().uses = "other"


def test_a_pipeline_of_steps_made_in_python_has_a_step_at_least() -> None:
    assert PipelineSpec(name="p", steps=(step(),)).steps == (step(),)
    with pytest.raises(SpecError, match="steps: a pipeline has at least one step"):
        PipelineSpec(name="p", steps=())


# ------------------------------------------------------------------------------------- as JSON


def test_a_step_as_json_holds_what_was_declared_and_no_more() -> None:
    prepare, train, note = map(to_json, pipeline(FULL).steps)
    assert note == {"id": "note", "uses": "runners.command", "params": {"command": "date"}}
    assert prepare["in"] == {"input": "raw/data.csv"}
    assert prepare["after"] == []
    assert prepare["resources"] == {
        "nodes": 1, "cpus_per_task": 2, "mem_gb": 4, "gpus_per_node": 0, "timeout_min": 30,
        "slurm": {"extra": {"mail-type": "END", "requeue": True}},
    }  # fmt: skip
    assert train["in"] == {
        "data": "data/train",
        "model": {"path": "models:base@prod", "digest": "none"},
    }
    assert train["out"] == "out/model"


@pytest.mark.parametrize("text", [ORIGINAL, FULL], ids=["original", "full"])
def test_a_step_as_json_reads_back_as_the_same_step(text: str) -> None:
    for declared in pipeline(text).steps:
        assert Step(**to_json(declared)) == declared


# --------------------------------------------------------------------------------------- speed


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml is slow")
def test_reading_and_checking_a_thousand_steps_is_cheaper_than_loading_them_with_pyyaml(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("pipeline:\n  name: p\n  steps:\n" + "".join(
        f"    - id: s{n}\n      uses: runners.command\n      out: artifacts/{n}\n"
        f"      params: {{command: echo {n}, seed: {n}}}\n      after: []\n"
        for n in range(1000)
    ))  # fmt: skip

    def best(read: Any) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            read()
            times.append(time.process_time() - start)
        return min(times)

    ours = best(lambda: parse_pipeline(read_document(path)))
    theirs = best(lambda: yaml.load(path.read_bytes(), yaml.CSafeLoader))
    assert ours < theirs
