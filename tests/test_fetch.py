"""`fetch` brings what a pipeline takes from a hub; jobs without a network find it there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RunCli, child_environment
from fake_hub import FakeHub
from planned import plan

from nexa_hpc.backends.hf import hub as hub_backend
from nexa_hpc.core.hub_cache import HubName
from nexa_hpc.core.paths import ProjectPaths

if TYPE_CHECKING:
    from slurm_flows import SlurmFlow

pytest.importorskip("huggingface_hub")

CONFIG = json.dumps({"model_type": "bert", "hidden_size": 12, "num_attention_heads": 2})
MODEL = {"config.json": CONFIG, "model.safetensors": "w", "pytorch_model.bin": "pickled"}
ROWS = "".join(json.dumps({"text": f"t{n}", "label": n % 2}) + "\n" for n in range(4))
DATASET = {"README.md": "---\n---\n", "train.jsonl": ROWS, "sub/notes.txt": "n"}
TRAIN: dict[str, Any] = {
    "id": "train",
    "uses": "runners.train",
    "params": {"model": "org/tiny", "dataset": "org/rows"},
}


AXOLOTL: dict[str, Any] = {
    "id": "axo",
    "uses": "runners.train",
    "backend": "axolotl",
    "scheduler": "slurm",
    # Not here to be asked for its schema.
    "env": {"container": "axolotl.sif"},
}


@pytest.fixture
def hub(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that serves, and a project that fetches into its folder `hub`."""
    (project / "nexa.yaml").write_text("paths: {hub: hub}\n")
    served = FakeHub()
    served.add("model", "org/tiny", MODEL)
    served.add("dataset", "org/rows", DATASET)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with served.serving() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield served


def write(project: Path, *steps: dict[str, Any]) -> Path:
    file = project / "p.yaml"
    file.write_text(json.dumps({"pipeline": {"name": "p", "steps": list(steps)}}))
    return file


