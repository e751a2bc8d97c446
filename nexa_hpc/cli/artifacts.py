"""`nexa-hpc artifacts …`: what is in the store, and whether it is whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.artifacts_export import export
from nexa_hpc.cli.artifacts_housekeeping import du, gc
from nexa_hpc.cli.completion import RUN_OPTION
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table, size
from nexa_hpc.core.artifacts import Artifact, Finding, look, open_artifact, verify
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import Run
from nexa_hpc.core.store import Stored, stored
from nexa_hpc.errors import UnknownNameError, UserError

_KEY_SHOWN = 12


@click.group("artifacts")
def group() -> None:
    """Results in the store, by `out` path, key or the beginning of a key.

    \b
    Example:
      nexa-hpc artifacts list
      nexa-hpc artifacts verify
      nexa-hpc artifacts du --why
    """


for _command in (du, gc, export):
    group.add_command(_command)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def list_artifacts(session: Session, as_json: bool) -> None:
    """List every artifact of the store.

    \b
    Example:
      nexa-hpc artifacts list
    """
    session.announce_root()
    entries = [_entry(entry.place, entry.finding) for entry in stored(session.paths)]
    if as_json:
        print(json.dumps(entries))
    elif entries:
        columns = ("key", "kind", "size", "made", "by", "state", "uri")
        header = [column.upper() for column in columns]
        print_table(header, [[str(entry[c]) for c in columns] for entry in entries])
    else:
        print("the store is empty")


@group.command()
@click.argument("artifact", type=click.Path())
@click.pass_obj
def show(session: Session, artifact: str) -> None:
    """Print what is known of ARTIFACT: its metadata, inputs, key document and files.

    \b
    Example:
      nexa-hpc artifacts show artifacts/checkpoints/hf_baseline
    """
    session.announce_root()
    found = open_artifact(_find(session.paths, artifact))
    print(json.dumps({"path": str(found.path), **found.meta}, indent=2, ensure_ascii=False))


@group.command("verify")
@click.argument("artifact", type=click.Path(), required=False)
@RUN_OPTION
@click.pass_obj
def verify_artifacts(session: Session, artifact: str | None, run: str | None) -> None:
    """Read every byte of ARTIFACT, of what RUN made or used, or of the whole store, and compare it
    with what was published.

    \b
    Example:
      nexa-hpc artifacts verify
      nexa-hpc artifacts verify artifacts/checkpoints/hf_baseline
      nexa-hpc artifacts verify --run general_e2e-3
    """
    if artifact is not None and run is not None:
        raise UserError("ARTIFACT and --run are given; keep one")
    session.announce_root()
    damaged = whole = 0
    for entry in _chosen(session, artifact, run):
        found = entry.finding.artifact
        wrong = verify(found) if found is not None else [entry.finding.reason]
        for line in wrong:
            print(f"{session.paths.relative(entry.place)}: {line}")
        damaged += bool(wrong)
        whole += not wrong
    print(f"{whole} whole, {damaged} damaged")
    if damaged:
        print("hint: run the pipeline again; a purged result is recomputed", file=sys.stderr)
        sys.exit(3)


def _chosen(session: Session, artifact: str | None, run: str | None) -> Iterable[Stored]:
    if run is not None:
        return _of_run(session.find_run(run))
    if artifact is not None:
        place = _find(session.paths, artifact)
        return [Stored(place, look(place))]
    return stored(session.paths)


def _of_run(run: Run) -> Iterator[Stored]:
    for instance in run.instances.values():
        for place in instance.artifact_paths(run.paths).values():
            finding = look(place)
            missing = Finding(finding.presence, reason=f"step '{instance.step}': {finding.reason}")
            yield Stored(place, finding if finding.artifact is not None else missing)


def _find(paths: ProjectPaths, name: str) -> Path:
    """Return the artifact that a user's word names: a path, a key, or the beginning of one."""
    for start in (Path.cwd(), paths.root):
        if (start / name).exists():
            return (start / name).resolve()
    matches = [e.place for e in stored(paths) if e.place.name.startswith(name)]
    if len(matches) > 1:
        raise UserError(f"'{name}' is the beginning of {len(matches)} keys", hint="give more of it")
    if not matches:
        raise UnknownNameError(f"no such artifact: {name}", hint="nexa-hpc artifacts list")
    return matches[0]


def _entry(place: Path, finding: Finding) -> dict[str, Any]:
    artifact: Artifact | None = finding.artifact
    meta = artifact.meta if artifact is not None else {}
    made_by = meta.get("made_by", {})
    return {
        "key": place.name[:_KEY_SHOWN],
        "kind": meta.get("kind", "?"),
        "size": size(meta.get("bytes", 0)),
        "made": local_time(meta["created_at"]) if meta else "?",
        "by": f"{made_by.get('run', '?')}/{made_by.get('step', '?')}",
        "state": finding.presence.value,
        "uri": meta.get("uri", finding.reason),
    }
