"""Composing one pipeline: overrides on a plain file, Hydra's primary configuration, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from composing import Composing, composing
from conftest import RunCli, child_environment

from nexa_hpc.core.cluster import SlurmPolicy
from nexa_hpc.core.document import parse_document, read_document
from nexa_hpc.core.overriding import SECTION_FIELDS, STEP_FIELDS, override
from nexa_hpc.core.retries import RetrySpec
from nexa_hpc.core.spec import Step, parse_pipeline
from nexa_hpc.core.spec_sections import EnvSpec, ResourcesSpec
from nexa_hpc.errors import SpecError, UserError

__all__ = ["composing"]


def test_the_fields_that_may_be_overridden_are_those_of_the_models() -> None:
    fields = {"in" if name == "inputs" else name for name in Step.model_fields}
    assert set(STEP_FIELDS) == fields
    for section, model in (("resources", ResourcesSpec), ("env", EnvSpec), ("retry", RetrySpec)):
        assert set(SECTION_FIELDS[section]) == set(model.model_fields)


# ------------------------------------------------------------------------------------------- plain


def test_a_plain_file_is_itself_and_imports_no_hydra(composing: Composing) -> None:
    found = composing.compose("plain.yaml")
    assert found.document.value == read_document(composing.root / "plain.yaml").value
    assert found.is_plain
    code = (
        "import sys; from pathlib import Path\n"
        "from nexa_hpc.compose.document import compose_pipeline\n"
        "compose_pipeline(Path('plain.yaml'), Path('.'))\n"
        "print('hydra' in sys.modules, 'omegaconf' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=composing.root,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_interpolations_in_a_plain_file_are_literal_with_and_without_overrides(
    composing: Composing,
) -> None:
    assert composing.params("plain.yaml")["prep"] == {"command": "echo ${HOME}"}
    found = composing.params("plain.yaml", "steps.prep.params.x='${a.b}'")
    assert found["prep"] == {"command": "echo ${HOME}", "x": "${a.b}"}


def test_steps_are_named_by_ids_and_values_are_in_hydra_s_grammar(composing: Composing) -> None:
    found = composing.compose(
        "plain.yaml",
        "steps.train-x.1.params.lr=3e-5",
        "steps.train-x.1.resources.gpus_per_node=4",
        "steps.train-x.1.params.names=[a,b]",
        "steps.train-x.1.params.opt={name: adam}",
        "steps.train-x.1.params.path=/a/b.c",
        "pipeline.labels.project=demo",
        "~steps.prep",
    )
    pipeline = found.document.value["pipeline"]
    (step,) = pipeline["steps"]
    assert step["params"] == {
        "command": "true",
        "lr": 3e-5,
        "names": ["a", "b"],
        "opt": {"name": "adam"},
        "path": "/a/b.c",
    }
    assert step["resources"] == {"gpus_per_node": 4}
    assert pipeline["labels"] == {"project": "demo"}
    assert parse_pipeline(found.document).steps[0].id == "train-x.1"


@pytest.mark.parametrize("name", ["plain.yaml", "composed.yaml"])
def test_a_no_op_override_changes_no_key(composing: Composing, name: str, run_cli: RunCli) -> None:
    def keys(*overrides: str) -> list[str]:
        steps = json.loads(run_cli("plan", name, *overrides, "--json").stdout)["steps"]
        return [step["key"] for step in steps]

    value = "steps.train-x.1.params.lr=1" if name == "plain.yaml" else "train.lr=1e-3"
    assert keys() == keys("pipeline.name=p") == keys(value)
    assert keys("scheduler=local", "cluster=generic") == keys()
    assert keys(value.replace("=1", "=2")) != keys()


def test_lines_of_the_file_stay_known_below_an_override(composing: Composing) -> None:
    document = composing.compose("plain.yaml", "steps.train-x.1.params.new=1").document
    assert document.line_of(("pipeline", "steps", 1, "params", "lr")) == 11
    assert document.line_of(("pipeline", "steps", 1, "params", "new")) == 9
    with pytest.raises(SpecError, match=r"plain\.yaml:.*uses"):
        parse_pipeline(composing.compose("plain.yaml", "steps.prep.uses=[1]").document)


def test_unknown_keys_at_the_top_are_still_told_with_their_line(composing: Composing) -> None:
    for name in ("plain.yaml", "composed.yaml"):
        text = (composing.root / name).read_text()
        composing.write(name, f"sed: 1\n{text}")
        with pytest.raises(SpecError, match=rf"{name}:1: sed: unknown key"):
            parse_pipeline(composing.compose(name, "pipeline.labels.a=b").document)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps.train-x.params.lr=1", "no step 'train-x'; did you mean 'train-x.1'?"),
        ("steps.pre.params.lr=1", "no step 'pre'; did you mean 'prep'?"),
        ("steps.1.params.lr=1", "steps are named by their ids, not by number"),
        ("steps.prep.parms.x=1", "unknown key 'parms'; did you mean 'params'?"),
        ("steps.prep.resources.gpu_per_node=1", "did you mean 'gpus_per_node'?"),
        ("steps.prep.id=x", "a step's id cannot be overridden"),
        ("step.prep.params.x=1", "there is no 'step'; did you mean 'steps'?"),
        ("prep.params.x=1", "did you mean 'steps.prep'?"),
        ("pipeline.nam=x", "there is no 'nam'; did you mean 'name'?"),
        ("~steps.prep.params.x", "there is no 'x'"),
        ("~steps.prep.params.command=no", "so this does not delete it"),
        ("+steps.prep.params.command=x", "it is there already"),
        ("steps.prep.params.command.x=1", "is a plain value"),
        ("steps.prep.params.lr=a=b", "not understood at '=b' (character 23)"),
        ("steps.prep.params.lr={a:[1}", "not understood at"),
        ("steps.prep.params.lr=nan", "not a finite number"),
        ("steps.prep.params.lr", "a value is missing"),
        ("=3", "expected KEY=VALUE"),
        ("train=small", "has no `defaults:`"),
        ("hydra.run.dir=x", "settings of Hydra itself"),
        ("scheduler=slrm", "did you mean 'slurm'?"),
        ("scheduler.max_runing=4", "did you mean 'max_running'?"),
        ("cluster.login_policy=maybe", "expected 'warn', 'refuse' or 'allow'"),
        ("steps.prep.params.lr=1,2", "add -m (--multirun)"),
        ("steps.prep.params.lr=range(1,3)", "a sweep of 2 values"),
    ],
)
def test_a_mistake_is_told_with_its_text_and_the_nearest_name(
    composing: Composing, text: str, told: str
) -> None:
    message = composing.refused("plain.yaml", text)
    assert f"override '{text}'" in message
    assert told in message


def test_overriding_in_python_takes_values_and_refuses_alike() -> None:
    text = b"pipeline: {name: p, steps: [{id: a, uses: x, params: {b: 1}}]}"
    document = parse_document(text, "p")
    found = override(document, {"steps.a.params.b": 2, "+steps.a.params.c.d": None})
    assert found.value["pipeline"]["steps"][0]["params"] == {"b": 2, "c": {"d": None}}
    assert document.value["pipeline"]["steps"][0]["params"] == {"b": 1}
    with pytest.raises(UserError, match="did you mean 'steps'"):
        override(document, {"step.a.params.b": 2})


# ---------------------------------------------------------------------------------------- composed


def test_a_file_with_defaults_is_hydra_s_primary_configuration(composing: Composing) -> None:
    assert composing.params("composed.yaml") == {
        "prep": {"command": "echo '${' ${HOME:-x}", "seed": 3},
        "train": {
            "command": "true",
            "lr": 1e-3,
            "bs": 8,
            "opt": {"name": "adam", "betas": [1, 2]},
        },
        "eval": {"command": "true", "name": "lr 0.001 adam"},
    }


def test_options_and_their_values_are_chosen_from_outside(composing: Composing) -> None:
    found = composing.params(
        "composed.yaml", "steps.train.params.lr=7", "train=big", "train.bs=9", "+train.extra=1"
    )
    assert (found["train"]["lr"], found["train"]["bs"], found["train"]["extra"]) == (7, 9, 1)
    assert found["eval"]["name"] == "lr 0.0001 sgd"


def test_a_preset_of_a_higher_layer_takes_the_place_of_a_lower_one(
    composing: Composing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lr(**how: object) -> object:
        return composing.params("composed.yaml", "train=mine", **how)["train"]["lr"]

    text = "command: 'true'\nlr: {}\nopt: {{name: x}}\n"
    monkeypatch.setenv("NEXA_HPC_SITE", str(composing.site))
    composing.write("train/mine.yaml", text.format(1), composing.site)
    assert lr() == 1
    composing.write("train/mine.yaml", text.format(2), composing.user)
    assert lr() == 2
    composing.write("configs/train/mine.yaml", text.format(3))
    assert lr() == 3
    more = composing.write("train/mine.yaml", text.format(4), tmp_path / "more").parent.parent
    assert lr(config_dirs=[more]) == 4


def test_other_interpolations_are_omegaconf_s(
    composing: Composing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "me")
    text = (composing.root / "composed.yaml").read_text()
    composing.write("composed.yaml", text.replace("${train.lr}", "${oc.env:WHO} ${train.lr}"))
    assert composing.params("composed.yaml")["eval"]["name"] == "lr me 0.001 adam"


def test_the_value_of_a_secret_gets_into_no_composed_document(
    composing: Composing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("MINE", "canary")
    text = (composing.root / "composed.yaml").read_text()
    text = text.replace("- id: prep\n", "- id: prep\n      env: {secrets: [MINE]}\n")
    composing.write("composed.yaml", text)
    for given in ("+train.key='${oc.env:HF_TOKEN}'", "x-seed='${oc.env:MINE}'"):
        told = composing.refused("composed.yaml", given)
        assert "would write the value of" in told
    composing.write("composed.yaml", text.replace("x-seed: 3", "x-seed: '${oc.env:MINE}'"))
    assert "would write the value of MINE" in composing.refused("composed.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train=bigg", "no such option; did you mean 'big'? (there: big, classify, lora, small"),
        ("train.br=1", "`+train.br=1` adds it"),
        ("prep.params.x=1", "there is no 'prep'; did you mean 'steps.prep'?"),
        ("~train", "there is no 'train'"),
        ("x-sed=1", "did you mean 'x-seed'?"),
        ("train=small,big", "a sweep of 2 values"),
        ("x-seed=${x-seed}", "refers to itself"),
        ("x-seed='${nope}'", "there is no 'nope'"),
        ("x-seed='${oc.env:NOT_SET_AT_ALL}'", "NOT_SET_AT_ALL"),
        ("x-seed='${oc.nope:1}'", "oc.nope"),
        ("x-seed=???", "has no value yet"),
    ],
)
def test_a_mistake_in_composing_is_told_without_a_traceback(
    composing: Composing, text: str, told: str
) -> None:
    message = composing.refused("composed.yaml", text)
    assert told in message
    assert "Traceback" not in message


def test_a_wrong_option_in_the_file_itself_is_told_with_those_there_are(
    composing: Composing,
) -> None:
    text = (composing.root / "composed.yaml").read_text()
    composing.write("composed.yaml", text.replace("train: small", "train: smal"))
    assert "did you mean 'small'?" in composing.refused("composed.yaml")
    composing.write("composed.yaml", text.replace("train: small", "cluster: generik"))
    told = composing.refused("composed.yaml")
    assert "composed.yaml:2: defaults: cluster: no such option 'generik'; did you mean" in told


def test_a_broken_plugin_of_somebody_else_is_named(
    composing: Composing, tmp_path: Path, run_cli: RunCli
) -> None:
    plugins = tmp_path / "elsewhere"
    composing.write("hydra_plugins/hydra_broken.py", "raise ValueError('mutable default')", plugins)
    composing.write(
        "hydra_broken_sweeper-1.0.dist-info/METADATA",
        "Metadata-Version: 2.1\nName: hydra-broken-sweeper\nVersion: 1.0\n",
        plugins,
    )
    composing.write(
        "hydra_broken_sweeper-1.0.dist-info/RECORD", "hydra_plugins/hydra_broken.py,,\n", plugins
    )
    path = f"{child_environment()['PYTHONPATH']}:{plugins}"
    done = run_cli("plan", "composed.yaml", env={"PYTHONPATH": path}, expect=2)
    assert "hydra_plugins.hydra_broken of the package hydra-broken-sweeper is broken" in done.stderr
    assert "pip uninstall hydra-broken-sweeper" in done.stderr
    assert "Traceback" not in done.stderr
    run_cli("plan", "plain.yaml", env={"PYTHONPATH": path})


# --------------------------------------------------------------------------------------- recording


def test_a_run_records_what_it_was_composed_of_and_runs_again_under_it(
    composing: Composing, run_cli: RunCli
) -> None:
    overrides = ["train=big", "steps.eval.params.extra=1"]
    run_cli("run", "composed.yaml", *overrides)
    (file,) = composing.root.glob(".nexa_state/p/runs/*/run.json")
    request = json.loads(file.read_text())
    assert request["overrides"] == overrides
    recorded = json.loads(request["text"])
    assert recorded["pipeline"]["steps"][1]["params"]["bs"] == 16
    assert "3 cached" in run_cli("plan", "composed.yaml", *overrides).stdout
    done = run_cli("rerun", "composed.yaml", "--from", "eval")
    assert "note: as run p-1 was: train=big" in done.stderr
    assert "train: SKIPPED" in done.stderr + done.stdout
    composing.write("configs/train/big.yaml", "this: [is broken")
    run_cli("resume", "composed.yaml")


def test_slurm_s_policy_has_the_names_that_are_told() -> None:
    assert "max_running" in SlurmPolicy.model_fields


def test_composing_leaves_an_app_of_hydra_its_version_base(composing: Composing) -> None:
    from hydra import version

    before = version.VersionBase.instance().version_base
    try:
        version.setbase("1.2")
        composing.compose("composed.yaml", "train=big")
        assert str(version.getbase()) == "1.2"
    finally:
        version.VersionBase.instance().version_base = before
