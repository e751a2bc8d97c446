"""`nexa-hpc models …`, as people and scripts use it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from conftest import RunCli, child_environment

from nexa_hpc.cli.models import group
from nexa_hpc.cli.session import Session
from nexa_hpc.core.publishing import Publication, create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import ArtifactError, RegistryError, UnknownNameError

COMMANDS = ["register", "resolve", "promote", "rollback", "delete", "list", "show", "history"]


@pytest.fixture
def session(project: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(project)
    return Session(None)


@pytest.fixture
def registry(session: Session) -> Registry:
    return Registry(session.paths.registry, project=session.paths.root)


@pytest.fixture
def models(session: Session):
    """Call `models ARGS`; an error of ours passes through, as it does to `cli/main.py`."""

    def call(*args: str, expect: int = 0) -> Result:
        result = CliRunner().invoke(group, [*args], obj=session)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == expect, result.output
        return result

    return call


@pytest.fixture
def three(registry: Registry, project: Path) -> Registry:
    """A registry with `movie` 1, 2 and 3; 1 has been production before 2 is."""
    for number in (1, 2, 3):
        folder = project / f"artifacts/.store/k{number}"
        create_artifact(
            folder, lambda out, n=number: (out / "model.bin").write_text(f"weights {n}")
        )
        meta = {"accuracy": number / 4, "ok": True, "by": "me"}
        registry.register("movie", folder, meta)
    registry.promote("movie", 1, "production")
    registry.promote("movie", 2, "production")
    return registry


def test_register_says_the_version_and_once_is_enough(models, project: Path) -> None:
    create_artifact(project / "model", lambda out: (out / "model.bin").write_text("weights"))
    (project / "meta.json").write_text('{"accuracy": 0.9}')
    said = models("register", "movie", "model", "--meta", "meta.json")
    assert said.stdout == "registered movie version 1 (model)\n"
    said = models("register", "movie", "model", "--meta", "meta.json")
    assert said.stdout == "movie version 1 is this artifact already\n"
    assert models("register", "movie", "model").stdout.startswith("registered movie version 2")


def test_register_refuses_a_folder_that_is_no_artifact(models, project: Path) -> None:
    (project / "model").mkdir()
    with pytest.raises(ArtifactError, match="no complete artifact"):
        models("register", "movie", "model")
    models("register", "movie", "absent", expect=2)


def test_resolve_prints_one_path_and_nothing_else_to_stdout(
    run_cli: RunCli, three: Registry, project: Path
) -> None:
    said = run_cli("models", "resolve", "movie@production")
    assert said.stdout == f"{project}/artifacts/.store/k2\n"
    assert said.stderr == f"project: {project}\n"


def test_errors_end_with_their_code_and_the_next_command(
    run_cli: RunCli, three: Registry, project: Path
) -> None:
    said = run_cli("models", "resolve", "movie@prodction", expect=2)
    assert "error: model 'movie' has no tag 'prodction'; did you mean 'production'?" in said.stderr
    assert "hint: run 'nexa-hpc models show movie'" in said.stderr
    (project / "artifacts/.store/k2/model.bin").unlink()
    said = run_cli("models", "resolve", "movie@production", expect=3)
    assert said.stdout == ""
    assert "movie version 2 are not there any more" in said.stderr


def test_resolve_of_a_purged_version_ends_with_code_3(
    models, three: Registry, project: Path
) -> None:
    (project / "artifacts/.store/k2/model.bin").unlink()
    with pytest.raises(ArtifactError, match="movie version 2 are not there any more") as caught:
        models("resolve", "movie@production")
    assert caught.value.exit_code == 3


def test_an_unknown_tag_brings_the_nearest(models, three: Registry) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'production'") as caught:
        models("resolve", "movie@prodction")
    assert caught.value.exit_code == 2


def test_promote_says_where_the_tag_was(models, three: Registry) -> None:
    said = models("promote", "movie", "latest", "production")
    assert said.stdout == "production → version 3 (was version 2)\n"
    said = models("promote", "movie", "3", "production")
    assert said.stdout == "production is already version 3\n"


def test_rollback_goes_back(models, three: Registry) -> None:
    assert models("rollback", "movie", "production").stdout == (
        "production → version 1 (was version 2)\n"
    )


def test_delete_takes_a_version_or_a_tag_and_refuses_what_is_in_use(
    models, three: Registry
) -> None:
    assert models("delete", "movie", "1").stdout == "deleted movie version 1\n"
    with pytest.raises(RegistryError, match="movie version 2 is production"):
        models("delete", "movie", "2")
    said = models("delete", "movie", "--tag", "production")
    assert said.stdout == "production removed (was version 2)\n"
    models("delete", "movie", "2")
    assert [version.number for version in three.versions("movie")] == [3]
    models("delete", "movie", expect=2)
    models("delete", "movie", "3", "--tag", "x", expect=2)


def test_list_shows_each_model_and_which_files_are_gone(
    models, three: Registry, project: Path
) -> None:
    (project / "artifacts/.store/k3/model.bin").unlink()
    lines = models("list").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["MODEL", "LATEST", "VERSIONS", "TAGS", "FILES"],
        ["movie", "3", "3", "production=2", "gone:", "3"],
    ]
    assert json.loads(models("list", "--json").stdout) == [
        {"model": "movie", "latest": 3, "versions": 3, "tags": {"production": 2}, "gone": [3]}
    ]


def test_list_of_nothing_is_an_empty_list_for_a_script_and_a_hint_for_people(models) -> None:
    assert json.loads(models("list", "--json").stdout) == []
    said = models("list")
    assert said.stdout == ""
    assert "models register" in said.stderr


def test_show_lists_versions_with_tags_figures_and_files(models, three: Registry) -> None:
    header, *rows = (line.split() for line in models("show", "movie").stdout.splitlines())
    assert header == ["VERSION", "TAGS", "REGISTERED", "BY", "FILES", "META", "ARTIFACT"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[1][1] == "production"
    assert rows[1][-3:] == ["complete", "accuracy=0.5", "artifacts/.store/k2"]


def test_show_names_a_steps_result_by_the_start_of_its_key(
    models, registry: Registry, project: Path
) -> None:
    publication = Publication.begin(project / "artifacts/.store/ab/abcd")
    (publication.folder / "model.bin").write_text("weights")
    publication.publish(kind="checkpoint", step_key="0123456789abcdef" * 4)
    models("register", "movie", "artifacts/.store/ab/abcd")
    assert models("show", "movie").stdout.split()[-1] == "0123456789ab"


def test_show_gives_scripts_everything(models, three: Registry, project: Path) -> None:
    shown = json.loads(models("show", "movie", "--json").stdout)
    assert shown["tags"] == {"production": 2}
    second = shown["versions"][1]
    assert second["path"] == f"{project}/artifacts/.store/k2"
    assert second["meta"] == {"accuracy": 0.5, "ok": True, "by": "me"}
    assert (second["files"], second["problem"], second["size_bytes"]) == ("complete", None, 9)
    assert second == json.loads(models("show", "movie@production", "--json").stdout)


def test_show_of_one_version_prints_a_field_to_a_line_also_when_it_was_purged(
    models, three: Registry, project: Path
) -> None:
    (project / "artifacts/.store/k2/COMPLETE").unlink()
    fields = dict(
        line.split(None, 1) for line in models("show", "movie@2").stdout.splitlines() if line
    )
    assert fields["number"] == "2"
    assert fields["files"] == "purged"
    assert fields["problem"] == "COMPLETE is gone"
    assert fields["tags"] == '["production"]'


def test_history_shows_every_move(models, three: Registry) -> None:
    three.remove_tag("movie", "production")
    rows = [line.split() for line in models("history", "movie", "production").stdout.splitlines()]
    assert [row[:5] for row in rows[1:]] == [
        ["1", "promote", "none", "→", "1"],
        ["2", "promote", "1", "→", "2"],
        ["3", "remove", "2", "→", "none"],
    ]
    moves = json.loads(models("history", "movie", "production", "--json").stdout)
    assert [(move["sequence"], move["version"]) for move in moves] == [(1, 1), (2, 2), (3, None)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(models, command: str) -> None:
    said = models(command, "--help").stdout
    assert f"  nexa-hpc models {command}" in said or f"$(nexa-hpc models {command}" in said


def test_the_group_is_all_of_these_commands() -> None:
    assert sorted(group.commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("args", "word", "offered"),
    [
        (["resolve"], "", ["movie"]),
        (["resolve"], "mo", ["movie"]),
        (["resolve"], "x", []),
        (
            ["resolve"],
            "movie@",
            ["movie@production", "movie@latest", *(f"movie@{n}" for n in "123")],
        ),
        (["resolve"], "movie@p", ["movie@production"]),
        (["resolve"], "other@", []),
        (["promote"], "", ["movie"]),
        (["promote", "movie"], "", ["latest", "1", "2", "3"]),
        (["promote", "movie", "3"], "", ["production"]),
        (["promote", "../x", "3"], "", []),
        (["history", "movie"], "pr", ["production"]),
        (["delete", "movie"], "", ["latest", "1", "2", "3"]),
        (["delete", "movie", "--tag"], "", ["production"]),
        (["delete", "--tag"], "", ["production"]),
    ],
)
def test_a_shell_completes_models_versions_and_tags(three: Registry, args, word, offered) -> None:
    found = ShellComplete(group, {}, "models", "_COMPLETE").get_completions(args, word)
    assert [item.value for item in found] == offered


def test_a_real_shell_completes_a_reference(three: Registry, run_cli: RunCli) -> None:
    typed = {"COMP_WORDS": "nexa-hpc models resolve movie@p", "COMP_CWORD": "3"}
    said = run_cli(env={"_NEXA_HPC_COMPLETE": "bash_complete", **typed})
    assert said.stdout == "plain,movie@production\n"


_WITH_IMPORTS = """
import atexit, sys
heavy = {"rich", "pydantic", "yaml", "torch", "transformers", "omegaconf"}
told = lambda: print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
atexit.register(told)
from nexa_hpc.cli.main import main
main()
"""


@pytest.fixture
def without_settings(three: Registry, project: Path) -> Path:
    """The project of `three` without a nexa.yaml, for reading one is what loads YAML."""
    (project / "nexa.yaml").unlink()
    (project / ".nexa_state").mkdir()
    return project


def test_nothing_heavy_is_imported_for_a_pipe(without_settings: Path) -> None:
    for args in (["list"], ["show", "movie"], ["resolve", "movie@1"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", _WITH_IMPORTS, "models", *args],
            cwd=without_settings,
            env=child_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert "imported: []\n" in done.stderr


def test_a_terminal_gets_a_table(without_settings: Path) -> None:
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_IMPORTS, "models", "show", "movie"],
        cwd=without_settings,
        env=child_environment(COLUMNS="200", TERM="xterm"),
        stdout=inner,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(inner)
        assert process.stderr is not None
        assert b"imported: ['rich']\n" in process.stderr.read()
    shown = os.read(outer, 100_000).decode()
    os.close(outer)
    assert "production" in shown
    assert "artifacts/.store/k2" in shown
