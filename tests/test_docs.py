"""The documentation is true: its snippets run, its names exist, nothing is left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import REPOSITORY, RunCli, child_environment

from nexa_hpc import Pipeline
from nexa_hpc.cli.main import GROUPS, SITE, VERBS, cli
from nexa_hpc.core.cluster import Cluster
from nexa_hpc.core.document import parse_document
from nexa_hpc.core.handlers import BUILTIN, task_argument_names
from nexa_hpc.core.settings import read_settings
from nexa_hpc.core.spec import Step, parse_pipeline

README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def snippet(language: str, holding: str) -> str:
    (found,) = [text for text in snippets(language) if holding in text]
    return found


def test_the_python_snippet_of_a_sweep_runs_as_it_stands(project: Path) -> None:
    script = snippet("python", "seeds.yaml")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"seed={n} COMPLETED {n}" for n in (1, 2, 3)]


def test_the_python_snippet_runs_as_it_stands(project: Path) -> None:
    script = snippet("python", "create_artifact")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "make RUN no result yet" in done.stdout
    assert "True {'words': 2}" in done.stdout
    assert (project / "artifacts/notes/a.txt").read_text() == "hello"


def test_the_handler_snippet_runs_as_a_step(project: Path, run_cli: RunCli) -> None:
    (project / "project_steps.py").write_text(snippet("python", "project_steps.py"))
    step = "{id: words, uses: 'project_steps:count', out: artifacts/words, params: PARAMS}"
    text = f"pipeline: {{name: own, steps: [{step}]}}"
    (project / "p.yaml").write_text(text.replace("PARAMS", "{text: a b c}"))
    run_cli("run", "p.yaml")
    assert (project / "artifacts/words/metrics.json").read_text() == '{"words": 3}'
    (project / "p.yaml").write_text(text.replace("PARAMS", "{}"))
    assert "params.text is missing" in run_cli("plan", "p.yaml", expect=2).stderr


def test_the_pipeline_in_the_readme_is_a_valid_document() -> None:
    spec = parse_pipeline(parse_document(snippet("yaml", "pipeline:").encode(), "README.md"))
    assert [step.id for step in spec.steps] == [
        "prepare",
        "train",
        "evaluate",
        "register",
        "promote",
    ]


def test_the_settings_in_the_readme_are_read(tmp_path: Path) -> None:
    (tmp_path / "nexa.yaml").write_text(snippet("yaml", "hash_limit_gb"))
    assert read_settings(tmp_path).hash_limit_gb == 50


def test_the_cluster_file_in_the_readme_is_read() -> None:
    text = snippet("yaml", "login_policy").encode()
    cluster = Cluster.model_validate({"name": "x", **parse_document(text, "README.md").value})
    assert (cluster.login_policy, cluster.defaults.account) == ("refuse", "nlp")


@pytest.mark.parametrize("name", sorted(p.name for p in (REPOSITORY / "pipelines").glob("*.yaml")))
def test_each_pipeline_that_we_ship_is_a_valid_document(name: str) -> None:
    assert Pipeline.from_yaml(REPOSITORY / "pipelines" / name, project=REPOSITORY).spec.steps


def test_every_field_of_a_step_is_documented() -> None:
    names = {"in" if name == "inputs" else name for name in Step.model_fields}
    missing = {name for name in names if f"`{name}`" not in README}
    assert not missing


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_handler_is_documented(name: str) -> None:
    assert f"`{name}`" in README


def test_every_argument_that_a_handler_may_take_is_documented() -> None:
    section = README[README.index("### Your own handler") : README.index("## Commands")]
    plumbing = {"step_id", "uses", "key", "attempt", "revisions", "registry", "upstream", "labels"}
    plumbing |= {"server", "servers", "secrets"}
    missing = {name for name in task_argument_names() - plumbing if f"`{name}`" not in section}
    assert not missing


def test_every_command_is_documented() -> None:
    section = README[README.index("## Commands") : README.index("## In Python")]
    missing = [name for name in [*VERBS, *GROUPS, *SITE] if f"`{name}" not in section]
    assert missing in ([], ["pipeline"])
    context = click.Context(cli)
    for name in ("models", "artifacts", "config", "cluster", "sweep", "env", "serve"):
        group = cli.get_command(context, name)
        assert isinstance(group, click.Group)
        row = next(line for line in section.splitlines() if line.startswith(f"| `{name} …`"))
        assert {f"`{command}`" for command in group.list_commands(context)} <= set(
            re.findall(r"`[^`]*`", row)
        )


def test_the_architecture_names_every_module_and_no_other() -> None:
    modules = {
        path.relative_to(REPOSITORY / "nexa_hpc").as_posix()
        for row in ("", "core/", "compose/", "element/")
        for path in (REPOSITORY / "nexa_hpc" / row).glob("*.py")
        if not path.name.startswith("__")
    }
    table = ARCHITECTURE[ARCHITECTURE.index("## Modules") : ARCHITECTURE.index("## On disk")]
    named = set()
    for row in table.splitlines():
        folder = ""
        for name in re.findall(r"`([^`]+\.py)`", row):
            folder = name.rpartition("/")[0] if "/" in name else folder
            full = name if "/" in name else f"{folder}/{name}".lstrip("/")
            named |= {
                path.relative_to(REPOSITORY / "nexa_hpc").as_posix()
                for path in (REPOSITORY / "nexa_hpc").glob(full)
            } or {f"(no such module: {full})"}
    others = {
        name
        for name in named
        if name.partition("/")[0] in ("runners", "backends", "cli", "schedulers", "hydra_runs")
    }
    assert named - others == modules


def test_no_relative_link_in_the_documents_is_broken() -> None:
    for document in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
