"""`nexa-hpc artifacts …`: what is in the store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table, size
from nexa_hpc.core.artifacts import Artifact, Finding, look, open_artifact, verify
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import list_names
from nexa_hpc.errors import UnknownNameError, UserError

_KEY_SHOWN = 12


@click.group("artifacts")
def group() -> None:
    """Results in the store, by `out` path, key or the beginning of a key.

    \b
    Example:
      nexa-hpc artifacts list
      nexa-hpc artifacts verify
    """


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
    entries = [_entry(path, finding) for path, finding in _stored(session.paths)]
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
@click.pass_obj
def verify_artifacts(session: Session, artifact: str | None) -> None:
    """Read every byte of ARTIFACT, or of the whole store, and compare it with what was published.

    \b
    Example:
      nexa-hpc artifacts verify
      nexa-hpc artifacts verify artifacts/checkpoints/hf_baseline
    """
    session.announce_root()
    if artifact is not None:
        place = _find(session.paths, artifact)
        chosen = iter([(place, look(place))])
    else:
        chosen = _stored(session.paths)
    damaged = whole = 0
    for path, finding in chosen:
        wrong = verify(finding.artifact) if finding.artifact is not None else [finding.reason]
        for line in wrong:
            print(f"{session.paths.relative(path)}: {line}")
        damaged += bool(wrong)
        whole += not wrong
    print(f"{whole} whole, {damaged} damaged")
    if damaged:
        print("hint: run the pipeline again; a purged result is recomputed", file=sys.stderr)
        sys.exit(3)


def _stored(paths: ProjectPaths) -> Iterator[tuple[Path, Finding]]:
    """Yield each place in the store and what is found there, in the order of keys."""
    for shard in list_names(paths.store):
        if len(shard) != 2:
            continue
        for name in list_names(paths.store / shard):
            if not name.startswith(".") and ".tmp." not in name:
                place = paths.store / shard / name
                yield place, look(place)


def _find(paths: ProjectPaths, name: str) -> Path:
    """Return the artifact that a user's word names: a path, a key, or the beginning of one."""
    for start in (Path.cwd(), paths.root):
        if (start / name).exists():
            return (start / name).resolve()
    matches = [place for place, _ in _stored(paths) if place.name.startswith(name)]
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
