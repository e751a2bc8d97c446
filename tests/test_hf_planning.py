"""What `runners.train` and `runners.eval` refuse and spell out at planning, importing no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment

pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import step_view
from planned import command, plan, run

from nexa_hpc.backends.hf import hub, installed
from nexa_hpc.core.handlers import find_handler

MODEL_AND_DATASET = {"model": "distilbert-base-uncased", "dataset": "glue"}


def problems(uses: str, project: Path, params: dict[str, Any], **view: Any) -> dict[str, str]:
    """Return key -> message of what planning finds wrong."""
    found = find_handler(uses, project).validate(step_view(uses, project, params, **view))
    return {str(key): message for key, message in found}


def train_problems(
    project: Path, view: dict[str, Any] | None = None, **params: Any
) -> dict[str, str]:
    return problems("runners.train", project, {**MODEL_AND_DATASET, **params}, **(view or {}))


def test_the_original_form_is_valid_and_glue_means_sst2(project: Path) -> None:
    view = step_view("runners.train", project, MODEL_AND_DATASET, backend="hf")
    handler = find_handler("runners.train", project)
    assert handler.validate(view) == []
    assert handler.resolve(view) == {**MODEL_AND_DATASET, "dataset_config": "sst2"}


def test_every_training_argument_is_accepted_and_a_misspelt_one_is_corrected(project: Path) -> None:
    assert train_problems(project, learning_rate=2e-5, weight_decay=0, eval_strategy="epoch") == {}
    found = train_problems(project, learning_rte=2e-5, max_lenght=3)
    assert "did you mean 'learning_rate'?" in found["params.learning_rte"]
    assert "did you mean 'max_length'?" in found["params.max_lenght"]


def test_the_known_training_arguments_are_those_of_transformers() -> None:
    import dataclasses

    from transformers import TrainingArguments

    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert fields <= set(installed.training_arguments())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "fast", "a number"),
        ("max_steps", 2.5, "a whole number"),
        ("max_train_rows", 0, "above 0"),
        ("bf16", "yes", "true or false"),
        ("task", "translation", "text_classification or causal_lm"),
        ("model_sha256", "53aa", "64 hex digits"),
        ("text_columns", ["a", "b", "c"], "one or two"),
        ("lora", 8, "a mapping"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    project: Path, name: str, value: object, expected: str
) -> None:
    assert expected in train_problems(project, **{name: value})[f"params.{name}"]


def test_model_and_dataset_must_be_named(project: Path) -> None:
    assert set(problems("runners.train", project, {})) == {"params.model", "params.dataset"}
    inputs = {"model": "m", "dataset": "d"}
    assert problems("runners.train", project, {}, inputs=inputs) == {}


def test_an_unknown_input_is_refused_with_the_nearest_name(project: Path) -> None:
    found = train_problems(project, {"inputs": {"datset": "d"}})
    assert "did you mean 'dataset'?" in found["in.datset"]


def test_other_backends_are_refused_until_they_exist(project: Path) -> None:
    assert "did you mean 'axolotl'?" in train_problems(project, {"backend": "axolotle"})["backend"]
    assert (
        "vllm"
        in problems("runners.eval", project, {"model": "m", "dataset": "d"}, backend="vllm")[
            "backend"
        ]
    )


@pytest.mark.parametrize("uses", ["runners.train", "runners.eval"])
def test_what_only_a_config_file_names_is_in_the_key_by_its_content(
    project: Path, uses: str
) -> None:
    (project / "model").mkdir()
    (project / "model/config.json").write_text("{}")
    (project / "rows.csv").write_text("text,label\na,b\n")
    settings = {"model": "model", "dataset": "rows.csv", "task": "text_classification"}
    (project / "c.yaml").write_text(json.dumps(settings))
    step = {"id": "s", "uses": uses, "in": {"config": "c.yaml"}, "out": "out/s"}
    first = plan(project, step).instances["s"]
    assert set(first.inputs) == {"config", "model", "dataset"}
    assert first.inputs["dataset"]["path"] == str(project / "rows.csv")
    assert first.params["dataset"] == "rows.csv"
    assert not {"model", "dataset"} & set(first.document["params"])
    (project / "rows.csv").write_text("text,label\nc,d\n")
    second = plan(project, step).instances["s"]
    assert second.key != first.key
    (project / "model/config.json").write_text("{ }")
    assert plan(project, step).instances["s"].key != second.key


def test_the_model_of_a_config_file_is_no_input_beside_a_checkpoint(project: Path) -> None:
    for name in ("model", "checkpoint"):
        (project / name).mkdir()
        (project / name / "config.json").write_text("{}")
    (project / "c.yaml").write_text("model: model\ndataset: org/rows\n")
    inputs = {"config": "c.yaml", "checkpoint": "checkpoint"}
    step = {"id": "s", "uses": "runners.eval", "in": inputs}
    assert set(plan(project, step).instances["s"].inputs) == {"config", "checkpoint", "dataset"}


def test_what_a_config_file_names_and_a_step_makes_is_warned_of(project: Path) -> None:
    made = command("made", 'echo text,label > "$OUT/rows.csv"', out="out/d")
    (project / "c.yaml").write_text("model: org/tiny\ndataset: out/d/rows.csv\n")
    step = {"id": "s", "uses": "runners.eval", "in": {"config": "c.yaml"}}
    before = plan(project, made, step)
    run(project, made)
    after = plan(project, made, step)
    assert (project / "out/d/rows.csv").is_file()
    assert after.instances["s"].key == before.instances["s"].key
    for planned in (before, after):
        (told,) = [w for w in planned.warnings if "out/d/rows.csv" in w]
        assert told == (
            "step 's': out/d/rows.csv is named in the config, and its content is not in the key: "
            "step 'made' makes it; name it by `in: {dataset: …}`"
        )


def test_a_global_batch_must_be_divisible(project: Path) -> None:
    resources = {"resources": {"nodes": 2, "tasks_per_node": 4}}
    found = train_problems(project, resources, global_batch_size=36, per_device_train_batch_size=4)
    assert (
        "36 is not divisible by 32 (8 devices x 4 rows on each)"
        in found["params.global_batch_size"]
    )
    assert train_problems(project, resources, global_batch_size=64) == {}


def test_a_global_batch_and_gradient_accumulation_exclude_each_other(project: Path) -> None:
    found = train_problems(project, global_batch_size=64, gradient_accumulation_steps=2)
    assert "keep one" in found["params.global_batch_size"]


def test_what_the_engine_decides_cannot_be_set(project: Path) -> None:
    found = train_problems(project, output_dir="elsewhere", resume_from_checkpoint="x")
    assert set(found) == {"params.output_dir", "params.resume_from_checkpoint"}


def test_lora_takes_the_fields_of_peft_and_merge(project: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra [hf]")
    assert train_problems(project, lora={"r": 8, "lora_alpha": 16, "merge": True}) == {}
    found = train_problems(project, lora={"lora_alhpa": 16, "merge": "no"})
    assert "did you mean 'lora_alpha'?" in found["params.lora.lora_alhpa"]
    assert "params.lora.merge" in found


def test_the_world_size_is_spelt_out_unless_the_global_batch_is_fixed(project: Path) -> None:
    handler = find_handler("runners.train", project)
    resources = {"nodes": 2, "gpus_per_node": 4}
    view = step_view("runners.train", project, MODEL_AND_DATASET, resources=resources)
    assert handler.resolve(view)["world_size"] == 8
    fixed = {**MODEL_AND_DATASET, "global_batch_size": 64}
    view = step_view("runners.train", project, fixed, resources=resources)
    assert "world_size" not in handler.resolve(view)


def test_a_config_file_is_checked_and_spelt_out(project: Path) -> None:
    (project / "good.yaml").write_text("learning_rate: 2e-5\nnum_train_epochs: 2\n")
    (project / "bad.yaml").write_text("learning_rte: 2e-5\n")
    (project / "broken.yaml").write_text("learning_rate: [\n")
    inputs = {"config": "good.yaml"}
    view = step_view("runners.train", project, {**MODEL_AND_DATASET, "learning_rate": 1}, inputs)
    resolved = find_handler("runners.train", project).resolve(view)
    assert (resolved["learning_rate"], resolved["num_train_epochs"]) == (1, 2)
    found = train_problems(project, {"inputs": {"config": "bad.yaml"}})
    assert "did you mean 'learning_rate'?" in found["in.config.learning_rte"]
    assert (
        "broken.yaml" in train_problems(project, {"inputs": {"config": "broken.yaml"}})["in.config"]
    )


def test_an_evaluation_config_is_checked_where_it_can_be_read(project: Path) -> None:
    (project / "good.yaml").write_text("model: m\ndataset: glue\nsplit: validation\n")
    (project / "bad.yaml").write_text("datset: glue\nbatch_size: 0\nmetrics: [acuracy]\n")
    good, bad = {"config": "good.yaml"}, {"config": "bad.yaml", "checkpoint": "c"}
    assert problems("runners.eval", project, {}, inputs=good) == {}
    found = problems("runners.eval", project, {}, inputs=bad)
    assert "did you mean 'dataset'?" in found["in.config.datset"]
    assert set(found) == {
        "in.config.datset", "in.config.batch_size", "in.config.metrics", "in.dataset",
    }  # fmt: skip
    assert problems("runners.eval", project, {}, inputs={"config": "made/by/a/step.yaml"}) == {}


def test_an_evaluation_without_model_or_data_is_refused(project: Path) -> None:
    assert set(problems("runners.eval", project, {})) == {"in.checkpoint", "in.dataset"}


def test_an_evaluation_spells_out_its_config_but_not_a_model_it_will_not_use(project: Path) -> None:
    (project / "eval.yaml").write_text("model: m\ndataset: glue\nbatch_size: 8\n")
    inputs = {"config": "eval.yaml", "checkpoint": "c", "dataset": "rows.jsonl"}
    view = step_view("runners.eval", project, {"batch_size": 4}, inputs)
    assert find_handler("runners.eval", project).resolve(view) == {"batch_size": 4}


def test_planning_says_how_to_install_what_is_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'nexa-hpc[hf]'" in train_problems(project)["backend"]


def test_what_another_environment_brings_is_not_missed_here(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    view = {"env": {"venv": "/other"}}
    assert train_problems(project, view, learning_rte=1, lora={"rr": 8}) == {}
    assert set(train_problems(project, view, max_length="long")) == {"params.max_length"}
    params = {"model": "m", "dataset": "glue"}
    assert problems("runners.eval", project, params, **view) == {}


def test_an_evaluation_in_several_tasks_is_refused(project: Path) -> None:
    params = {"model": "m", "dataset": "glue"}
    found = problems("runners.eval", project, params, resources={"nodes": 2})
    assert "runs as one task" in found["resources"]


def test_validating_imports_no_heavy_library(project: Path) -> None:
    code = """