def snapshot(project: Path, name: str, commit: str) -> list[str]:
    folder = project / "hub" / name / "snapshots" / commit
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_every_model_and_dataset_is_brought_at_its_revision_and_recorded(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    old = next(iter(hub.repositories["model", "org/tiny"]))
    new = hub.add("model", "org/tiny", MODEL)
    (rows,) = hub.repositories["dataset", "org/rows"]
    config = project / "eval.yaml"
    config.write_text("dataset: org/rows\nmodel: org/tiny\n")
    pinned = {**TRAIN, "id": "b", "params": {**TRAIN["params"], "model_revision": old}}
    judge = {"id": "e", "uses": "runners.eval", "in": {"config": "eval.yaml"}}
    told = run_cli("fetch", write(project, TRAIN, pinned, judge), "--safetensors-only").stdout
    assert told.splitlines() == [
        f"dataset org/rows: {rows[:12]}, 3 files, 0.0 MB",
        f"model org/tiny at {old}: {old[:12]}, 2 files, 0.0 MB",
        f"model org/tiny: {new[:12]}, 2 files, 0.0 MB",
    ]
    assert snapshot(project, "datasets--org--rows", rows) == [
        *("README.md", "sub/notes.txt", "train.jsonl"),
    ]
    # The same weights as a pickle were not wanted.
    assert snapshot(project, "models--org--tiny", new) == ["config.json", "model.safetensors"]
    record = json.loads((project / f"hub/.nexa/models--org--tiny/{new}.json").read_text())
    assert (record["name"], record["commit"], record["files"]) == ("org/tiny", new, 2)
    told = run_cli("fetch", write(project, TRAIN), "--json").stdout
    assert {f["kind"]: f["files"] for f in json.loads(told)} == {"dataset": 3, "model": 3}


def test_planning_takes_the_fetched_revision_and_lists_what_is_missing(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    file = write(project, {**TRAIN, "scheduler": "slurm"})
    step = {**TRAIN, "scheduler": "slurm"}
    warnings = plan(project, step).warnings
    for name in ("model org/tiny", "dataset org/rows"):
        (told,) = [w for w in warnings if f"{name} is not in {project}/hub (paths.hub)" in w]
        assert told.endswith(f"on a machine with a network: nexa-hpc fetch {project}/demo.yaml")
    assert not any("paths.hub" in w for w in plan(project, TRAIN).warnings)
    run_cli("fetch", file)
    fetched = next(iter(hub.repositories["model", "org/tiny"]))
    hub.add("model", "org/tiny", MODEL)
    planned = plan(project, step)
    assert not any("paths.hub" in warning for warning in planned.warnings)
    assert planned.instances["train"].resolved["model"] == f"revision {fetched}"


def test_what_was_not_fetched_whole_is_missing_and_fetched_by_the_next_call(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    hub.broken = "model.safetensors"
    failed = run_cli("fetch", write(project, TRAIN), expect=1)
    assert "error: model org/tiny:" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "dataset org/rows" in failed.stdout
    folder = ProjectPaths.at(project, hub="hub").hub
    assert folder is not None
    # The library itself leaves a snapshot that looks like one.
    assert (project / "hub/models--org--tiny/refs/main").exists()
    assert HubName("model", "org/tiny", "main").commit(folder) is None
    assert HubName("dataset", "org/rows", "main").commit(folder) is not None
    hub.broken = None
    run_cli("fetch", write(project, TRAIN))
    assert HubName("model", "org/tiny", "main").commit(folder) is not None


def test_what_the_hub_does_not_have_and_a_missing_setting_are_said(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    wrong = {**TRAIN, "params": {**TRAIN["params"], "model": "org/none"}}
    failed = run_cli("fetch", write(project, wrong), expect=1).stderr
    assert "error: model org/none: " in failed
    alone = {"id": "a", "uses": "runners.command", "params": {"command": "true"}}
    assert "takes nothing from a hub" in run_cli("fetch", write(project, alone)).stdout
    (project / "nexa.yaml").write_text("{}\n")
    assert "paths.hub is not set" in run_cli("fetch", write(project, TRAIN), expect=2).stderr


def test_all_that_an_axolotl_config_names_is_brought_at_its_revision(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    old = hub.add("dataset", "org/more", DATASET)
    new = hub.add("dataset", "org/more", DATASET)
    (rows,) = hub.repositories["dataset", "org/rows"]
    (tiny,) = hub.repositories["model", "org/tiny"]
    added = {name: hub.add("model", f"org/{name}", MODEL) for name in ("lora", "tok")}
    texts = hub.add("dataset", "org/texts", DATASET)
    (project / "local.jsonl").write_text(ROWS)
    no_names = ("local.jsonl", "gone/away.jsonl", "s3://a/b", "json")
    config = {
        "datasets": [
            {"path": "org/more", "type": "alpaca", "revision": old},
            *({"path": path, "type": "alpaca"} for path in no_names),
        ],
        "test_datasets": [{"path": "org/more", "type": "alpaca"}, {"type": "alpaca"}],
        "pretraining_dataset": {"path": "org/texts"},
        "lora_model_dir": "org/lora",
        "tokenizer_config": "org/tok",
    }
    (project / "axo.yml").write_text(json.dumps(config))
    params = {"base_model": "org/tiny", "test_dataset": "org/rows"}
    step = {**AXOLOTL, "in": {"config": "axo.yml"}, "params": params}
    told = run_cli("fetch", write(project, step)).stdout
    assert [line.partition(",")[0] for line in told.splitlines()] == [
        f"dataset org/more at {old}: {old[:12]}",
        f"dataset org/more: {new[:12]}",
        f"dataset org/rows: {rows[:12]}",
        f"dataset org/texts: {texts[:12]}",
        f"model org/lora: {added['lora'][:12]}",
        f"model org/tiny: {tiny[:12]}",
        f"model org/tok: {added['tok'][:12]}",
    ]


def test_planning_lists_what_is_missing_of_an_axolotl_config_at_its_revisions(
    hub: FakeHub, project: Path
) -> None:
    params = {
        "base_model": "org/tiny",
        "revision_of_model": "v1",
        "dataset": "org/rows",
        "datasets": [{"type": "alpaca", "revision": "v2"}, {"path": "org/more", "type": "x"}],
        "tokenizer_config": "org/tok",
    }
    warnings = plan(project, {**AXOLOTL, "params": params}).warnings
    missing = [w.partition(": ")[2].partition(" is not in ")[0] for w in warnings if "fetch" in w]
    assert sorted(missing) == [
        *("dataset org/more", "dataset org/rows at v2", "model org/tiny at v1"),
        "model org/tok at v1",
    ]


def put(project: Path, name: str, commit: str, *refs: str) -> None:
    """Put into `paths.hub` what others than `fetch` have brought."""
    place = project / "hub" / name
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text(CONFIG)
    (place / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (place / "refs" / ref).write_text(commit)


@pytest.mark.parametrize("where", ["params", "config"])
def test_the_key_of_a_pinned_step_does_not_move_with_main(
    hub: FakeHub, project: Path, where: str
) -> None:
    one, two, three = (digit * 40 for digit in "123")
    put(project, "models--org--tiny", one, "main", "v1")
    put(project, "datasets--org--rows", one, "main")
    pin = {"model_revision": "v1"}
    (project / "c.yaml").write_text(json.dumps(pin))
    pinned = {**TRAIN, "in": {"config": "c.yaml"}}
    if where == "params":
        pinned = {**TRAIN, "params": {**TRAIN["params"], **pin}}
    free = plan(project, TRAIN).instances["train"]
    before = plan(project, pinned).instances["train"]
    put(project, "models--org--tiny", two, "main")
    after = plan(project, pinned).instances["train"]
    assert after.key == before.key
    assert after.sources["model"] == {"hub": "org/tiny", "revision": one}
    assert plan(project, TRAIN).instances["train"].key != free.key
    put(project, "models--org--tiny", three, "v1")
    assert plan(project, pinned).instances["train"].sources["model"]["revision"] == three


def test_what_only_a_config_file_names_is_in_the_key_by_its_commit_as_well(
    hub: FakeHub, project: Path
) -> None:
    one, two = (digit * 40 for digit in "12")
    put(project, "models--org--tiny", one, "main")
    put(project, "datasets--org--rows", one, "main")
    (project / "c.yaml").write_text("model: org/tiny\ndataset: org/rows\n")
    step = {"id": "s", "uses": "runners.eval", "in": {"config": "c.yaml"}, "out": "out/s"}
    before = plan(project, step).instances["s"]
    assert before.sources["model"] == {"hub": "org/tiny", "revision": one}
    put(project, "datasets--org--rows", two, "main")
    assert plan(project, step).instances["s"].key != before.key


@pytest.mark.parametrize(
    ("pin", "told", "expected"), [("a" * 40, "b", "a" * 40), ("v1", "b", "b"), ("v1", None, "v1")]
)
def test_a_pin_that_is_not_fetched_is_what_the_hub_says_of_it_or_else_its_name(
    hub: FakeHub,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    pin: str,
    told: str | None,
    expected: str,
) -> None:
    def revision(kind: str, name: str, at: str | None = None) -> str | None:
        return told if at == "v1" else "main's"

    monkeypatch.setattr(hub_backend, "revision", revision)
    put(project, "models--org--tiny", "c" * 40, "main")
    step = {**TRAIN, "params": {**TRAIN["params"], "model_revision": pin}}
    planned = plan(project, step)
    assert planned.instances["train"].sources["model"]["revision"] == expected
    assert not any("unnoticed" in warning for warning in planned.warnings)


def test_what_pins_an_axolotl_step_is_in_its_key_by_the_commit(hub: FakeHub, project: Path) -> None:
    one, two = "1" * 40, "2" * 40
    for name in ("models--org--tiny", "datasets--org--rows"):
        put(project, name, one, "main")
        put(project, name, two, "v1")
    rows = {"type": "alpaca"}
    params = {"base_model": "org/tiny", "dataset": "org/rows", "datasets": [rows]}
    step = {**AXOLOTL, "params": params}
    sources = plan(project, step).instances["axo"].sources
    assert {sources[name]["revision"] for name in ("base_model", "dataset")} == {one}
    pins = {"revision_of_model": "v1", "datasets": [{**rows, "revision": "v1"}]}
    sources = plan(project, {**step, "params": {**params, **pins}}).instances["axo"].sources
    assert {sources[name]["revision"] for name in ("base_model", "dataset")} == {two}


def test_a_fetch_without_a_network_leaves_what_others_have_brought_as_whole_as_it_was(
    hub: FakeHub, project: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "1" * 40
    put(project, "models--org--tiny", commit, "main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "error: " in run_cli("fetch", write(project, TRAIN), expect=1).stderr
    assert HubName("model", "org/tiny", "main").commit(project / "hub") == commit


@pytest.mark.slow
def test_the_libraries_load_what_was_fetched_by_its_name_without_a_hub(
    hub: FakeHub, project: Path, run_cli: RunCli
) -> None:
    pytest.importorskip("datasets")
    run_cli("fetch", write(project, TRAIN))
    (rows,) = hub.repositories["dataset", "org/rows"]
    code = f"""
from pathlib import Path
from transformers import AutoConfig
from nexa_hpc.backends.hf.rows import load_splits
from nexa_hpc.backends.hf.sources import Source
print(AutoConfig.from_pretrained("org/tiny").hidden_size)
print(len(load_splits(Source(None, "org/rows", {rows!r}, "rows"), None, Path("s"))["train"]))
"""
    hub.asked.clear()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(project / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=child_environment(**offline, HF_HOME=str(project / "home")),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["12", "4"], done.stderr
    assert hub.asked == []


@pytest.mark.slurm
def test_a_job_in_slurm_finds_what_was_fetched_and_asks_no_hub(
    hub: FakeHub, slurm_flow: SlurmFlow, run_cli: RunCli, project: Path
) -> None:
    (project / "steps.py").write_text(
        "class Work:\n"
        "    input_params = {'model': 'model'}\n"
        "    def run(self, out_dir, params, task):\n"
        "        import huggingface_hub, os\n"
        "        folder = huggingface_hub.snapshot_download(\n"
        "            params['model'], revision=task.revisions['model'])\n"
        "        text = open(folder + '/config.json').read()\n"
        "        (out_dir / 'told').write_text(os.environ['HF_HUB_OFFLINE'] + folder + text)\n"
        "work = Work()\n"
    )
    step = {"id": "w", "uses": "steps:work", "out": "out/w", "params": {"model": "org/tiny"}}
    file = write(project, {**step, "scheduler": "slurm"})
    run_cli("fetch", file)
    hub.asked.clear()
    run_cli("run", file, "--wait")
    told = (project / "out/w/told").read_text()
    (commit,) = hub.repositories["model", "org/tiny"]
    assert told == f"1{project}/hub/models--org--tiny/snapshots/{commit}{CONFIG}"
    assert hub.asked == []
