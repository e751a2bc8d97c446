"""Makes plans from steps written as Python values, for the tests of planning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.core.instances import Instance
from nexa_hpc.core.planning import Plan
from nexa_hpc.pipeline import Pipeline
from nexa_hpc.pipeline_run import PipelineRun


def command(name: str, text: str = "true", **fields: Any) -> dict[str, Any]:
    """A step that runs `text`, alone unless `after` says otherwise."""
    params = {"command": text, **fields.pop("params", {})}
    return {"id": name, "uses": "runners.command", "after": [], "params": params, **fields}


def pipeline(project: Path, *steps: Mapping[str, Any], name: str = "demo") -> Pipeline:
    """The pipeline of `steps`, read from a file of the project as a user's would be."""
    file = project / f"{name}.yaml"
    # JSON is YAML, so that no test depends on how a YAML writer quotes.
    file.write_text(json.dumps({"pipeline": {"name": name, "steps": list(steps)}}))
    return Pipeline.from_yaml(file, project=project)


def plan(project: Path, *steps: Mapping[str, Any], **options: Any) -> Plan:
    """What a run of `steps` would do."""
    return pipeline(project, *steps).plan(**options)


def run(project: Path, *steps: Mapping[str, Any], **options: Any) -> PipelineRun:
    """Run `steps` and insist that they succeed."""
    done = pipeline(project, *steps).run(**options)
    assert done.succeeded, done.status()
    return done


def key_of(project: Path, step: Mapping[str, Any], **options: Any) -> str:
    """The key of a pipeline's only step."""
    return plan(project, step, **options).instances[step["id"]].key


def instance(key: str = "ab" * 32, **changes: Any) -> Instance:
    """An instance as a plan would record it, for what needs no document."""
    fields: dict[str, Any] = {
        "step": "s", "key": key, "uses": "runners.command", "kind": "artifact", "backend": None,
        "scheduler": "local", "effect": False, "params": {}, "inputs": {}, "sources": {},
        "outputs": {"out": None}, "parents": (), "env": {}, "resources": {}, "labels": {},
        "document": {"rerun": 0, "code": {}}, "resolved": {}, "action": "RUN", "reason": "",
    }  # fmt: skip
    return Instance(**{**fields, **changes})


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, and the content of files."""
    return dict(_walk(folder))


def _walk(folder: Path) -> Iterator[tuple[str, bytes | None]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        yield name, path.read_bytes() if path.is_file() else None