import sys
from pathlib import Path
from nexa_hpc.core.handlers import StepView, find_handler
for uses in ("runners.train", "runners.eval"):
    params = {"model": "m", "dataset": "glue"}
    view = StepView("s", uses, None, None, params, {}, {}, {}, Path("."))
    handler = find_handler(uses, Path("."))
    assert handler.validate(view) == [], handler.validate(view)
    handler.resolve(view)
heavy = {"torch", "transformers", "datasets", "peft", "sklearn", "matplotlib", "numpy", "jinja2"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, and no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub.revision.cache_clear()
    return tmp_path


def test_without_a_hub_the_cached_revision_is_taken(hub_cache: Path) -> None:
    reference = hub_cache / "models--org--name" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc123")
    assert hub.revision("model", "org/name") == "abc123"


def test_without_hub_and_cache_there_is_no_revision(hub_cache: Path) -> None:
    assert hub.revision("dataset", "glue") is None


def test_a_branch_or_tag_is_asked_for_by_its_name(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ref, commit in (("main", "abc"), ("v1", "def")):
        reference = hub_cache / "models--org--name" / "refs" / ref
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    assert hub.revision("model", "org/name", "v1") == "def"
    pytest.importorskip("huggingface_hub")
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    def answer(self: object, name: str, revision: str | None, **_: object) -> SimpleNamespace:
        return SimpleNamespace(sha=f"{name} at {revision}")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "_silent_kinds", set())
    monkeypatch.setattr(HfApi, "model_info", answer)
    hub.revision.cache_clear()
    assert hub.revision("model", "org/name", "v1") == "org/name at v1"
    assert hub.revision("model", "org/name") == "org/name at None"
    hub.revision.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import HfApi

    asked = []

    def no_answer(self: object, name: str, **_: object) -> None:
        asked.append(name)
        raise ConnectionError

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "_silent_kinds", set())
    monkeypatch.setattr(HfApi, "model_info", no_answer)
    assert hub.revision("model", "one") is None
    assert hub.revision("model", "two") is None
    assert asked == ["one"]
