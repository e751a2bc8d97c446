"""What `backend: axolotl` refuses, spells out and warns of at planning; axolotl is a stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axolotl_stand_in
import pytest
from hf_tiny import step_view
from planned import plan

from nexa_hpc.backends.axolotl import schema, settings
from nexa_hpc.core.handlers import StepView, find_handler

CONFIG: dict[str, Any] = {"datasets": [{"type": "chat_template"}]}
INPUTS = {"model": "models/m", "dataset": "data/d.jsonl"}


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    variables = axolotl_stand_in.install(folder)
    path = os.pathsep.join([variables["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    schema._ask.cache_clear()
    yield folder
    for process in _processes():
        process.end()
    schema._process.cache_clear()
    schema._ask.cache_clear()


def _processes() -> list[schema._Process]:
    import sys

    return [schema._process(Path(sys.executable))]


def view(
    project: Path, params: dict[str, Any], inputs: dict[str, str] | None = None, **other: Any
) -> StepView:
    given = INPUTS if inputs is None else inputs
    return step_view("runners.train", project, params, given, backend="axolotl", **other)


def problems(project: Path, *args: Any, **other: Any) -> dict[str, str]:
    found = find_handler("runners.train", project).validate(view(project, *args, **other))
    return {str(key): message for key, message in found}


def warnings(project: Path, *args: Any, **other: Any) -> list[str]:
    return find_handler("runners.train", project).warn(view(project, *args, **other))


def test_a_config_that_the_schema_takes_is_valid(project: Path) -> None:
    assert problems(project, {**CONFIG, "max_steps": 3, "merge": True, "adapter": "lora"}) == {}
    assert warnings(project, CONFIG) == []


def test_what_the_schema_refuses_is_told_by_the_name_of_the_param(project: Path) -> None:
    found = problems(project, {**CONFIG, "max_steps": 0, "learning_rate": "fast"})
    assert found["params.max_steps"] == "max_steps takes 1 or more"
    assert "number" in found["params.learning_rate"]


def test_names_that_the_schema_would_pass_over_are_refused_with_the_nearest(project: Path) -> None:
    params = {
        "datasets": [{"tpye": "chat_template"}],
        "max_stpes": 3,
        "merg": True,
        "special_tokens": {"padtoken": "x"},
    }
    found = problems(project, params)
    assert "did you mean 'type'?" in found["params.datasets.0.tpye"]
    assert "did you mean 'max_steps'?" in found["params.max_stpes"]
    assert "did you mean 'merge'?" in found["params.merg"]
    assert "did you mean 'pad_token'?" in found["params.special_tokens.padtoken"]


def test_one_process_answers_for_all_configs_and_answers_are_remembered(project: Path) -> None:
    problems(project, CONFIG)
    (process,) = _processes()
    running = process._process
    assert running is not None
    problems(project, {**CONFIG, "max_steps": 4})
    assert process._process is running
    process.end()
    assert problems(project, {**CONFIG, "max_steps": 4}) == {}
    assert process._process is None


def test_a_process_that_has_ended_for_want_of_questions_is_started_again(project: Path) -> None:
    problems(project, CONFIG)
    (process,) = _processes()
    assert process._process is not None and process._process.stdin is not None
    process._process.stdin.close()
    assert process._process.wait(10) == 0
    assert set(problems(project, {**CONFIG, "max_stpes": 4})) == {"params.max_stpes"}


def test_a_schema_that_dies_is_a_warning_and_no_refusal(project: Path, stand_in: Path) -> None:
    (stand_in / "axolotl/utils/schemas/config.py").write_text("import os; os._exit(1)")
    assert problems(project, CONFIG) == {}
    (warning,) = warnings(project, CONFIG)
    assert "was not checked: axolotl's schema gave no answer: its process ended" in warning


def test_an_environment_without_axolotl_is_refused(project: Path, stand_in: Path) -> None:
    (stand_in / "axolotl/utils/schemas/config.py").unlink()
    assert "axolotl is not installed" in problems(project, CONFIG)["backend"]


@pytest.mark.parametrize("env", [{"venv": "nowhere"}, {"setup": ["true"]}, {"container": "x.sif"}])
def test_an_environment_that_is_not_here_to_be_asked_is_a_warning(
    project: Path, env: dict[str, Any]
) -> None:
    assert problems(project, {**CONFIG, "unheard_of": 1}, env=env) == {}
    assert "checked where it runs" in warnings(project, CONFIG, env=env)[0]


def test_a_config_file_is_spelt_out_and_params_win_over_it(project: Path) -> None:
    (project / "axo.yml").write_text("max_steps: 5\nlr: 0.1\ndatasets: [{type: completion}]\n")
    inputs = {**INPUTS, "config": "axo.yml"}
    step = view(project, {"max_steps": 7}, inputs)
    handler = find_handler("runners.train", project)
    assert handler.validate(step) == []
    assert handler.resolve(step) == {
        "max_steps": 7,
        "lr": 0.1,
        "datasets": [{"type": "completion"}],
    }
    (project / "axo.yml").write_text("max_stpes: 5\ndatasets: [{type: completion}]\n")
    assert set(problems(project, {}, inputs)) == {"in.config.max_stpes"}


def test_a_config_that_another_step_makes_is_checked_when_this_one_starts(project: Path) -> None:
    inputs = {**INPUTS, "config": "made/axo.yml"}
    assert problems(project, {}, inputs) == {}
    assert "made by another step" in warnings(project, {}, inputs)[0]


def test_model_and_rows_must_be_named_once(project: Path) -> None:
    assert set(problems(project, CONFIG, {})) == {"params.base_model", "params.datasets.0.path"}
    assert set(problems(project, {})) == {"params.datasets"}
    twice = problems(project, {**CONFIG, "base_model": "x"})
    assert "keep one" in twice["params.base_model"]
    assert "did you mean 'dataset'?" in problems(project, CONFIG, {"datset": "d"})["in.datset"]


def test_what_the_step_decides_cannot_be_set(project: Path) -> None:
    params = {**CONFIG, "output_dir": "x", "resume_from_checkpoint": "y", "merge": True}
    found = problems(project, params)
    assert set(found) == {"params.output_dir", "params.resume_from_checkpoint", "params.merge"}


def test_several_processes_want_a_launcher_that_starts_them(project: Path) -> None:
    several = {"resources": {"nodes": 2, "gpus_per_node": 4}}
    found = problems(project, {**CONFIG, "launcher": "python"}, **several)
    assert "8 processes" in found["params.launcher"]
    resolved = find_handler("runners.train", project).resolve(view(project, CONFIG, **several))
    assert resolved["world_size"] == 8
    assert "torchrun" in problems(project, {**CONFIG, "launcher": "srun"})["params.launcher"]


def test_several_processes_without_gpus_are_warned_of(project: Path) -> None:
    (told,) = warnings(project, CONFIG, resources={"nodes": 2})
    assert told.startswith("axolotl trains in 2 processes only where each has a GPU")
    assert warnings(project, CONFIG, resources={"nodes": 2, "gpus_per_node": 1}) == []


def test_a_file_that_only_the_config_names_is_warned_of(project: Path) -> None:
    (project / "rows.jsonl").write_text("{}\n")
    params = {"datasets": [{"path": "rows.jsonl", "type": "completion"}]}
    (warning,) = warnings(project, params, {"model": "m"})
    assert warning.startswith(
        "rows.jsonl is named in the config, and its content is not in the key"
    )


def test_what_else_the_config_names_here_is_warned_of_and_the_model_is_in_the_key(
    project: Path,
) -> None:
    for name in ("adapter", "base"):
        (project / name).mkdir()
        (project / name / "w").write_text(name)
    config = {**CONFIG, "base_model": "base", "adapter": "lora"}
    (project / "axo.yml").write_text(json.dumps({**config, "lora_model_dir": "adapter"}))
    inputs = {"dataset": "d.jsonl", "config": "axo.yml"}
    (warning,) = warnings(project, {}, inputs, env={"container": "x.sif"})[:-1]
    assert warning.startswith("adapter is named in the config")
    (project / "d.jsonl").write_text("{}\n")
    step = {"id": "s", "uses": "runners.train", "backend": "axolotl", "in": inputs}
    step["env"] = {"container": "x.sif"}
    step["scheduler"] = "slurm"
    first = plan(project, step).instances["s"]
    assert first.inputs["base_model"]["path"] == str(project / "base")
    (project / "base/w").write_text("other")
    assert plan(project, step).instances["s"].key != first.key


def test_rows_of_one_input_are_at_one_revision(project: Path, stand_in: Path) -> None:
    file = stand_in / "axolotl/utils/schemas/datasets.py"
    file.write_text(file.read_text() + "    revision: str | None = None\n")
    rows = [{"type": "a", "revision": "v1"}, {"type": "b"}]
    found = problems(project, {"datasets": rows})
    assert set(found) == {"params.datasets.1.revision"}
    assert "give these entries a `path` each" in found["params.datasets.1.revision"]
    rows[1]["path"] = "org/rows"
    assert problems(project, {"datasets": rows}) == {}


def test_rows_get_the_path_and_the_format_of_the_input() -> None:
    given = {**CONFIG, "test_datasets": [{"path": "own", "type": "x"}], "merge": True}
    config = settings.filled(given, "/m", "/d/train.jsonl", "/d/test.csv")
    assert config == {
        "base_model": "/m",
        "datasets": [
            {"path": "/d/train.jsonl", "ds_type": "json", "split": "train", "type": "chat_template"}
        ],
        "test_datasets": [{"path": "own", "type": "x"}],
    }
    preferred = settings.filled({**CONFIG, "rl": "dpo"}, None, "/d/train.csv", None)
    assert "ds_type" not in preferred["datasets"][0]
    folder = settings.filled(CONFIG, None, "/saved", None)
    assert folder["datasets"] == [{"path": "/saved", "type": "chat_template"}]
