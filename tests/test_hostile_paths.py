"""Names and paths that mean harm, or are a slip: refused before anything is written, or taken
literally."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import RunCli
from planned import command

from nexa_hpc.errors import SpecError

LONG = "n" * 300
DEEP = "/".join(["d" * 200] * 30)


def refused(project: Path, *steps: dict[str, Any], name: str = "p") -> str:
    """Return why the pipeline is refused, having looked that nothing was written."""
    file = project / "p.yaml"
    file.write_text(json.dumps({"pipeline": {"name": name, "steps": list(steps)}}))
    before = planned.tree(project)
    with pytest.raises(SpecError) as error:
        planned.Pipeline.from_yaml(file, project=project).run()
    assert planned.tree(project) == before
    return str(error.value)


NAMES = [
    "a\nb",
    "a/../b",
    "../a",
    "/a",
    "a b",
    "$(id)",
    "é",
    "a\x1b[2J",
    "\u202ea",
    LONG,
    "a\x00b",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_step_may_not_be_called(project: Path, name: str) -> None:
    assert "id" in refused(project, {**command("x"), "id": name})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_pipeline_may_not_be_called(project: Path, name: str) -> None:
    assert "name" in refused(project, command("x"), name=name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("é", "")], ids=ascii)
@pytest.mark.parametrize("field", ["name", "tag"])
def test_a_model_or_tag_may_not_be_called(project: Path, field: str, name: str) -> None:
    params = {"name": "m", "version": "latest", "tag": "t", field: name}
    refused(project, {"id": "x", "uses": "core.registry.promote", "params": params})


OUTS = {
    "..": "../x", "deep ..": "a/../../x", "absolute": "/tmp/x", "home": "~/x",
    "state": ".nexa_state/x", "store": "artifacts/.store/x", "registry": "artifacts/.registry",
    "NUL": "a\x00b", "newline": "a\nb", "long": LONG, "deep": DEEP, "root": ".",
    "link out": "link-out/x", "link": "link-out",
}  # fmt: skip


@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS)
def test_an_out_may_not_lie(project: Path, out: str) -> None:
    (project / "link-out").symlink_to("/tmp")
    assert "out" in refused(project, command("x", out=out))


INPUTS = {
    "through a result": "made/../../../../etc/passwd", "beside a result": "out/made/../other",
    "NUL": "a\x00b", "newline": "a\nb", "escape": "a\x1b]0;x\x07", "long": LONG, "deep": DEEP,
    "a loop": "link-loop", "dangling": "link-gone", "closed": "closed/x", "in a file": "p.yaml/x",
    "a package's parent": "pkg://nexa_hpc/../../pyvenv.cfg", "a version": "models:../../x@1",
}  # fmt: skip


@pytest.mark.parametrize("text", INPUTS.values(), ids=INPUTS)
def test_an_input_may_not_be(project: Path, text: str) -> None:
    (project / "link-loop").symlink_to("link-loop")
    (project / "link-gone").symlink_to("nowhere")
    made = command("made", out="out/made")
    told = refused(project, made, command("x", **{"in": {"data": text}}))
    assert "in.data" in told or "step 'x': in" in told


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_an_input_that_never_ends_is_refused(project: Path, kind: str) -> None:
    os.mkfifo(project / "fifo")
    text = "fifo" if kind == "fifo" else "/dev/zero"
    told = refused(project, command("x", **{"in": {"data": text}}))
    assert "neither a file nor a folder" in told


def test_a_link_out_of_the_project_is_read_where_it_led_at_planning(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "first").write_text("first")
    (tmp_path / "second").write_text("second")
    (project / "data").symlink_to(tmp_path / "first")
    swap = command("swap", f"ln -sfn {tmp_path}/second data")
    read = command("read", "cat $IN_data > $OUT/x", after=["swap"], **{"in": {"data": "data"}})
    done = planned.run(project, swap, read)
    assert (done.result("read") / "x").read_text() == "first"


@pytest.mark.parametrize(
    "text",
    ["$(touch owned)", "`touch owned`", "; touch owned", "\ntouch owned\n", "' && touch owned '",
     "${IFS}touch${IFS}owned", "--help", "é\u202e", "%s%n", "\\"],
    ids=ascii,
)  # fmt: skip
def test_what_params_hold_is_no_command(project: Path, run_cli: RunCli, text: str) -> None:
    step = command("x", 'printf %s "$PARAM_text" > $OUT/x; echo "$PARAM_text"')
    step["params"]["text"] = text
    (project / "p.yaml").write_text(json.dumps({"pipeline": {"name": "p", "steps": [step]}}))
    run_cli("run", "p.yaml")
    (made,) = (project / "artifacts").rglob("x")
    assert made.read_text() == text
    assert not list(project.rglob("owned"))


@pytest.mark.parametrize("text", ["a\x1b]0;owned\x07b", "a\u202eb", "a\u009bb", "a\rb"], ids=ascii)
def test_a_terminal_gets_no_control_characters_from_documents(
    project: Path, run_cli: RunCli, text: str
) -> None:
    hostile = {
        "id": "x",
        "uses": "runners.command",
        "in": {"d": text},
        "params": {"command": "true"},
    }
    raised = command("raised", "true", params={"code": [text]})
    for step in (hostile, {**hostile, "uses": text}, {**hostile, text: 1}, raised):
        (project / "p.yaml").write_text(json.dumps({"pipeline": {"name": "p", "steps": [step]}}))
        told = run_cli("run", "p.yaml", expect=2).stderr
        assert all(c.isprintable() for c in told.replace("\n", "")), ascii(told)
    (project / "mine.py").write_text(f"def fail(out_dir): raise ValueError({text!r})\n")
    step = {"id": "x", "uses": "mine:fail"}
    (project / "p.yaml").write_text(json.dumps({"pipeline": {"name": "p", "steps": [step]}}))
    status = run_cli("run", "p.yaml", expect=1).stdout.partition("Traceback")[0]
    status += run_cli("status").stdout
    assert all(c.isprintable() for c in status.replace("\n", "")), ascii(status)
