"""The layers of configuration: who says what, what the site locks, and what is remembered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from composing import Composing, composing
from conftest import RunCli, child_environment
from test_layers import _COMMAND, HEAVY, _loaded_by

from nexa_hpc.compose import site
from nexa_hpc.compose.layering import lay
from nexa_hpc.compose.layers import GROUPS, Layer, package_folder
from nexa_hpc.compose.run_config import cluster_of, policy_of
from nexa_hpc.compose.settings import project_settings
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.errors import SpecError, UserError

__all__ = ["composing"]


@pytest.fixture
def layered(composing: Composing, monkeypatch: pytest.MonkeyPatch) -> Composing:
    """A project below a site."""
    composing.site.mkdir()
    monkeypatch.setenv("NEXA_HPC_SITE", str(composing.site))
    return composing


def config(composing: Composing, *overrides: str) -> SiteConfig:
    return composing.compose("plain.yaml", *overrides).config


def test_what_holds_without_any_layer_is_what_we_ship() -> None:
    ours = [Layer("package", package_folder())]
    assert lay(ours, GROUPS, {}, None) == site._empty(GROUPS)
    assert lay(ours, ("paths",), {}, None) == site._empty(("paths",))


def test_the_highest_layer_that_says_something_is_heard(layered: Composing) -> None:
    told = "scheduler: {{max_running: {0}, canary: {0}}}\n"
    layered.write("config.yaml", "defaults: [scheduler: slurm]\n" + told.format(1), layered.site)
    assert config(layered).scheduler == {"max_running": 1, "canary": 1}
    assert config(layered).default_scheduler == "slurm"
    layered.write("config.yaml", "scheduler: {max_running: 2}\n", layered.user)
    assert config(layered).scheduler == {"max_running": 2, "canary": 1}
    layered.write("configs/config.yaml", "scheduler: {max_running: 3}\n")
    assert config(layered).scheduler["max_running"] == 3
    found = config(layered, "scheduler.max_running=4", "scheduler=local")
    assert (found.scheduler["max_running"], found.default_scheduler) == (4, "local")
    places = [found.origins[f"scheduler.{key}"] for key in ("max_running", "canary")]
    assert [place.shown(layered.root) for place in places] == [
        "override scheduler.max_running=4",
        f"site {layered.site}/config.yaml:2",
    ]


def test_a_pipeline_stands_between_project_and_command_line(layered: Composing) -> None:
    layered.write("configs/config.yaml", "scheduler: {max_running: 3, canary: 3}\n")
    text = (layered.root / "composed.yaml").read_text()
    text = text.replace("- train: small", "- train: small\n  - scheduler: slurm")
    layered.write("composed.yaml", f"{text}\nscheduler: {{max_running: 5}}\n")
    found = layered.compose("composed.yaml").config
    assert (found.scheduler["max_running"], found.scheduler["canary"]) == (5, 3)
    assert found.default_scheduler == "slurm"
    found = layered.compose("composed.yaml", "scheduler.max_running=6", "scheduler=local").config
    assert (found.scheduler["max_running"], found.default_scheduler) == (6, "local")


def test_a_blank_option_of_ours_hides_none_of_the_site_where_our_folder_is_the_projects(
    layered: Composing, monkeypatch: pytest.MonkeyPatch
) -> None:
    layered.write("config.yaml", "defaults: [scheduler: slurm]\n", layered.site)
    layered.write("scheduler/slurm.yaml", "max_running: 7\n", layered.site)
    layered.write("configs/scheduler/slurm.yaml", "# canary: 2\n{}\n")
    assert config(layered).scheduler == {}
    monkeypatch.setattr("nexa_hpc.compose.layers.package_folder", lambda: layered.root / "configs")
    layered.write("configs/scheduler/slurm.yaml", "# canary: 3\n{}\n")
    assert config(layered).scheduler == {"max_running": 7}
    layered.write("configs/scheduler/slurm.yaml", "canary: 2\n")
    assert config(layered).scheduler == {"canary": 2}


def test_a_pipeline_may_refer_to_the_site_s_paths(layered: Composing) -> None:
    text = "paths: {scratch: /fast, data: '${paths.scratch}/d'}\n"
    layered.write("config.yaml", text, layered.site)
    text = (layered.root / "composed.yaml").read_text()
    layered.write("composed.yaml", text.replace("${train.lr}", "${paths.data}"))
    assert layered.params("composed.yaml")["eval"]["name"] == "lr /fast/d adam"


def test_the_cluster_is_found_by_its_name_unless_one_is_chosen(layered: Composing) -> None:
    layered.write("cluster/mini.yaml", "defaults: {account: a}\n", layered.site)
    layered.write("configs/cluster/other.yaml", "name: mini\ndefaults: {account: b}\n")
    assert cluster_of(config(layered), "mini").defaults.account == "a"
    assert cluster_of(config(layered), "unknown").defaults.account is None
    chosen = config(layered, "cluster=other")
    assert cluster_of(chosen, "mini").defaults.account == "b"
    with pytest.raises(UserError, match="describes the cluster 'mini', and this host belongs"):
        cluster_of(chosen, "elsewhere")


def test_what_is_wrong_in_a_layer_is_told_with_its_line(layered: Composing) -> None:
    file = layered.write("configs/scheduler/slurm.yaml", "canary: 1\nmax_runing: 4\n")
    with pytest.raises(SpecError, match=rf"{file}:2: max_runing: unknown key.*'max_running'"):
        policy_of(config(layered))
    file.unlink()
    for text, told in (
        ("schedular: {}\n", "did you mean 'scheduler'"),
        ("defaults: [cluster: nope]\n", "cluster=nope: no such option"),
        ("locked: [scheduler.canary]\n", "only the site's layer locks values"),
        ("scheduler: 3\n", "expected a mapping"),
    ):
        layered.write("configs/config.yaml", text)
        with pytest.raises(UserError, match=re.escape(told)) as caught:
            config(layered)
        assert f"{layered.root}/configs/config.yaml:1" in str(caught.value)


def test_a_config_of_the_project_s_own_programs_is_left_alone(layered: Composing) -> None:
    text = "defaults: [model: bert, _self_]\nmodel: {x: 1}\nhydra: {run: {dir: x}}\n"
    layered.write("configs/config.yaml", text)
    assert config(layered).scheduler == {}
    layered.write("config.yaml", text, layered.user)
    with pytest.raises(SpecError, match="model"):
        config(layered)


# ------------------------------------------------------------------------------------------- locks


def test_what_the_site_locks_is_refused_with_who_and_where(layered: Composing) -> None:
    layered.write(
        "config.yaml",
        "scheduler: {canary: 2, max_running: 10}\n"
        "cluster: {login_policy: refuse, min_poll_interval_s: 30}\n"
        "locked: [scheduler.canary, scheduler.max_running, cluster.login_policy,\n"
        "  cluster.min_poll_interval_s, paths.store]\n",
        layered.site,
    )
    assert config(layered).cluster["login_policy"] == "refuse"
    for override in (
        "scheduler.canary=1",
        "scheduler.max_running=11",
        "cluster.login_policy=allow",
        "cluster.min_poll_interval_s=1",
        "paths.store=/x",
    ):
        key, _, value = override.partition("=")
        with pytest.raises(UserError) as caught:
            config(layered, override)
        assert f"{key} is locked at" in str(caught.value)
        assert f"site {layered.site}/config.yaml:" in str(caught.value)
        assert f"override {override} says {value}" in str(caught.value)
    config(layered, "scheduler.canary=2")
    layered.write("configs/config.yaml", "scheduler: {canary: 5}\n")
    with pytest.raises(UserError, match=r"project configs/config\.yaml:1 says 5"):
        config(layered)


def test_a_cap_may_be_set_to_less_and_an_interval_to_more(layered: Composing) -> None:
    layered.write(
        "config.yaml",
        "scheduler: {max_running: 10}\ncluster: {min_poll_interval_s: 30}\n"
        "locked: [scheduler.max_running, cluster.min_poll_interval_s]\n",
        layered.site,
    )
    found = config(layered, "scheduler.max_running=4", "cluster.min_poll_interval_s=60")
    assert found.scheduler["max_running"] == 4
    assert found.cluster["min_poll_interval_s"] == 60


def test_a_lock_outlives_an_option_that_hides_the_site_s(layered: Composing) -> None:
    layered.write("cluster/mini.yaml", "login_policy: refuse\n", layered.site)
    layered.write("config.yaml", "locked: [cluster.login_policy]\n", layered.site)
    layered.write("configs/cluster/mini.yaml", "max_submit: 5\n")
    assert cluster_of(config(layered), "mini").login_policy == "refuse"
    layered.write("configs/cluster/mini.yaml", "login_policy: allow\n")
    with pytest.raises(UserError, match="login_policy is locked at refuse"):
        cluster_of(config(layered), "mini")


# --------------------------------------------------------------------------------- paths, settings


def test_paths_are_set_once_for_all_projects_and_nexa_yaml_stands_above(
    layered: Composing,
) -> None:
    layered.write("config.yaml", "retention: {runs_days: 7}\n", layered.site)
    layered.write("paths/default.yaml", "store: /big/store\nwork: /fast/work\n", layered.user)
    found = project_settings(layered.root)
    assert (found.store, found.work, found.retention.runs_days) == ("/big/store", "/fast/work", 7)
    (layered.root / "nexa.yaml").write_text("paths: {store: here}\n")
    assert project_settings(layered.root).store == "here"
    composed = layered.compose("plain.yaml", "paths.store=/there")
    assert project_settings(layered.root, composed.config).store == "/there"
    with pytest.raises(UserError, match="`status` and `models` would not find it"):
        layered.compose("plain.yaml", "paths.state=/x")
    text = "paths: {store: /big/store}\nlocked: [paths.store]\n"
    layered.write("config.yaml", text, layered.site)
    with pytest.raises(UserError, match=r"paths\.store is locked at /big/store"):
        project_settings(layered.root)


def test_a_variable_may_stand_in_a_path_but_never_a_secret(
    layered: Composing, monkeypatch: pytest.MonkeyPatch
) -> None:
    layered.write("config.yaml", "paths: {work: '/scratch/${oc.env:WHO}'}\n", layered.site)
    for who in ("ann", "bob", "ann"):
        monkeypatch.setenv("WHO", who)
        assert project_settings(layered.root).work == f"/scratch/{who}"
    layered.write("config.yaml", "paths: {work: '${oc.env:HF_TOKEN}'}\n", layered.site)
    with pytest.raises(UserError, match="would write the value of HF_TOKEN"):
        project_settings(layered.root)


# -------------------------------------------------------------------------------------- remembered


def test_the_answer_is_remembered_under_the_digest_of_the_files(
    layered: Composing, tmp_path: Path
) -> None:
    kept = tmp_path / "cache/nexa_hpc/config"
    layered.write("config.yaml", "scheduler: {canary: 1}\n", layered.site)
    first = site_config(layered.root)
    (file,) = kept.iterdir()
    assert (kept.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert site_config(layered.root).scheduler == first.scheduler == {"canary": 1}
    layered.write("config.yaml", "scheduler: {canary: 2}\n", layered.site)
    assert site_config(layered.root).scheduler == {"canary": 2}
    file.write_text("{torn")
    layered.write("config.yaml", "scheduler: {canary: 1}\n", layered.site)
    assert site_config(layered.root).scheduler == {"canary": 1}


def test_status_loads_no_yaml_where_the_layers_are_known(layered: Composing) -> None:
    layered.write("config.yaml", "paths: {work: /w}\n", layered.site)
    (layered.root / "nexa.yaml").unlink()
    (layered.root / ".nexa_state").mkdir()
    project_settings(layered.root)
    loaded = _loaded_by(_COMMAND.format(args=["status"]), layered.root)
    assert not loaded & {*HEAVY, "yaml"}


def test_plain_steps_that_declare_nothing_run_where_the_site_says(
    layered: Composing, run_cli: RunCli
) -> None:
    def keys(*overrides: str) -> list[str]:
        told = json.loads(run_cli("plan", "plain.yaml", *overrides, "--json").stdout)
        return [step["key"] for step in told["steps"]]

    before = keys()
    layered.write("config.yaml", "defaults: [scheduler: slurm]\n", layered.site)
    assert keys("scheduler=local") == before
    assert child_environment()["NEXA_HPC_SITE"] == str(layered.site)
    told = run_cli("plan", "plain.yaml", expect=None, env={"PATH": "/nowhere"})
    assert told.returncode in (2, 4)
    assert "lurm" in told.stderr
